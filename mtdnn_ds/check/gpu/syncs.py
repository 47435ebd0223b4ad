"""Where a run's host waits for the GPU: torch's own warnings, counted by step and by place.

A wait drains the queue of kernels, and the GPU idles until it is filled again. Kernels that wait inside
libraries do not warn.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch

from mtdnn_ds.faults.heartbeat import on_heartbeat

_BEGINNING = re.compile(r"step (\d+), beginning")
_PACKAGES = ("mtdnn_ds", "deepspeed", "transformers", "torch")


@dataclass(kw_only=True, slots=True)
class Syncs:
    """Waits of a run. Step 0 is what was before the first one."""

    step: int = 0
    by_step: Counter[int] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)  # of steps after the first

    def come_to(self, text: str) -> None:
        """A heartbeat."""
        found = _BEGINNING.fullmatch(text)
        if found:
            self.step = int(found[1])

    def saw(self, message: Warning | str, *_: Any, **__: Any) -> None:
        """A warning."""
        if "synchroniz" not in str(message):
            return
        self.by_step[self.step] += 1
        if self.step > 1:  # the first step allocates and compiles
            files = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[:-1]]
            self.places[place(files)] += 1

    def a_step(self, num_steps: int) -> float:
        """Waits of a step, on average over those after the first."""
        return sum(self.by_step[step] for step in range(2, num_steps + 1)) / (num_steps - 1)

    def summary(self, num_steps: int) -> str:
        """The waits of each step."""
        steps = ", ".join(str(self.by_step[step]) for step in range(1, num_steps + 1))
        return f"waits in steps 1 to {num_steps}: {steps}"


def place(frames: Sequence[str]) -> str:
    """The innermost line of this package, and the library's line that it called, of FILE:LINE outermost
    first.
    """
    known = [short for frame in frames if (short := _short(frame))]
    own = [frame for frame in known if frame.startswith("mtdnn_ds/")]
    if not known:
        return "unknown"
    if not own or known[-1] == own[-1]:
        return known[-1]
    return f"{own[-1]} > {known[-1]}"


def _short(frame: str) -> str | None:
    """`mtdnn_ds/train/trainer.py:3` of a path; None of a file of no package that is looked at."""
    parts = PurePath(frame).parts
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] in _PACKAGES and index < len(parts) - 1:
            return "/".join(parts[index:])
    return None


@contextmanager
def counting_syncs(device: torch.device) -> Iterator[Syncs]:
    """Counts the waits of the runs inside. Without CUDA there are none."""
    syncs = Syncs()
    detach = on_heartbeat(syncs.come_to)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = syncs.saw
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield syncs
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            detach()
