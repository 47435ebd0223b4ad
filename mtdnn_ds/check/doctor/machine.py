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
from mtdnn_ds.check.doctor.findings import Finding, gigabytes, judged
from mtdnn_ds.runs.device import probe_device

# A checkpoint of BERT-large: 335 M parameters with fp32 master weights and two Adam states (12 bytes), and
# the weights (2 to 4).
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
    device = probe_device()
    if device.type == "cpu":
        formats = "bf16 in hardware" if device.fast_bf16 else "bf16 emulated (use fp32)"
        what = f"no CUDA device; CPU {platform.machine()}, {formats}"
        return [Finding(check="devices", status="note", what=what)]

    count, local_size = torch.cuda.device_count(), int(os.environ.get("LOCAL_SIZE", "1"))
    findings = [_gpu_finding(index) for index in range(count)]
    if 1 < count < local_size:  # one visible device a rank is how --gpus-per-task works
        what = f"{local_size} ranks and {count} GPUs on this node"
        advice = "start one rank for each GPU"
        findings.append(Finding(check="devices", status="fails", what=what, advice=advice))
    return findings


def _gpu_finding(index: int) -> Finding:
    about = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return judged(
        "devices",
        f"GPU {index}: {about.name}, {gigabytes(total)}, compute capability {about.major}.{about.minor}",
        hurts=free < 0.9 * total,
        advice=f"only {gigabytes(free)} are free: another process uses it; ask nvidia-smi",
    )


def thread_findings() -> list[Finding]:
    """Ranks times threads against cores."""
    cores, ranks = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_SIZE", "1"))
    threads = int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads())
    finding = judged(
        "threads",
        f"{ranks} ranks of {threads} threads on {cores} cores",
        hurts="OMP_NUM_THREADS" in os.environ and ranks * threads > cores,
        advice=(
            "threads that wait for each other make steps many times slower: "
            f"OMP_NUM_THREADS={max(1, cores // ranks)}"
        ),
    )
    return [finding]


def memory_finding() -> Finding:
    """Free host memory, within the container's limit where there is one."""
    free = psutil.virtual_memory().available
    what = f"{gigabytes(free)} of host memory free"
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file():
        text = limit.read_text().strip()
        if text.isdigit():
            what += f", limit of this container {gigabytes(int(text))}"

    advice = "BERT-large takes about 9 GB a rank on a CPU, 12 GB with offload"
    return judged("memory", what, hurts=free < 4e9, advice=advice)


def shared_memory_findings(folder: Path = SHARED_MEMORY) -> list[Finding]:
    """Size of /dev/shm and what other runs have left in it."""
    if not folder.is_dir():
        advice = "NCCL and PyTorch exchange data through it: mount it"
        return [Finding(check="/dev/shm", status="hurts", what="is missing", advice=advice)]

    usage = shutil.disk_usage(folder)
    room = judged(
        "/dev/shm",
        f"{gigabytes(usage.free)} of {gigabytes(usage.total)} free",
        hurts=usage.free < 1e9,
        advice=(
            "NCCL fails with SIGBUS when it is full; in a container: --shm-size=8g (Docker), or mount the "
            "host's"
        ),
    )
    left = [path for path in folder.glob(LEFT_BEHIND) if path.stat().st_uid == os.getuid()]
    if not left:
        return [room]

    size = gigabytes(sum(path.stat().st_size for path in left))
    what = f"{len(left)} all-reduce buffers of DeepSpeed runs, {size}"
    advice = f"if no DeepSpeed run of yours is going on here: rm {folder / LEFT_BEHIND}"
    return [room, Finding(check="/dev/shm", status="hurts", what=what, advice=advice)]


def disk_findings(output_dir: Path) -> list[Finding]:
    """Room where checkpoints, caches and temporary files go."""
    temporary = Path(os.environ.get("TMPDIR", "/tmp"))
    return [
        _disk_finding(
            "checkpoints",
            output_dir,
            needed=3 * CHECKPOINT_BYTES,
            unwritable="give an --output_dir that can be written",
        ),
        _disk_finding(
            "temporary files",
            temporary,
            needed=1e9,
            unwritable="set TMPDIR to a folder that can be written",
        ),
    ]


def _disk_finding(what: str, path: Path, *, needed: float, unwritable: str) -> Finding:
    """`needed` bytes in the nearest folder that is there. `unwritable`: advice if nothing can be written."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        text = f"{there} ({what}) cannot be written"
        return Finding(check="disk", status="fails", what=text, advice=unwritable)

    free = shutil.disk_usage(there).free
    return judged(
        "disk",
        f"{gigabytes(free)} free in {there} ({what})",
        hurts=free < needed,
        advice=(
            f"{gigabytes(needed)} are a safe size (train.keep_last=2 keeps two checkpoints while a third is "
            "written)"
        ),
    )


def limit_findings() -> list[Finding]:
    """Limits of this process that stop large runs."""
    findings = []
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < 1024 + 8 * dist.world_size():
        what = f"{files} open files allowed"
        advice = "each rank keeps several connections to the others: ulimit -n 65536"
        findings.append(Finding(check="limits", status="hurts", what=what, advice=advice))

    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if Path("/dev/infiniband").is_dir() and locked != resource.RLIM_INFINITY:
        what = f"{gigabytes(locked)} of locked memory allowed, and there is InfiniBand"
        advice = (
            "NCCL's registration of buffers fails: ulimit -l unlimited (in SLURM: "
            "PropagateResourceLimitsExcept=MEMLOCK)"
        )
        findings.append(Finding(check="limits", status="hurts", what=what, advice=advice))

    return findings or [Finding(check="limits", status="ok", what="open files and locked memory suffice")]
