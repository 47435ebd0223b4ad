"""Which rank is lost: a judgment of what was heard of every rank, and its words.

Pure: no sockets, threads or clock of its own.
"""

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
class RankStatus:
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
        """As messages name it."""
        return f"rank {self.rank} on {self.process.host}"

    def hear(self, place: Place, now: float) -> None:
        """It has said where it is."""
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


def judge(ranks: Sequence[RankStatus], now: float, timeout: float) -> Verdict | None:
    """The verdict on what is known `now`, or None while nothing is wrong.

    `timeout` in seconds; 0: nothing ever is.
    """
    if timeout == 0:
        return None

    living = [status for status in ranks if not status.end]
    closed = [status for status in ranks if status.end == "closed"]
    failed = [status for status in ranks if status.end == "failed"]

    if closed and now - min(status.ended for status in closed) >= SECONDS_TO_GATHER:
        lines = [f"{status.name} is lost: {ended_without_a_word(status.ended, now)}" for status in closed]
        return _verdict(closed, ranks, _with_places(lines, closed))

    if failed and living:
        return _failure(failed, ranks, now)

    is_stalled = (
        any(status.place.in_loop for status in living)
        and now - max(status.moved for status in living) > timeout
    )

    # Who is not heard makes no progress either: where nobody does, it is the silent one that all wait for.
    patience = timeout / 2 if is_stalled else timeout
    silent = [status for status in living if now - status.heard > patience]
    if silent:
        lines = [f"{status.name} is lost: {no_sign_of_life(status.heard, now)}" for status in silent]
        verdict = _verdict(silent, ranks, _with_places(lines, silent))
        return replace(verdict, silent=verdict.lost)

    if is_stalled:
        return _stall(living, ranks, now)
    return None


def _failure(failed: Sequence[RankStatus], ranks: Sequence[RankStatus], now: float) -> Verdict | None:
    """Ranks have raised: the first of them is named, once the others have had time to end by themselves."""
    first = min(failed, key=lambda status: status.ended)
    if now - first.ended < SECONDS_TO_FOLLOW:
        return None
    line = f"{first.name} failed: {first.failure} (its own output has the traceback)"
    return _verdict([first], ranks, [line])


def _stall(living: Sequence[RankStatus], ranks: Sequence[RankStatus], now: float) -> Verdict:
    """All are heard, and none goes on: those that the others wait for are named."""
    hanging = _behind(living)
    if len(hanging) == len(living) > 1:
        since = min(status.moved for status in hanging)
        line = f"no rank has made progress {_since(since, now)} (train.stall_timeout)"
        return _verdict([], ranks, [line])

    lines = [
        f"{status.name} hangs: no progress {_since(status.moved, now)} (train.stall_timeout)"
        for status in hanging
    ]
    return _verdict(hanging, ranks, _with_places(lines, hanging))


def _behind(living: Sequence[RankStatus]) -> list[RankStatus]:
    """Those that others wait for: not in a collective where others are; of these, with fewest heartbeats."""
    busy = [status for status in living if not status.place.waits]
    suspects = busy or list(living)
    fewest = min(status.place.count for status in suspects)
    return [status for status in suspects if status.place.count == fewest]


def _with_places(lines: Sequence[str], lost: Sequence[RankStatus]) -> list[str]:
    return [f"{line}; last at: {at(status.place)}" for line, status in zip(lines, lost, strict=True)]


def _verdict(lost: Sequence[RankStatus], ranks: Sequence[RankStatus], lines: Sequence[str]) -> Verdict:
    """`lines`, and where the other ranks are."""
    others = [status for status in ranks if status not in lost and not status.end]
    summary = summarize(others)
    if lost and others:
        summary = f"the others: {summary}"

    text = "\n".join(line for line in (*lines, summary) if line)
    return Verdict(text=text, lost=tuple(status.rank for status in lost))


def at(place: Place) -> str:
    """Where a rank is, in words."""
    if not place.line:
        return place.text
    return f"{place.text} ({place.line})"


def summarize(ranks: Iterable[RankStatus]) -> str:
    """`ranks 0, 2-7: step 7, micro-batch 3 (waiting in all_reduce)`, those at the same place together."""
    groups: dict[str, list[int]] = {}
    for status in ranks:
        groups.setdefault(at(status.place), []).append(status.rank)
    return "; ".join(f"{_numbers(members)}: {where}" for where, members in groups.items())


def ended_without_a_word(ended: float, now: float) -> str:
    """Of a rank whose connection closed at `ended`."""
    return (
        f"its process ended without a word at {_clock(ended, now)} "
        "(killed, out of memory, or its node failed)"
    )


def no_sign_of_life(heard: float, now: float) -> str:
    """Of a rank that was last heard at `heard`."""
    return f"no sign of life {_since(heard, now)} (train.stall_timeout); it is stopped, frozen or cut off"


def _since(then: float, now: float) -> str:
    return f"since {_clock(then, now)}, for {now - then:.0f} s"


def _clock(then: float, now: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time.time() - (now - then)))


def _numbers(ranks: Sequence[int]) -> str:
    """[0, 2, 3, 4] -> `ranks 0, 2-4`"""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])

    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    noun = "ranks" if len(ranks) > 1 else "rank"
    return f"{noun} {', '.join(parts)}"
