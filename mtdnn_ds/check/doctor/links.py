"""The links between nodes: right bytes, latency and bandwidth of every pair, the all-reduce over all ranks,
and the clocks.

Pairs meet in rounds (the circle method of tournaments), so every pair is measured once and no node takes part
in two measurements at a time; the pairs of a round run side by side, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as torch_dist

from mtdnn_ds import dist
from mtdnn_ds.check.doctor.findings import Finding, judged

SMALL_BYTES, SMALL_ROUNDS = 8, 20
LARGE_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
GRADIENT_BYTES = 335e6 * 4  # BERT-large in fp32
SLOW = 0.5  # of the median pair
MOST_LISTED = 10  # pairs; of more the sound ones are summed up


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
    seats: list[int | None] = list(ranks)
    if len(ranks) % 2:
        seats.append(None)  # who meets nobody rests

    half = len(seats) // 2
    rounds = []
    for _ in range(len(seats) - 1):
        opposite = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append([(min(a, b), max(a, b)) for a, b in opposite if a is not None and b is not None])
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
                if dist.rank() == first:
                    mine.append(link)

    links = [link for of_rank in dist.gather(mine) for link in of_rank]
    return sorted(links, key=lambda link: (link.first, link.second))


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
    typical = median(link.bytes_per_second for link in links)
    findings = []
    for link in links:
        pair = f"{names[link.first]} - {names[link.second]}"
        finding = _link_finding(link, pair, typical)
        if finding.status != "ok" or len(links) <= MOST_LISTED:
            findings.append(finding)
        if abs(link.clock_offset_seconds) > 1:
            what = f"{pair}: clocks differ by {link.clock_offset_seconds:.1f} s"
            advice = "logs, time limits and file times disagree: start chrony or ntpd"
            findings.append(Finding(check="clock", status="hurts", what=what, advice=advice))

    if len(links) > MOST_LISTED:
        speeds = [link.bytes_per_second / 1e9 for link in links]
        what = f"{len(links)} pairs: {min(speeds):.2f} to {max(speeds):.2f} GB/s, median {typical / 1e9:.2f}"
        findings.append(Finding(check="links", status="ok", what=what))

    if not any(finding.check == "clock" for finding in findings):
        farthest = max(abs(link.clock_offset_seconds) for link in links)
        what = f"clocks agree within {max(farthest, 1e-3) * 1e3:.0f} ms"
        findings.append(Finding(check="clock", status="ok", what=what))

    return [*findings, _all_reduce_finding(reduced_per_second)]


def _link_finding(link: Link, pair: str, typical: float) -> Finding:
    """`typical`: bytes per second of the median pair."""
    what = f"{pair}: {link.bytes_per_second / 1e9:.2f} GB/s, {link.latency_seconds * 1e6:.0f} us"
    if not link.intact:
        what = f"{what}; bytes arrive changed"
        advice = "a run between them would compute nonsense: look at cables, drivers, NCCL_* settings"
        return Finding(check="links", status="fails", what=what, advice=advice)

    return judged(
        "links",
        what,
        hurts=link.bytes_per_second < SLOW * typical,
        advice=(
            f"the median pair has {typical / 1e9:.2f} GB/s, and every step waits for the slowest: leave one "
            "of the two out, or look at its link"
        ),
    )


def _all_reduce_finding(bytes_per_second: float) -> Finding:
    seconds = GRADIENT_BYTES / bytes_per_second
    return judged(
        "all-reduce",
        f"all-reduce over {dist.world_size()} ranks: {bytes_per_second / 1e9:.2f} GB/s; BERT-large's "
        f"gradients in fp32 take {seconds:.2g} s a step",
        hurts=seconds > 1,
        advice=(
            "that is longer than most steps compute: use more examples a step, bf16 gradients, or a faster "
            "network"
        ),
    )


def _measure(first: int, second: int, device: torch.device) -> Link:
    """The link of two ranks. Both of them, and no other, call this."""
    other = second if dist.rank() == first else first
    latency_seconds, clock_offset_seconds = _measure_latency(
        other, begins=dist.rank() == first, device=device
    )
    bytes_per_second, intact = _measure_bandwidth(other, begins=dist.rank() == first, device=device)
    return Link(
        first=first,
        second=second,
        latency_seconds=latency_seconds,
        bytes_per_second=bytes_per_second,
        clock_offset_seconds=clock_offset_seconds,
        intact=intact,
    )


def _measure_latency(other: int, *, begins: bool, device: torch.device) -> tuple[float, float]:
    """Seconds one way, and by how many the other's clock is ahead, both from the shortest of several round
    trips.

    Zeros on the rank that does not begin.
    """
    small = torch.zeros(SMALL_BYTES // 8, dtype=torch.float64, device=device)
    trips = []  # seconds, offset
    for _ in range(SMALL_ROUNDS):
        begin, sent_at = time.perf_counter(), time.time()
        if begins:
            torch_dist.send(small, other)
            torch_dist.recv(small, other)
            their_time = float(small)  # waits for the device
            trips.append((time.perf_counter() - begin, their_time - (sent_at + time.time()) / 2))
        else:
            torch_dist.recv(small, other)
            small.fill_(time.time())
            torch_dist.send(small, other)

    if not trips:
        return 0.0, 0.0
    seconds, offset = min(trips, key=lambda trip: trip[0])
    return seconds / 2, offset


def _measure_bandwidth(other: int, *, begins: bool, device: torch.device) -> tuple[float, bool]:
    """Bytes per second, the best of three, and whether they arrived unchanged on both sides."""
    pattern = torch.arange(LARGE_BYTES[device.type] // 4, dtype=torch.int32, device=device)
    received = torch.zeros_like(pattern)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        for sends in (begins, not begins):
            _send_or_receive(pattern, received, other, sends=sends)
        _finish(device)
        seconds.append((time.perf_counter() - begin) / 2)

    intact = torch.tensor([bool(torch.equal(received, pattern))], dtype=torch.int32, device=device)
    theirs = intact.clone()
    for sends in (not begins, begins):
        _send_or_receive(intact, theirs, other, sends=sends)
    return LARGE_BYTES[device.type] / min(seconds), bool(intact) and bool(theirs)


def _send_or_receive(sent: torch.Tensor, received: torch.Tensor, other: int, *, sends: bool) -> None:
    if sends:
        torch_dist.send(sent, other)
    else:
        torch_dist.recv(received, other)


def _finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
