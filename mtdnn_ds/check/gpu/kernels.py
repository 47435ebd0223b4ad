"""Parts kernels: what the GPU does in a step of BERT-large: launches, idle time, tail, slowest kernels.

A marker stands before each step, after its last backward pass, and after the step. Between them:

    idle share   1 - (time in which any kernel runs) / (from the first kernel's start to the last one's end)
    tail         from the end of the last kernel before the second marker to the start of the third

On a CPU operators stand in for kernels, so that a rehearsal runs the same code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.large_run import LargeRun, Shape, Way, large_run
from mtdnn_ds.check.gpu.results import Row
from mtdnn_ds.check.gpu.timing import wait

SHAPE, SMALL_SHAPE = Shape(tokens=16_384), Shape(tokens=256)
NUM_STEPS, WARMUP_STEPS = 2, 2
MOST_KERNELS = 10
NAME_LENGTH = 80

WAITS = ("Context Sync", "Stream Sync", "Stream Wait", "Event Sync")
# torch.cuda._sleep launches this kernel, and nothing else does.
MARKER_KERNEL, MARKER = "spin_kernel", "mtdnn_ds::marker"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One launch, in microseconds."""

    name: str
    begin: float
    end: float

    @property
    def is_marker(self) -> bool:
        return MARKER_KERNEL in self.name or self.name == MARKER


@dataclass(frozen=True, kw_only=True, slots=True)
class StepKernels:
    """One step, between its markers."""

    kernels: tuple[Kernel, ...]
    before_tail: int  # of the kernels, those that the end of the backward pass comes after
    end: float  # of the step, microseconds

    @property
    def idle_share(self) -> float:
        """Of the time between the first kernel's start and the last one's end."""
        busy, reached = 0.0, self.kernels[0].begin
        for kernel in self.kernels:
            busy += max(0.0, kernel.end - max(kernel.begin, reached))
            reached = max(reached, kernel.end)
        return 1 - busy / (reached - self.kernels[0].begin)

    @property
    def tail_us(self) -> float:
        """From the last kernel of the backward pass to the end of the step."""
        return self.end - max(kernel.end for kernel in self.kernels[: self.before_tail])


def steps_of(kernels: Sequence[Kernel]) -> list[StepKernels]:
    """Each step of a sequence of kernels with three markers a step, in the order of their starts."""
    ordered = sorted(kernels, key=lambda kernel: kernel.begin)
    markers = [index for index, kernel in enumerate(ordered) if kernel.is_marker]
    if not markers or len(markers) % 3:
        raise RuntimeError(
            f"the profile has {len(markers)} markers, and three a step were set: may CUPTI look at this GPU?"
        )

    steps = []
    for first, backward_end, last in zip(markers[::3], markers[1::3], markers[2::3], strict=True):
        own = tuple(kernel for kernel in ordered[first + 1 : last] if not kernel.is_marker)
        num_before = sum(not kernel.is_marker for kernel in ordered[first + 1 : backward_end])
        if not num_before:
            raise RuntimeError("the profile has no kernels before the end of a backward pass")
        steps.append(StepKernels(kernels=own, before_tail=num_before, end=ordered[last].begin))
    return steps


def slowest(steps: Sequence[StepKernels]) -> list[tuple[str, int, float]]:
    """(name, launches, milliseconds) of the kernels that take most time, all steps together."""
    launches: dict[str, int] = defaultdict(int)
    total: dict[str, float] = defaultdict(float)
    for step in steps:
        for kernel in step.kernels:
            launches[kernel.name] += 1
            total[kernel.name] += (kernel.end - kernel.begin) / 1e3
    names = sorted(total, key=lambda name: -total[name])[:MOST_KERNELS]
    return [(name, launches[name], total[name]) for name in names]


def look_eager(bench: Bench) -> None:
    """Layers as they are."""
    _look(bench, "eager")


def look_compiled(bench: Bench) -> None:
    """Layers that torch has compiled."""
    _look(bench, "compiled")


def _look(bench: Bench, way: Way) -> None:
    run = large_run(bench, way)
    if run is None:
        return

    steps = steps_of(_profiled(bench, run))
    for number, step in enumerate(steps, start=1):
        bench.tried(f"{way}, step {number}", partial(_row, f"{way}, step {number}", step))
    for name, launches, ms in slowest(steps):
        figures = {"launches_a_step": round(launches / len(steps)), "ms_a_step": ms / len(steps)}
        bench.emit(Row(name=name[:NAME_LENGTH], figures=figures))


def _row(name: str, step: StepKernels) -> Row:
    length_ms = (step.end - step.kernels[0].begin) / 1e3
    figures = {
        "launches": len(step.kernels),
        "launches_in_the_tail": len(step.kernels) - step.before_tail,
        "step_ms": length_ms,
        "idle_%": round(100 * step.idle_share, 1),
        "tail_ms": step.tail_us / 1e3,
    }
    return Row(name=name, figures=figures)


def _profiled(bench: Bench, run: LargeRun) -> list[Kernel]:
    """Kernels of NUM_STEPS steps, with their markers."""
    shape = SMALL_SHAPE if bench.is_rehearsal else SHAPE
    warmup = bench.sized(WARMUP_STEPS, 1)
    activity = ProfilerActivity.CUDA if bench.on_cuda else ProfilerActivity.CPU
    profiler = profile(activities=[activity])

    with run.steps(shape, warmup + NUM_STEPS) as steps:
        for number, (batches, do) in enumerate(steps):
            if number == warmup:
                wait(bench.device)
                profiler.start()
            if number < warmup:
                do()
                continue
            _mark(bench.device)
            run.engine.after_backward = partial(_mark_last, bench.device, len(batches.micro_batches))
            do()
            run.engine.after_backward = None
            _mark(bench.device)
    wait(bench.device)
    profiler.stop()

    return [
        Kernel(name=event.name, begin=event.time_range.start, end=event.time_range.end)
        for event in profiler.events() or ()
        if _is_work(event, on_cuda=bench.on_cuda)
    ]


def _is_work(event: Any, *, on_cuda: bool) -> bool:
    """A kernel, copy or fill of the GPU; no wait, and no name that spans several; of a CPU anything."""
    if not on_cuda:
        return bool(event.device_type == DeviceType.CPU)
    if event.device_type != DeviceType.CUDA or event.is_user_annotation:
        return False
    return not event.name.startswith(WAITS)


def _mark_last(device: torch.device, num_backwards: int, number: int) -> None:
    """After backward pass `number` of a step, from 1."""
    if number == num_backwards:
        _mark(device)


def _mark(device: torch.device) -> None:
    """A marker in the order in which the device works."""
    if device.type == "cuda":
        torch.cuda._sleep(1)
        return
    with record_function(MARKER):
        pass
