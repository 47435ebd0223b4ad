"""What a run's log shows over its steps: losses, dev metrics, mixture, speed, health. Runs in, charts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtdnn_ds.report.chart import Chart
from mtdnn_ds.report.plots import Series, bar_chart, line_chart
from mtdnn_ds.report.runs import SMOOTHED_FROM, RunRecord, smoothed, thinned
from mtdnn_ds.report.svg import DASHES, color

Get = Callable[[Mapping[str, Any]], float | None]
_LARGEST_OVERVIEW = 12  # tasks whose losses one chart takes


def tasks_of(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Tasks of all runs; a task's place is its colour."""
    return tuple(dict.fromkeys(task for run in runs for task in run.tasks))


def task_colors(runs: Sequence[RunRecord]) -> dict[str, str]:
    return {task: color(index) for index, task in enumerate(tasks_of(runs))}


def _curve(run: RunRecord, get: Get, *, name: str, shade: str, smooth: bool) -> Series | None:
    """A value of every training step that has it."""
    points = [(line["step"], value) for line in run.steps if (value := get(line)) is not None]
    if not points:
        return None
    xs, ys = [float(step) for step, _ in points], [float(value) for _, value in points]
    x, thin = thinned(xs, smoothed(ys) if smooth else ys)
    raw = thinned(xs, ys)[1] if smooth and len(xs) >= SMOOTHED_FROM else None
    return Series(name=name, x=x, y=thin, color=shade, raw=raw)


def _over_steps(
    runs: Sequence[RunRecord],
    title: str,
    get: Get,
    *,
    smooth: bool = True,
    dot: str | None = None,
    **more: Any,
) -> Chart | None:
    """One curve a run; alone it has the colour `dot`, or the first."""
    shades = [dot or color(0)] if len(runs) == 1 else [color(index) for index in range(len(runs))]
    series = [
        each
        for run, shade in zip(runs, shades, strict=True)
        if (each := _curve(run, get, name=run.name, shade=shade, smooth=smooth))
    ]
    return line_chart(title, series, marks=_marks(runs), dot=dot, **more) if series else None


def _marks(runs: Sequence[RunRecord]) -> list[tuple[float, str]]:
    several = len(runs) > 1
    return [
        (float(step), f"{run.name}: {words}" if several else words)
        for run in runs
        for step, words in run.marks
        if 0 < step <= run.last_step
    ]


def loss_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """The objective, all tasks together where one run is shown, and each task."""
    colors = task_colors(runs)
    charts = [_over_steps(runs, "objective", lambda line: line["loss"], wide=True)]
    if len(runs) == 1 and 1 < len(colors) <= _LARGEST_OVERVIEW:
        every = [
            each
            for task, shade in colors.items()
            if (each := _curve(runs[0], _of("task_loss", task), name=task, shade=shade, smooth=True))
        ]
        together = [Series(name=each.name, x=each.x, y=each.y, color=each.color) for each in every]
        charts.append(
            line_chart("every task, smoothed", together, marks=_marks(runs), wide=True) if together else None
        )
    charts += [_over_steps(runs, task, _of("task_loss", task), dot=shade) for task, shade in colors.items()]
    return [chart for chart in charts if chart is not None]


def _of(field: str, task: str) -> Get:
    return lambda line: line[field].get(task)


def metric_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """The average, and all metrics of each task over its evaluations; metrics are told apart by their dashes, runs by their colours."""
    colors = task_colors(runs)
    average = [
        _evaluations(run, lambda line: line.get("average"), name=run.name, shade=color(index))
        for index, run in enumerate(runs)
    ]
    charts = (
        [
            line_chart(
                "average of the tasks' scores",
                [each for each in average if each],
                marks=_marks(runs),
                wide=True,
            )
        ]
        if any(average)
        else []
    )
    for task, shade in colors.items():
        metrics = list(
            dict.fromkeys(
                name for run in runs for line in run.evaluations for name in line["eval"].get(task, {})
            )
        )
        series = []
        for index, run in enumerate(runs):
            for number, metric in enumerate(metrics):
                name = (
                    metric if len(runs) == 1 else run.name if len(metrics) == 1 else f"{run.name}, {metric}"
                )
                each = _evaluations(
                    run,
                    lambda line, task=task, metric=metric: line["eval"].get(task, {}).get(metric),  # type: ignore[misc]
                    name=name,
                    shade=shade if len(runs) == 1 else color(index),
                    dash=DASHES[number % len(DASHES)],
                )
                series += [each] if each else []
        if series:
            title = f"{task}: {metrics[0]}" if len(metrics) == 1 else task
            charts.append(line_chart(title, series, marks=_marks(runs), dot=shade))
    return charts


def _evaluations(run: RunRecord, get: Get, *, name: str, shade: str, dash: str = "") -> Series | None:
    points = [
        (float(line["step"]), float(value)) for line in run.evaluations if (value := get(line)) is not None
    ]
    if not points:
        return None
    return Series(
        name=name,
        x=[step for step, _ in points],
        y=[value for _, value in points],
        color=shade,
        dash=dash,
        markers=True,
    )


def mixture_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Of each run: planned and drawn shares as bars, and each task's examples so far, drawn and planned."""
    colors = task_colors(runs)
    charts: list[Chart] = []
    for run in runs:
        if not run.steps:
            continue
        name = f"{run.name}: " if len(runs) > 1 else ""
        planned, drawn = run.planned(run.last_step), run.drawn()
        ways = {}
        for way, counts in (
            ("planned", planned or {}),
            ("drawn", {task: float(count) for task, count in drawn.items()}),
        ):
            if total := sum(counts.values()):
                ways[way] = {task: [count / total] for task, count in counts.items()}
        note = f"after step {run.last_step:,}" + (
            "" if planned is not None else "; the plan of this run is not known"
        )
        if ways:
            charts.append(
                bar_chart(f"{name}share of the examples", ways, colors=colors, note=note, percent=True)
            )
        charts.append(_examples_so_far(run, colors, f"{name}examples so far"))
        charts.append(_shares_over_steps(run, colors, f"{name}share of each part of the run"))
    return charts


def _examples_so_far(run: RunRecord, colors: Mapping[str, str], title: str) -> Chart:
    series = []
    for task in run.tasks:
        total, xs, ys = 0, [], []
        for line in run.steps:
            total += line["task_examples"].get(task, 0)
            xs.append(float(line["step"]))
            ys.append(float(total))
        x, y = thinned(xs, ys, 200)
        dotted = None
        if run.plan is not None and task in run.plan["examples"]:
            places = [step for step in run.plan["steps"] if step <= run.last_step] or [run.last_step]
            dotted = (
                [float(step) for step in places],
                [float((run.planned(step) or {})[task]) for step in places],
            )
        series.append(Series(name=task, x=x, y=y, color=colors[task], dotted=dotted))
    return line_chart(
        title,
        series,
        marks=_marks([run]),
        from_zero=True,
        wide=True,
        note="dotted: as planned" if run.plan is not None else "",
    )


def _shares_over_steps(run: RunRecord, colors: Mapping[str, str], title: str) -> Chart:
    """Shares in each fortieth of the steps: what annealing or a sequence does."""
    size = -(-len(run.steps) // 40)
    chunks = [run.steps[begin : begin + size] for begin in range(0, len(run.steps), size)]
    xs = [float(chunk[-1]["step"]) for chunk in chunks]
    totals = [sum(sum(line["task_examples"].values()) for line in chunk) for chunk in chunks]
    series = [
        Series(
            name=task,
            x=xs,
            y=[
                sum(line["task_examples"].get(task, 0) for line in chunk) / total
                for chunk, total in zip(chunks, totals, strict=True)
            ],
            color=colors[task],
        )
        for task in run.tasks
    ]
    return line_chart(
        title,
        series,
        marks=_marks([run]),
        from_zero=True,
        wide=True,
        note=f"each point: {size:,} steps" if size > 1 else "",
    )


HEALTH: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("lr", "learning rate", {"smooth": False}),
    ("grad_norm", "gradient norm before clipping", {}),
    ("tokens_per_second", "real tokens a second, all ranks", {"from_zero": True}),
    ("seconds", "seconds a step", {"from_zero": True}),
    ("padding_efficiency", "padding efficiency: real tokens / tokens computed", {}),
    ("rank_imbalance", "rank imbalance: cost of the busiest rank / mean", {}),
    ("wait_fraction", "share of a step that waited for data", {"from_zero": True}),
    ("micro_batches", "micro-batches of a rank in a step", {}),
    ("loss_scale", "fp16 loss scale", {"smooth": False}),
    ("regularizer", "the regulariser's part of the loss", {}),
    ("penalty", "penalty of sharing, not in the loss", {}),
)


def health_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Learning rate, gradient norm, speed, padding, balance; what only some runs have, where one has it."""
    charts = []
    for field, title, how in HEALTH:
        if field == "loss_scale" and all(line.get(field, 1) == 1 for run in runs for line in run.steps):
            continue
        chart = _over_steps(runs, title, lambda line, field=field: line.get(field), **how)  # type: ignore[misc]
        charts += [chart] if chart is not None else []
    return charts
