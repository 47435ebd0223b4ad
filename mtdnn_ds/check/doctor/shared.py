"""The folder of runs: is it the same one on all nodes, do locks hold between them, how fast is it written.

Leaves nothing there.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from mtdnn_ds import dist
from mtdnn_ds.check.doctor.findings import Finding, gigabytes, judged
from mtdnn_ds.check.doctor.machine import CHECKPOINT_BYTES

VISIBLE_WITHIN_SECONDS = 10.0  # network file systems show another node's new file with a delay
WRITTEN_BYTES = 64 * 2**20


def shared_findings(folder: Path, nodes: Sequence[str]) -> list[Finding]:
    """Findings about `folder`, equal on every rank. `nodes`: the node of each rank.

    Collective: all ranks must call this.
    """
    try:
        probe = dist.on_main(lambda: _new_probe(folder))
    except OSError as error:
        what = f"{folder} cannot be written: {error.strerror}"
        advice = "give an --output_dir that can be written"
        return [Finding(check="shared disk", status="fails", what=what, advice=advice)]

    try:
        seen = dist.gather(_sees(probe))
        lock = probe / "lock"
        if not seen[dist.rank()]:
            lock = Path(os.devnull)  # takes part in the barriers all the same
        with lock.open("a") as file:
            if dist.is_main():
                fcntl.flock(file, fcntl.LOCK_EX)
            dist.barrier()
            refused = dist.gather(dist.is_main() or not seen[dist.rank()] or not _can_lock(file.fileno()))
            dist.barrier()
        speed = dist.on_main(lambda: _write_speed(probe))
    finally:
        dist.on_main(lambda: shutil.rmtree(probe))
    return _findings(folder, nodes, seen, refused, speed)


def _findings(
    folder: Path, nodes: Sequence[str], seen: Sequence[bool], refused: Sequence[bool], speed: float
) -> list[Finding]:
    """What it means. Of each rank: its node, whether it sees the folder, and whether the lock refused it."""
    blind = sorted({node for node, sees in zip(nodes, seen, strict=True) if not sees})
    free = sorted({node for node, is_refused in zip(nodes, refused, strict=True) if not is_refused})
    num_nodes = len(set(nodes))

    findings = []
    if blind:
        what = f"{folder} of {nodes[0]} is not seen by {', '.join(blind)}"
        advice = (
            "every node writes its part of a checkpoint: it could not be resumed; give an --output_dir on a "
            "disk that all nodes share"
        )
        findings.append(Finding(check="shared disk", status="fails", what=what, advice=advice))
    elif num_nodes > 1:
        what = f"{folder} is the same on {num_nodes} nodes"
        findings.append(Finding(check="shared disk", status="ok", what=what))

    if free:
        what = f"a lock held by {nodes[0]} in {folder} does not hold on {', '.join(free)}"
        advice = (
            "two jobs could write into one run folder; mount the file system with locks (Lustre: -o flock; "
            "NFS: without nolock)"
        )
        findings.append(Finding(check="locks", status="hurts", what=what, advice=advice))
    elif len(nodes) > 1 and not blind:
        what = f"a lock of one rank in {folder} holds for all others"
        findings.append(Finding(check="locks", status="ok", what=what))

    return [*findings, _speed_finding(folder, speed)]


def _speed_finding(folder: Path, bytes_per_second: float) -> Finding:
    seconds = CHECKPOINT_BYTES / bytes_per_second
    checkpoint = f"a checkpoint of BERT-large ({gigabytes(CHECKPOINT_BYTES)}) takes {seconds:.0f} s"
    return judged(
        "disk speed",
        f"{folder} is written at {gigabytes(bytes_per_second)}/s; {checkpoint}",
        hurts=seconds > 120,
        advice=(
            "every save stops training that long: save less often (train.save_every), or give a faster disk"
        ),
    )


def _new_probe(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor_{secrets.token_hex(8)}"
    probe.mkdir()
    (probe / "lock").touch()
    return probe.absolute()


def _sees(probe: Path) -> bool:
    deadline = time.monotonic() + VISIBLE_WITHIN_SECONDS
    while not (probe / "lock").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _can_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _write_speed(probe: Path) -> float:
    begin = time.perf_counter()
    with (probe / "speed").open("wb") as file:
        block = os.urandom(2**20)
        for _ in range(WRITTEN_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return WRITTEN_BYTES / (time.perf_counter() - begin)
