"""The links between nodes: right bytes, latency and bandwidth of every pair, the all-reduce over all ranks, and the clocks.

Pairs meet in rounds (the circle method of tournaments), so every pair is measured once and no node takes part in two measurements
at a time; the pairs of a round run side by side, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as torch_dist

from mtdnn_ds import dist
from mtdnn_ds.check.doctor.findings import Finding

SMALL_BYTES, SMALL_ROUNDS = 8, 20
LARGE_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
GRADIENT_BYTES = 335e6 * 4  # BERT-large in fp32
SLOW = 0.5  # of the median pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One pair of ranks."""

    first: int
    second: int
    latency_seconds: float  # one way
    bytes_per_second: float
    clock_offset_seconds: float  # second's clock less first's
    intact: bool


def pair_rounds(ranks: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Every pair of `ranks` once, in rounds in which no rank meets two others."""
    seats: list[int | None] = [*ranks, *([None] if len(ranks) % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        met = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append([(a, b) if a < b else (b, a) for a, b in met if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def measure_links(ranks: Sequence[int], device: torch.device) -> list[Link]:
    """Every pair of `ranks`. Collective: all ranks of the run must call this with equal arguments."""
    mine = []
    for pairs in pair_rounds(ranks):
        dist.barrier()
        for first, second in pairs:
            if dist.rank() in (first, second):
                link = _measure(first, second, device)
                mine += [link] if dist.rank() == first else []
    return sorted(
        (link for links in dist.gather(mine) for link in links), key=lambda link: (link.first, link.second)
    )


def all_reduce_bytes_per_second(device: torch.device) -> float:
    """Bytes of a tensor that all ranks together sum per second. Collective: all ranks must call this."""
    tensor = torch.ones(LARGE_BYTES[device.type] // 4, device=device)
    torch_dist.all_reduce(tensor)
    dist.barrier()
    begin = time.perf_counter()
    torch_dist.all_reduce(tensor)
    _finish(device)
    return LARGE_BYTES[device.type] / (time.perf_counter() - begin)


def link_findings(links: Sequence[Link], names: Sequence[str], reduced_per_second: float) -> list[Finding]:
    """What the measurements mean. `names`: of ranks."""
    findings = []
    typical = median(link.bytes_per_second for link in links)
    for link in links:
        pair = f"{names[link.first]} - {names[link.second]}"
        what = f"{pair}: {link.bytes_per_second / 1e9:.2f} GB/s, {link.latency_seconds * 1e6:.0f} us"
        if not link.intact:
            advice = "a run between them would compute nonsense: look at cables, drivers, NCCL_* settings"
            findings.append(
                Finding(check="links", status="fails", what=f"{what}; bytes arrive changed", advice=advice)
            )
        elif link.bytes_per_second < SLOW * typical:
            advice = f"the median pair has {typical / 1e9:.2f} GB/s, and every step waits for the slowest: leave one of the two out, or look at its link"
            findings.append(Finding(check="links", status="hurts", what=what, advice=advice))
        elif len(links) <= 10:
            findings.append(Finding(check="links", status="ok", what=what))
        if abs(link.clock_offset_seconds) > 1:
            what = f"{pair}: clocks differ by {link.clock_offset_seconds:.1f} s"
            advice = "logs, time limits and file times disagree: start chrony or ntpd"
            findings.append(Finding(check="clock", status="hurts", what=what, advice=advice))
    if len(links) > 10:
        slowest, fastest = (pick(link.bytes_per_second for link in links) / 1e9 for pick in (min, max))
        what = f"{len(links)} pairs: {slowest:.2f} to {fastest:.2f} GB/s, median {typical / 1e9:.2f}"
        findings.append(Finding(check="links", status="ok", what=what))
    if not any(finding.check == "clock" for finding in findings):
        farthest = max(abs(link.clock_offset_seconds) for link in links)
        findings.append(
            Finding(
                check="clock", status="ok", what=f"clocks agree within {max(farthest, 1e-3) * 1e3:.0f} ms"
            )
        )
    seconds = GRADIENT_BYTES / reduced_per_second
    what = f"all-reduce over {dist.world_size()} ranks: {reduced_per_second / 1e9:.2f} GB/s; BERT-large's gradients in fp32 take {seconds:.2g} s a step"
    advice = (
        "that is longer than most steps compute: use more examples a step, bf16 gradients, or a faster network"
        if seconds > 1
        else ""
    )
    return [
        *findings,
        Finding(check="all-reduce", status="hurts" if advice else "ok", what=what, advice=advice),
    ]


def _measure(first: int, second: int, device: torch.device) -> Link:
    begins = dist.rank() == first
    other = second if begins else first
    small = torch.zeros(SMALL_BYTES // 8, dtype=torch.float64, device=device)
    trips, offsets = [], []
    for _ in range(SMALL_ROUNDS):
        begin, sent_at = time.perf_counter(), time.time()
        if begins:
            torch_dist.send(small, other)
            torch_dist.recv(small, other)
            their_time = float(small)  # waits for the device
            trips.append(time.perf_counter() - begin)
            offsets.append(their_time - (sent_at + time.time()) / 2)
        else:
            torch_dist.recv(small, other)
            small.fill_(time.time())
            torch_dist.send(small, other)
    pattern = torch.arange(LARGE_BYTES[device.type] // 4, dtype=torch.int32, device=device)
    received = torch.zeros_like(pattern)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        for turn in (begins, not begins):
            if turn:
                torch_dist.send(pattern, other)
            else:
                torch_dist.recv(received, other)
        _finish(device)
        seconds.append((time.perf_counter() - begin) / 2)
    intact = torch.tensor([bool(torch.equal(received, pattern))], dtype=torch.int32, device=device)
    theirs = intact.clone()
    for turn in (not begins, begins):
        if turn:
            torch_dist.send(intact, other)
        else:
            torch_dist.recv(theirs, other)
    best = trips.index(min(trips)) if trips else 0
    return Link(
        first=first,
        second=second,
        latency_seconds=min(trips, default=0.0) / 2,
        bytes_per_second=LARGE_BYTES[device.type] / min(seconds),
        clock_offset_seconds=offsets[best] if offsets else 0.0,
        intact=bool(intact) and bool(theirs),
    )


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
