"""Which rank is lost: a judgment of what was heard of every rank, and its words. Pure: no sockets, no threads, no clock of its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mtdnn_ds.faults.heartbeat import Place

SECONDS_TO_GATHER = 0.5  # a node takes all of its ranks along: they are named together
SECONDS_TO_FOLLOW = (
    5.0  # that ranks have to end by themselves after one of them failed: often all raise the same
)

NOT_YET = Place(count=0, text="preparing", line="", waits=False, in_loop=False)


@dataclass(frozen=True, slots=True)
class Process:
    """A rank's process; `started` tells it from a later one of the same number."""

    host: str
    pid: int
    started: str


@dataclass(kw_only=True, slots=True)
class Seen:
    """What is known of a rank. Times are monotonic seconds of the one who watches."""

    rank: int
    process: Process
    heard: float  # its last sign of life
    moved: float  # its last progress
    place: Place = field(default=NOT_YET)
    end: Literal["", "left", "failed", "closed"] = ""
    ended: float = 0.0
    failure: str = ""

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.process.host}"

    def hear(self, place: Place, now: float) -> None:
        self.heard = now
        if place.count != self.place.count or place.in_loop != self.place.in_loop:
            self.moved = now
        self.place = place


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Why the run must end."""

    text: str
    lost: tuple[int, ...]  # ranks
    silent: tuple[int, ...] = ()  # those of them that will not end by themselves


def judge(ranks: Sequence[Seen], now: float, timeout: float) -> Verdict | None:
    """The verdict on what is known `now`, or None while nothing is wrong. `timeout` 0: nothing ever is."""
    if timeout == 0:
        return None
    living = [seen for seen in ranks if not seen.end]
    closed = [seen for seen in ranks if seen.end == "closed"]
    if closed and now - min(seen.ended for seen in closed) >= SECONDS_TO_GATHER:
        return _verdict(
            closed,
            ranks,
            now,
            [f"{seen.name} is lost: {ended_without_a_word(seen.ended, now)}" for seen in closed],
        )
    failed = [seen for seen in ranks if seen.end == "failed"]
    if failed and living:
        if now - min(seen.ended for seen in failed) < SECONDS_TO_FOLLOW:
            return None
        first = min(failed, key=lambda seen: seen.ended)
        text = f"{first.name} failed: {first.failure} (its own output has the traceback)"
        return _verdict([first], ranks, now, [text], last=False)
    stall = (
        bool(living)
        and any(seen.place.in_loop for seen in living)
        and now - max(seen.moved for seen in living) > timeout
    )
    # Who is not heard makes no progress either: where nobody does, it is the silent one that all wait for.
    silent = [seen for seen in living if now - seen.heard > (timeout / 2 if stall else timeout)]
    if silent:
        verdict = _verdict(
            silent,
            ranks,
            now,
            [f"{seen.name} is lost: {no_sign_of_life(seen.heard, now)}" for seen in silent],
        )
        return replace(verdict, silent=verdict.lost)
    if stall:
        hanging = _behind(living)
        since = min(seen.moved for seen in hanging)
        if len(hanging) == len(living) > 1:
            return _verdict(
                [], ranks, now, [f"no rank has made progress {_since(since, now)} (train.stall_timeout)"]
            )
        lines = [
            f"{seen.name} hangs: no progress {_since(seen.moved, now)} (train.stall_timeout)"
            for seen in hanging
        ]
        return _verdict(hanging, ranks, now, lines)
    return None


def _behind(living: Sequence[Seen]) -> list[Seen]:
    """Those that the others wait for: not in a collective where others are; of these, those with the fewest marks."""
    busy = [seen for seen in living if not seen.place.waits]
    suspects = busy or list(living)
    return [seen for seen in suspects if seen.place.count == min(other.place.count for other in suspects)]


def _verdict(
    lost: Sequence[Seen], ranks: Sequence[Seen], now: float, lines: list[str], *, last: bool = True
) -> Verdict:
    if last:
        lines = (
            [f"{line}; last at: {at(seen.place)}" for line, seen in zip(lines, lost, strict=True)]
            if lost
            else lines
        )
    others = [seen for seen in ranks if seen not in lost and not seen.end]
    summary = f"the others: {summarize(others)}" if lost and others else summarize(others)
    return Verdict(
        text="\n".join([*lines, summary] if summary else lines), lost=tuple(seen.rank for seen in lost)
    )


def at(place: Place) -> str:
    return f"{place.text} ({place.line})" if place.line else place.text


def summarize(ranks: Iterable[Seen]) -> str:
    """`ranks 0, 2-7: step 7, micro-batch 3 (waiting in all_reduce)`, those at the same place together."""
    groups: dict[str, list[int]] = {}
    for seen in ranks:
        groups.setdefault(at(seen.place), []).append(seen.rank)
    return "; ".join(f"{_numbers(members)}: {where}" for where, members in groups.items())


def ended_without_a_word(ended: float, now: float) -> str:
    return f"its process ended without a word at {_clock(ended, now)} (killed, out of memory, or its node failed)"


def no_sign_of_life(heard: float, now: float) -> str:
    return f"no sign of life {_since(heard, now)} (train.stall_timeout); it is stopped, frozen or cut off"


def _since(then: float, now: float) -> str:
    return f"since {_clock(then, now)}, for {now - then:.0f} s"


def _clock(then: float, now: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time.time() - (now - then)))


def _numbers(ranks: Sequence[int]) -> str:
    """[0, 2, 3, 4] -> `ranks 0, 2-4`"""
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and parts[-1][-1] == rank - 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    text = ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
