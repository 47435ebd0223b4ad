"""Time on a device: CUDA events, or the clock where there is no GPU. Decides nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

Mark = Any
"""A CUDA event, or seconds of the clock."""


def mark(device: torch.device) -> Mark:
    """Here, in the order in which the device works. Does not wait."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(begin: Mark, end: Mark) -> float:
    """Between two marks. Call `wait` before."""
    if isinstance(begin, float):
        return 1e3 * (end - begin)
    return float(begin.elapsed_time(end))


def median_ms(function: Callable[[], object], device: torch.device, *, warmup: int, repeats: int) -> float:
    """Median of `repeats` calls after `warmup` untimed ones."""
    for _ in range(warmup):
        function()
    marks = [mark(device)]
    for _ in range(repeats):
        function()
        marks.append(mark(device))
    wait(device)
    return statistics.median(milliseconds(begin, end) for begin, end in pairwise(marks))
