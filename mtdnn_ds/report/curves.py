"""What a run's log shows over its steps: losses, dev metrics, speed, health. Runs in, charts out.

Not its mixture (mixture.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from mtdnn_ds.report.chart import Card, Chart
from mtdnn_ds.report.plots import STEPS, STEPS_FROM_ZERO, Axes, Series, line_chart
from mtdnn_ds.report.runs import RunRecord
from mtdnn_ds.report.smoothing import SMOOTHED_FROM, smoothed, thinned
from mtdnn_ds.report.style import DASHES, color

Line = Mapping[str, Any]  # of metrics.jsonl
ValueOf = Callable[[Line], float | None]
_LARGEST_OVERVIEW = 12  # tasks whose losses one chart takes


def tasks_of(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Tasks of all runs; a task's place is its colour."""
    return tuple(dict.fromkeys(task for run in runs for task in run.tasks))


def task_colors(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Each task's colour, the same in all charts."""
    return {task: color(index) for index, task in enumerate(tasks_of(runs))}


# Losses


def loss_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """The objective, all tasks together where one run is shown, and each task."""
    colors = task_colors(runs)
    objective = _over_steps(runs, Card(title="objective", wide=True), lambda line: line["loss"])
    each_task = [
        _over_steps(runs, Card(title=task, dot=shade), _of_task("task_loss", task))
        for task, shade in colors.items()
    ]

    together = None
    if len(runs) == 1 and 1 < len(colors) <= _LARGEST_OVERVIEW:
        together = _tasks_together(runs[0], colors, "task_loss", "every task, smoothed")

    return [chart for chart in (objective, together, *each_task) if chart is not None]


def _tasks_together(run: RunRecord, colors: Mapping[str, str], field: str, title: str) -> Chart | None:
    series = []
    for task, shade in colors.items():
        points = _steps_with(run, _of_task(field, task))
        if points is not None:
            x, y = thinned(points[0], smoothed(points[1]))
            series.append(Series(name=task, x=x, y=y, color=shade))

    if not series:
        return None
    return line_chart(Card(title=title, wide=True), series, marks=marks_of([run]))


def _over_steps(
    runs: Sequence[RunRecord], card: Card, value_of: ValueOf, *, smooth: bool = True, axes: Axes = STEPS
) -> Chart | None:
    """One curve a run; alone it has the colour of the card's dot, or the first."""
    shades = [color(index) for index in range(len(runs))]
    if len(runs) == 1 and card.dot is not None:
        shades = [card.dot]

    series = []
    for run, shade in zip(runs, shades, strict=True):
        points = _steps_with(run, value_of)
        if points is not None:
            series.append(_curve(run.name, *points, shade=shade, smooth=smooth))

    if not series:
        return None
    return line_chart(card, series, axes=axes, marks=marks_of(runs))


def _steps_with(run: RunRecord, value_of: ValueOf) -> tuple[list[float], list[float]] | None:
    """A value of every training step that has it."""
    values = [(float(line["step"]), value_of(line)) for line in run.steps]
    points = [(step, float(value)) for step, value in values if value is not None]
    if not points:
        return None
    return [step for step, _ in points], [value for _, value in points]


def _curve(name: str, xs: list[float], ys: list[float], *, shade: str, smooth: bool) -> Series:
    if not smooth:
        x, y = thinned(xs, ys)
        return Series(name=name, x=x, y=y, color=shade)

    x, y = thinned(xs, smoothed(ys))
    raw = None
    if len(xs) >= SMOOTHED_FROM:
        raw = thinned(xs, ys)[1]
    return Series(name=name, x=x, y=y, color=shade, raw=raw)


def _of_task(field: str, task: str) -> ValueOf:
    return lambda line: line.get(field, {}).get(task)


def marks_of(runs: Sequence[RunRecord]) -> list[tuple[float, str]]:
    """Stops and losses of processes; among several runs with the run's name."""
    marks = []
    for run in runs:
        name = name_among(runs, run)
        marks += [(float(step), f"{name}{words}") for step, words in run.marks if 0 < step <= run.last_step]
    return marks


def name_among(runs: Sequence[RunRecord], run: RunRecord) -> str:
    """`run: `, where several are shown."""
    return f"{run.name}: " if len(runs) > 1 else ""


# Development metrics


def metric_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """The average, and all metrics of each task over its evaluations.

    Metrics are told apart by their dashes, runs by their colours.
    """
    average = [
        _evaluations(run, lambda line: line.get("average"), name=run.name, shade=color(index))
        for index, run in enumerate(runs)
    ]
    known = [series for series in average if series is not None]

    charts = []
    if known:
        card = Card(title="average of the tasks' scores", wide=True)
        charts.append(line_chart(card, known, marks=marks_of(runs)))
    for task, shade in task_colors(runs).items():
        chart = _task_metrics(runs, task, shade)
        if chart is not None:
            charts.append(chart)
    return charts


def _task_metrics(runs: Sequence[RunRecord], task: str, shade: str) -> Chart | None:
    metrics = list(
        dict.fromkeys(name for run in runs for line in run.evaluations for name in line["eval"].get(task, {}))
    )

    shades = [shade]
    if len(runs) > 1:
        shades = [color(index) for index in range(len(runs))]

    series = []
    for run, of_run in zip(runs, shades, strict=True):
        for metric, dash in zip(metrics, cycle(DASHES), strict=False):
            name = _curve_name(run, metric, several_runs=len(runs) > 1, several_metrics=len(metrics) > 1)
            curve = _evaluations(run, _of_metric(task, metric), name=name, shade=of_run, dash=dash)
            if curve is not None:
                series.append(curve)

    if not series:
        return None
    title = f"{task}: {metrics[0]}" if len(metrics) == 1 else task
    return line_chart(Card(title=title, dot=shade), series, marks=marks_of(runs))


def _curve_name(run: RunRecord, metric: str, *, several_runs: bool, several_metrics: bool) -> str:
    """What tells a curve from those beside it."""
    if not several_runs:
        return metric
    if not several_metrics:
        return run.name
    return f"{run.name}, {metric}"


def _of_metric(task: str, metric: str) -> ValueOf:
    return lambda line: line["eval"].get(task, {}).get(metric)


def _evaluations(
    run: RunRecord, value_of: ValueOf, *, name: str, shade: str, dash: str = "solid"
) -> Series | None:
    """A value of every evaluation that has it."""
    values = [(float(line["step"]), value_of(line)) for line in run.evaluations]
    points = [(step, float(value)) for step, value in values if value is not None]
    if not points:
        return None

    x, y = [step for step, _ in points], [value for _, value in points]
    return Series(name=name, x=x, y=y, color=shade, dash=dash, markers=True)


# Schedule, speed and balance


@dataclass(frozen=True, slots=True)
class HealthValue:
    """A number that training lines of the log have."""

    field: str
    title: str
    smooth: bool = True
    axes: Axes = STEPS


HEALTH = (
    HealthValue("lr", "learning rate", smooth=False),
    HealthValue("grad_norm", "gradient norm before clipping"),
    HealthValue("tokens_per_second", "real tokens a second, all ranks", axes=STEPS_FROM_ZERO),
    HealthValue("seconds", "seconds a step", axes=STEPS_FROM_ZERO),
    HealthValue("padding_efficiency", "padding efficiency: real tokens / tokens computed"),
    HealthValue("rank_imbalance", "rank imbalance: cost of the busiest rank / mean"),
    HealthValue("wait_fraction", "share of a step that waited for data", axes=STEPS_FROM_ZERO),
    HealthValue("micro_batches", "micro-batches of a rank in a step"),
    HealthValue("loss_scale", "fp16 loss scale", smooth=False),
    HealthValue("regularizer", "the regulariser's part of the loss"),
    HealthValue("penalty", "penalty of sharing, not in the loss"),
)


def health_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Learning rate, gradient norm, speed, padding, balance; what only some runs have, where one has it."""
    charts = []
    for value in HEALTH:
        if value.field == "loss_scale" and not _any_loss_scale(runs):
            continue

        card = Card(title=value.title)
        chart = _over_steps(runs, card, _of_field(value.field), smooth=value.smooth, axes=value.axes)
        if chart is not None:
            charts.append(chart)

    colors = task_colors(runs)
    if len(runs) == 1 and len(colors) <= _LARGEST_OVERVIEW:
        of_tasks = _tasks_together(
            runs[0], colors, "task_grad_norm", "gradient norm of every task's part in the encoder, smoothed"
        )
        charts += [of_tasks] if of_tasks is not None else []
    return charts


def _any_loss_scale(runs: Sequence[RunRecord]) -> bool:
    return any(line.get("loss_scale", 1) != 1 for run in runs for line in run.steps)


def _of_field(field: str) -> ValueOf:
    return lambda line: line.get(field)
