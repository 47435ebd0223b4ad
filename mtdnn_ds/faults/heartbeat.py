"""Where this rank is: marks that training, evaluation and saving leave as they go on, for the watchdog to read. Watches nothing itself."""

from __future__ import annotations

import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a rank is."""

    count: int  # of its marks so far
    text: str  # the last one, in words
    line: str  # what its main thread is in: "waiting in all_reduce", or "trainer.py:83 in _all_steps"
    waits: bool  # in a collective
    in_loop: bool  # between the first step and the end of the last save: marks must follow each other

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Here:
    """This process's marks."""

    count = 0
    text = "preparing"
    in_loop = False
    thread = threading.main_thread().ident


def mark(text: str) -> None:
    """This rank goes on to `text`. Costs a fraction of a microsecond; call it as often as something has been done."""
    _Here.text = text
    _Here.count += 1


def in_loop(inside: bool) -> None:
    """From now on marks must follow each other (or need not). This thread is the one that trains."""
    _Here.in_loop = inside
    _Here.thread = threading.get_ident()


def place() -> Place:
    """Where this rank is now. Any thread may ask."""
    frame = sys._current_frames().get(_Here.thread or 0)
    waits, line = ("", "its thread is gone") if frame is None else _where(frame)
    return Place(count=_Here.count, text=_Here.text, line=line, waits=bool(waits), in_loop=_Here.in_loop)


def _where(frame: FrameType) -> tuple[str, str]:
    """(name of the collective it waits in or "", the line in words). The innermost Python frame is the one that waits."""
    code = frame.f_code
    if code.co_filename.endswith("mtdnn_ds/faults/watchdog/watch.py"):
        return "", "its collective failed"
    if "/torch/distributed/" in code.co_filename:
        return code.co_name, f"waiting in {code.co_name}"
    return "", f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
