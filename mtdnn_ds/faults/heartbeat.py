"""Where this rank is: heartbeats of training, evaluation and saving, for the watchdog to read.

Watches nothing itself. They are named places too: tests and faults attach to them (`on_heartbeat`) and are
called just before the rank gets there.

    stage NAME, beginning                       train/stages.py          *
    tokenizing                                  runs/setup.py            *
    step N, beginning                           train/trainer.py
    step N, micro-batch I of M                  train/step/optimizer_step.py
    step N, update                              train/step/optimizer_step.py
    step N, done                                train/trainer.py
    evaluating step N                           train/evaluation.py
    evaluating, micro-batch I                   runs/evaluate.py
    keeping the best weights of step N          train/evaluation.py
    embedding development rows                  train/evaluation.py
    saving step N                               train/trainer.py
    saving step N, before its shards            checkpoint/save.py       *
    writing FILE                                checkpoint/shard_writer.py * after each part of a shard
    saving step N, all shards written           checkpoint/save.py       * on rank 0, like those below
    writing the manifest                        checkpoint/manifest.py   *
    saving step N, before the rename            checkpoint/save.py       *
    saving step N, before latest                checkpoint/save.py       *
    saving step N, inside latest                checkpoint/save.py       *
    removing step_N                             checkpoint/save.py       *

Those with a star are announced only (`announce`): the watchdog compares the ranks' counts of heartbeats, so a
place that one rank alone or another thread passes must not count.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

Listener = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a rank is."""

    count: int  # of its heartbeats so far
    text: str  # the last one, in words
    line: str  # what its main thread is in: "waiting in all_reduce", or "trainer.py:83 in _all_steps"
    waits: bool  # in a collective
    in_loop: bool  # between the first step and the end of the last save: heartbeats must follow each other

    def to_json(self) -> dict[str, Any]:
        """As the watchdog sends it."""
        return asdict(self)


class _Here:
    """This process's heartbeats."""

    count = 0
    text = "preparing"
    in_loop = False
    thread = threading.main_thread().ident
    listeners: tuple[Listener, ...] = ()


def heartbeat(text: str) -> None:
    """This rank goes on to `text`.

    Costs a fraction of a microsecond; call it as often as something has been done. Every rank calls it
    equally often, from the thread that trains.
    """
    announce(text)
    _Here.text = text
    _Here.count += 1


def announce(text: str) -> None:
    """This process comes to `text`: listeners are called, the watchdog learns nothing.

    Any rank, any thread.
    """
    for listener in _Here.listeners:
        listener(text)


def on_heartbeat(listener: Listener) -> Callable[[], None]:
    """Have `listener` called with the text of every place, before it is counted. Returns what detaches it.

    It is called on the thread that comes there; what it raises is raised at the place.
    """
    _Here.listeners += (listener,)

    def detach() -> None:
        _Here.listeners = tuple(other for other in _Here.listeners if other is not listener)

    return detach


def in_loop(inside: bool) -> None:
    """From now on heartbeats must follow each other (or need not). This thread is the one that trains."""
    _Here.in_loop = inside
    _Here.thread = threading.get_ident()


def place() -> Place:
    """Where this rank is now. Any thread may ask."""
    frame = sys._current_frames().get(_Here.thread or 0)
    waits, line = _where(frame)
    return Place(count=_Here.count, text=_Here.text, line=line, waits=waits, in_loop=_Here.in_loop)


def _where(frame: FrameType | None) -> tuple[bool, str]:
    """(whether it waits in a collective, the line in words).

    The innermost Python frame is the one that waits.
    """
    if frame is None:
        return False, "its thread is gone"

    code = frame.f_code
    if code.co_filename.endswith("mtdnn_ds/faults/watchdog/watch.py"):
        return False, "its collective failed"
    if "/torch/distributed/" in code.co_filename:
        return True, f"waiting in {code.co_name}"
    return False, f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
