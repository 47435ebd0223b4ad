"""Parts large: BERT-large's steps, by part, in real tokens a second, of the peak, beside a padded loop.

Both sides take turns in one process, on the same examples, so what slows the machine down slows both.
Compiled layers are held against the padded loop's times of part large, of the same examples.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch._dynamo.utils import counters

from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.large_run import LargeRun, Shape, Way, large_run, padding_share
from mtdnn_ds.check.gpu.padded_loop import PaddedBatch, PaddedLoop, padded
from mtdnn_ds.check.gpu.results import Figure, Row, RowStatus
from mtdnn_ds.check.gpu.timing import wait
from mtdnn_ds.check.gpu.workload import BERT_LARGE, TINY
from mtdnn_ds.data.batches.loader import StepBatches
from mtdnn_ds.files import replace_file

SHAPES = (Shape(tokens=16_384), Shape(tokens=16_384, micro_batches=4), Shape(tokens=8192), Shape(tokens=1200))
SMALL_SHAPES = (Shape(tokens=256), Shape(tokens=256, micro_batches=2))

# What is wanted of a step on an H100: share of the peak, and times the padded loop's tokens a second.
MFU_GOALS: Mapping[Shape, float] = {SHAPES[0]: 0.40, SHAPES[1]: 0.45}
TIMES_PADDED_GOAL = 3.0

WARMUP_STEPS, TIMED_STEPS = 3, 5
PADDED_NAME = "padded_ms.json"  # in scratch: words of a shape -> milliseconds of its timed steps


@dataclass(kw_only=True, slots=True)
class _Times:
    """Of the timed steps of one shape, in milliseconds."""

    step: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    padded: list[float] = field(default_factory=list)
    mfu: list[float] = field(default_factory=list)
    tokens_per_second: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    padding: list[float] = field(default_factory=list)


def look_eager(bench: Bench) -> None:
    """Layers as they are."""
    _look(bench, "eager")


def look_compiled(bench: Bench) -> None:
    """Layers that torch has compiled."""
    _look(bench, "compiled")


def _look(bench: Bench, way: Way) -> None:
    begin = time.perf_counter()
    run = large_run(bench, way)
    if run is None:
        return
    seconds = time.perf_counter() - begin
    attention = getattr(run.run.model.net.encoder, "attention", "-")
    bench.emit(Row(name=f"{way}, start", figures={"seconds": seconds, "attention": str(attention)}))

    sides = _Sides(bench=bench, run=run, loop=None)
    padded_times = bench.scratch / PADDED_NAME
    if way == "eager":
        # Kept nowhere else: it is given up once it runs out of memory.
        sides.loop = PaddedLoop(TINY if bench.is_rehearsal else BERT_LARGE, bench.device)
    elif padded_times.exists():
        sides.padded_ms = json.loads(padded_times.read_text())

    shapes = SMALL_SHAPES if bench.is_rehearsal else SHAPES
    name = f"{way}, first step"
    bench.tried(name, partial(_first_step, sides, shapes[0], name))
    for shape in shapes:
        name = f"{way}, {shape.words}"
        bench.tried(name, partial(_shape, sides, shape, name))
        if way == "eager":
            replace_file(padded_times, json.dumps(sides.padded_ms))
    if way == "compiled":
        bench.emit(graphs_row(f"{way}, graphs", counters["stats"]["unique_graphs"], counters["graph_break"]))
    del sides
    if bench.on_cuda:
        torch.cuda.empty_cache()  # for the parts after this one


@dataclass(kw_only=True, slots=True)
class _Sides:
    """Both sides of the comparison."""

    bench: Bench
    run: LargeRun
    loop: PaddedLoop | None  # None where it is not timed here, or ran out of memory
    padded_ms: dict[str, list[float]] = field(default_factory=dict)  # words of a shape -> its timed steps


def _first_step(sides: _Sides, shape: Shape, name: str) -> Row:
    """Which loads kernels, and compiles what is compiled."""
    times = _Times()
    with sides.run.steps(shape, 1) as steps:
        for batches, do in steps:
            _ours(sides, batches, do, times)
    return Row(name=name, figures={"seconds": times.step[0] / 1e3})


def graphs_row(name: str, number: int, breaks: Mapping[str, int]) -> Row:
    """Of what torch has compiled; `breaks`: why a graph ended before its layer did -> how often."""
    figures: dict[str, Figure] = {"graphs": number, "breaks": sum(breaks.values())}
    if not number:
        return Row(name=name, status="failed", figures=figures, what="nothing was compiled")
    if breaks:
        reasons = "; ".join(reason.splitlines()[0] for reason in breaks)
        return Row(name=name, status="failed", figures=figures, what=reasons[:300])
    return Row(name=name, figures=figures)


def _shape(sides: _Sides, shape: Shape, name: str) -> Row:
    bench, times = sides.bench, _Times()
    warmup, timed = bench.sized(WARMUP_STEPS, 1), bench.sized(TIMED_STEPS, 2)
    with sides.run.steps(shape, warmup + timed) as steps:
        for number, (batches, do) in enumerate(steps):
            kept = times if number >= warmup else _Times()
            _ours(sides, batches, do, kept)
            _theirs(sides, batches, kept)
    if sides.loop is not None:
        sides.padded_ms[shape.words] = times.padded
    elif shape.words in sides.padded_ms:
        times.padded = sides.padded_ms[shape.words]
    return _row(name, shape, times, is_rehearsal=bench.is_rehearsal)


def _ours(sides: _Sides, batches: StepBatches, do: Callable[[], None], times: _Times) -> None:
    device = sides.bench.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wait(device)
    begin = time.perf_counter()
    do()
    wait(device)
    ms = 1e3 * (time.perf_counter() - begin)

    times.step.append(ms)
    for part in ("forward", "backward", "update"):
        times.parts.setdefault(part, []).append(sides.run.engine.times.ms(part))
    times.tokens_per_second.append(batches.tokens / ms * 1e3)
    times.padding.append(padding_share(batches.micro_batches))
    mfu = sides.run.mfu(batches, ms)
    if mfu is not None:
        times.mfu.append(mfu)
    if device.type == "cuda":
        held = sides.loop.held_bytes if sides.loop is not None else 0
        times.peak_bytes = max(times.peak_bytes, torch.cuda.max_memory_allocated(device) - held)


def _theirs(sides: _Sides, batches: StepBatches, times: _Times) -> None:
    if sides.loop is None:
        return
    device = sides.bench.device
    own: list[PaddedBatch] = [
        padded(batch, pin=device.type == "cuda") for batch in batches.micro_batches
    ]  # before its time begins, which favours it
    wait(device)
    begin = time.perf_counter()
    try:
        sides.loop.step(own)
    except torch.OutOfMemoryError:
        sides.loop = None
    if sides.loop is None:  # not above: there the exception's frames still hold it
        times.padded.clear()
        torch.cuda.empty_cache()
        return
    wait(device)
    times.padded.append(1e3 * (time.perf_counter() - begin))


def _row(name: str, shape: Shape, times: _Times, *, is_rehearsal: bool) -> Row:
    step = statistics.median(times.step)
    parts = {part: statistics.median(values) for part, values in times.parts.items()}
    figures: dict[str, Figure] = {"step_ms": step}
    figures |= {f"{part}_ms": value for part, value in parts.items()}
    figures["rest_ms"] = step - sum(parts.values())
    figures["real_tokens/s"] = round(statistics.median(times.tokens_per_second))
    figures["MFU_%"] = "-"
    figures["peak_GB"] = round(times.peak_bytes / 1e9, 2)
    figures["padded_ms"], figures["times_padded"] = "-", "-"

    mfu = None
    if times.mfu:
        mfu = statistics.median(times.mfu)
        figures["MFU_%"] = round(100 * mfu, 1)
    ratio = None
    if times.padded:
        pairs = zip(times.padded, times.step, strict=False)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        figures["padded_ms"], figures["times_padded"] = statistics.median(times.padded), round(ratio, 2)

    status, words = _against_goals(shape, mfu, ratio)
    if is_rehearsal:
        status = "ok"
    words.append(f"{statistics.mean(times.padding):.0%} of the padded loop's tokens are padding")
    if not times.padded:
        words.append("the padded loop has no time: it ran out of memory, or part large did not come so far")
    return Row(name=name, status=status, figures=figures, what="; ".join(words))


def _against_goals(shape: Shape, mfu: float | None, ratio: float | None) -> tuple[RowStatus, list[str]]:
    """Whether the shape's goals are met, and in words."""
    goal = MFU_GOALS.get(shape)
    if goal is None:
        return "ok", []

    goals: Sequence[tuple[str, float | None, float]] = (
        (f"{goal:.0%} of the peak", mfu, goal),
        (f"{TIMES_PADDED_GOAL:g} times the padded loop", ratio, TIMES_PADDED_GOAL),
    )
    met = {words: value is not None and value >= least for words, value, least in goals}
    words = [f"goal {words}: {'met' if is_met else 'not met'}" for words, is_met in met.items()]
    return "ok" if all(met.values()) else "missed", words
