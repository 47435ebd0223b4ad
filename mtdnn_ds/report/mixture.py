"""The mixture of a run as planned and as drawn: shares of the examples, and how they add up over the steps.

Runs in, charts out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mtdnn_ds.report.chart import Card, Chart
from mtdnn_ds.report.curves import marks_of, name_among, task_colors
from mtdnn_ds.report.plots import STEPS_FROM_ZERO, Groups, Series, bar_chart, line_chart
from mtdnn_ds.report.runs import RunRecord
from mtdnn_ds.report.smoothing import thinned

_PARTS = 40  # of a run, whose shares are drawn


def mixture_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Of each run: planned and drawn shares as bars, and each task's examples so far, drawn and planned."""
    colors = task_colors(runs)
    charts: list[Chart] = []
    for run in runs:
        if not run.steps:
            continue

        name = name_among(runs, run)
        shares = _planned_and_drawn(run)
        if shares:
            note = f"after step {run.last_step:,}"
            if run.plan is None:
                note += "; the plan of this run is not known"
            card = Card(title=f"{name}share of the examples", note=note)
            charts.append(bar_chart(card, shares, colors=colors, percent=True))

        charts.append(_examples_so_far(run, colors, f"{name}examples so far"))
        charts.append(_shares_over_steps(run, colors, f"{name}share of each part of the run"))
    return charts


def _planned_and_drawn(run: RunRecord) -> Groups:
    """Each task's share of the examples up to the last step."""
    counts_of: dict[str, Mapping[str, float]] = {
        "planned": run.planned(run.last_step) or {},
        "drawn": run.drawn(),
    }

    shares = {}
    for way, counts in counts_of.items():
        total = sum(counts.values())
        if total:
            shares[way] = {task: [count / total] for task, count in counts.items()}
    return shares


def _examples_so_far(run: RunRecord, colors: Mapping[str, str], title: str) -> Chart:
    series = []
    for task in run.tasks:
        total, xs, ys = 0, [], []
        for line in run.steps:
            total += line["task_examples"].get(task, 0)
            xs.append(float(line["step"]))
            ys.append(float(total))

        x, y = thinned(xs, ys, 200)
        series.append(Series(name=task, x=x, y=y, color=colors[task], dotted=_planned_so_far(run, task)))

    card = Card(title=title, wide=True)
    if run.plan is not None:
        card = replace(card, note="dotted: as planned")
    return line_chart(card, series, axes=STEPS_FROM_ZERO, marks=marks_of([run]))


def _planned_so_far(run: RunRecord, task: str) -> tuple[list[float], list[float]] | None:
    if run.plan is None or task not in run.plan["examples"]:
        return None

    places = [step for step in run.plan["steps"] if step <= run.last_step] or [run.last_step]
    counts = [(run.planned(step) or {})[task] for step in places]
    return [float(step) for step in places], [float(count) for count in counts]


def _shares_over_steps(run: RunRecord, colors: Mapping[str, str], title: str) -> Chart:
    """Shares in each fortieth of the steps: what annealing or a sequence does."""
    size = -(-len(run.steps) // _PARTS)
    parts = [run.steps[begin : begin + size] for begin in range(0, len(run.steps), size)]
    last_steps = [float(part[-1]["step"]) for part in parts]
    totals = [sum(sum(line["task_examples"].values()) for line in part) for part in parts]

    series = []
    for task in run.tasks:
        counts = [sum(line["task_examples"].get(task, 0) for line in part) for part in parts]
        shares = [count / total for count, total in zip(counts, totals, strict=True)]
        series.append(Series(name=task, x=last_steps, y=shares, color=colors[task]))

    card = Card(title=title, wide=True)
    if size > 1:
        card = replace(card, note=f"each point: {size:,} steps")
    return line_chart(card, series, axes=STEPS_FROM_ZERO, marks=marks_of([run]))
