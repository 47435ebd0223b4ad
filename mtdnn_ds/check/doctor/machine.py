"""One node: devices, threads, memory, /dev/shm, free disk, limits. No other node (links.py, shared.py)."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from pathlib import Path

import psutil
import torch

from mtdnn_ds import dist
from mtdnn_ds.check.doctor.findings import Finding, gigabytes
from mtdnn_ds.runs.device import probe_device

# A checkpoint of BERT-large: 335 M parameters with fp32 master weights and two Adam states (12 bytes), and the weights (2 to 4).
CHECKPOINT_BYTES = 335e6 * 16
SHARED_MEMORY = Path("/dev/shm")
LEFT_BEHIND = "deepspeed_allreduce_buffer_*"


def machine_findings(output_dir: Path) -> list[Finding]:
    """Everything about this node. Called by one rank of it."""
    return [
        *device_findings(),
        *thread_findings(),
        memory_finding(),
        *shared_memory_findings(),
        *disk_findings(output_dir),
        *limit_findings(),
    ]


def device_findings() -> list[Finding]:
    """GPUs, or the CPU and its number formats."""
    device, local_size = probe_device(), int(os.environ.get("LOCAL_SIZE", "1"))
    if device.type == "cpu":
        formats = "bf16 in hardware" if device.fast_bf16 else "bf16 emulated (use fp32)"
        return [
            Finding(
                check="devices", status="note", what=f"no CUDA device; CPU {platform.machine()}, {formats}"
            )
        ]
    count = torch.cuda.device_count()
    findings = []
    for index in range(count):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        what = (
            f"GPU {index}: {about.name}, {gigabytes(total)}, compute capability {about.major}.{about.minor}"
        )
        busy = free < 0.9 * total
        advice = f"only {gigabytes(free)} are free: another process uses it; ask nvidia-smi" if busy else ""
        findings.append(Finding(check="devices", status="hurts" if busy else "ok", what=what, advice=advice))
    if 1 < count < local_size:  # one visible device a rank is how --gpus-per-task works
        what, advice = f"{local_size} ranks and {count} GPUs on this node", "start one rank for each GPU"
        findings.append(Finding(check="devices", status="fails", what=what, advice=advice))
    return findings


def thread_findings() -> list[Finding]:
    """Ranks times threads against cores."""
    cores, ranks = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_SIZE", "1"))
    threads = int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())
    what = f"{ranks} ranks of {threads} threads on {cores} cores"
    if "OMP_NUM_THREADS" in os.environ and ranks * threads > cores:
        advice = f"threads that wait for each other make steps many times slower: OMP_NUM_THREADS={max(1, cores // ranks)}"
        return [Finding(check="threads", status="hurts", what=what, advice=advice)]
    return [Finding(check="threads", status="ok", what=what)]


def memory_finding() -> Finding:
    """Free host memory, within the container's limit where there is one."""
    free, limit = psutil.virtual_memory().available, Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    within = f", limit of this container {gigabytes(int(text))}" if text.isdigit() else ""
    what = f"{gigabytes(free)} of host memory free{within}"
    if free < 4e9:
        return Finding(
            check="memory",
            status="hurts",
            what=what,
            advice="BERT-large takes about 9 GB a rank on a CPU, 12 GB with offload",
        )
    return Finding(check="memory", status="ok", what=what)


def shared_memory_findings(folder: Path = SHARED_MEMORY) -> list[Finding]:
    """Size of /dev/shm and what other runs have left in it."""
    if not folder.is_dir():
        return [
            Finding(
                check="/dev/shm",
                status="hurts",
                what="is missing",
                advice="NCCL and PyTorch exchange data through it: mount it",
            )
        ]
    usage = shutil.disk_usage(folder)
    what = f"{gigabytes(usage.free)} of {gigabytes(usage.total)} free"
    small = usage.free < 1e9
    advice = (
        "NCCL fails with SIGBUS when it is full; in a container: --shm-size=8g (Docker), or mount the host's"
        if small
        else ""
    )
    findings = [Finding(check="/dev/shm", status="hurts" if small else "ok", what=what, advice=advice)]
    left = [path for path in folder.glob(LEFT_BEHIND) if path.stat().st_uid == os.getuid()]
    if left:
        what = f"{len(left)} all-reduce buffers of DeepSpeed runs, {gigabytes(sum(path.stat().st_size for path in left))}"
        advice = f"if no DeepSpeed run of yours is going on here: rm {folder / LEFT_BEHIND}"
        findings.append(Finding(check="/dev/shm", status="hurts", what=what, advice=advice))
    return findings


def disk_findings(output_dir: Path) -> list[Finding]:
    """Room where checkpoints, caches and temporary files go."""
    findings = []
    for what, path in (
        ("checkpoints", output_dir),
        ("temporary files", Path(os.environ.get("TMPDIR", "/tmp"))),
    ):
        there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        if not os.access(there, os.W_OK):
            advice = (
                "give an --output_dir that can be written"
                if what == "checkpoints"
                else "set TMPDIR to a folder that can be written"
            )
            findings.append(
                Finding(
                    check="disk", status="fails", what=f"{there} ({what}) cannot be written", advice=advice
                )
            )
            continue
        free = shutil.disk_usage(there).free
        needed = 3 * CHECKPOINT_BYTES if what == "checkpoints" else 1e9
        tight = free < needed
        advice = (
            f"{gigabytes(needed)} are a safe size (train.keep_last=2 keeps two checkpoints while a third is written)"
            if tight
            else ""
        )
        text = f"{gigabytes(free)} free in {there} ({what})"
        findings.append(Finding(check="disk", status="hurts" if tight else "ok", what=text, advice=advice))
    return findings


def limit_findings() -> list[Finding]:
    """Limits of this process that stop large runs."""
    findings = []
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < 1024 + 8 * dist.world_size():
        what, advice = (
            f"{files} open files allowed",
            "each rank keeps several connections to the others: ulimit -n 65536",
        )
        findings.append(Finding(check="limits", status="hurts", what=what, advice=advice))
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if Path("/dev/infiniband").is_dir() and locked != resource.RLIM_INFINITY:
        what = f"{gigabytes(locked)} of locked memory allowed, and there is InfiniBand"
        advice = "NCCL's registration of buffers fails: ulimit -l unlimited (in SLURM: PropagateResourceLimitsExcept=MEMLOCK)"
        findings.append(Finding(check="limits", status="hurts", what=what, advice=advice))
    return findings or [Finding(check="limits", status="ok", what="open files and locked memory suffice")]
