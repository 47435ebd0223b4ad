"""The pages of experiments: score against number of examples (adapt), and tasks alone, in sequence and
together (compare).

Runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtdnn_ds.report.chart import Card, Chart
from mtdnn_ds.report.page import Section, page, table
from mtdnn_ds.report.paired import PairedDifference
from mtdnn_ds.report.plots import Axes, Groups, Series, bar_chart, line_chart
from mtdnn_ds.report.style import color, escape
from mtdnn_ds.report.tables import mean_and_spread


def write_adaptation(
    folder: Path, curves: Mapping[str, Mapping[int, Sequence[float]]], *, title: str, metric: str
) -> Path:
    """adaptation.html: a line through the means and a band over all samplings of each start, as figure 4 of
    MT-DNN (Liu et al. 2019). `curves`: start -> training examples -> one score a sampling. Returns its path.
    """
    series = []
    for index, (start, points) in enumerate(curves.items()):
        sizes = sorted(points)
        curve = Series(
            name=start,
            x=[float(size) for size in sizes],
            y=[sum(points[size]) / len(points[size]) for size in sizes],
            color=color(index),
            spread={float(size): points[size] for size in sizes},
            markers=True,
        )
        series.append(curve)

    card = Card(title=f"dev {metric}", note="band: all samplings, line: their mean", wide=True)
    chart = line_chart(card, series, axes=Axes(x_label="training examples (log scale)", log_x=True))

    rows = []
    for size in sorted({size for points in curves.values() for size in points}):
        cells = [mean_and_spread(points[size]) for points in curves.values() if size in points]
        rows.append([f"{size:,}", *map(escape, cells)])
    numbers = table(["training examples", *map(escape, curves)], rows)

    return _write(folder / "adaptation.html", f"Adaptation: {title}", chart, numbers)


def write_comparison(
    folder: Path,
    scores: Groups,
    *,
    differences: Mapping[str, PairedDifference],
    dev_rows: Mapping[str, int],
    title: str,
) -> Path:
    """comparison.html: a group of bars a task, a bar a way of training, a dot a seed, and what together
    differs from alone.

    `scores`: way -> task -> one score a seed; `differences` and `dev_rows`: task -> its own. Returns its
    path.
    """
    note = "bars: means over seeds, dots: seeds"
    chart = bar_chart(Card(title="dev score: the mean of a task's metrics", note=note), scores)

    tasks = list(dict.fromkeys(task for of_way in scores.values() for task in of_way))
    rows = [[task, *(mean_and_spread(of_way[task]) for of_way in scores.values())] for task in tasks]
    numbers = table(["task", *map(escape, scores)], [[escape(cell) for cell in row] for row in rows])

    lead = '<p class="lead">Together - alone, seed by seed, at equal updates.</p>'
    heads = ["task", "dev rows", "mean and standard deviation", "95 % t-interval", "together"]
    cells = [
        [
            escape(task),
            f"{dev_rows[task]:,}" if task in dev_rows else "",
            escape(of_task.mean_text),
            escape(of_task.interval_text),
            escape(of_task.verdict),
        ]
        for task, of_task in differences.items()
    ]
    paired = Section(name="differences", title="Differences", body=lead + table(heads, cells))
    return _write(folder / "comparison.html", f"Comparison: {title}", chart, numbers, paired)


def _write(path: Path, title: str, chart: Chart, numbers: str, *more: Section) -> Path:
    """The page, which the experiment owns: going on with it writes it again."""
    spread = '<p class="lead">Mean and standard deviation.</p>'
    sections = [
        Section(name="picture", title="Picture", body=f'<div class="grid">{chart.markup}</div>'),
        Section(name="numbers", title="Numbers", body=spread + numbers),
        *more,
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(title, "", sections), encoding="utf-8")
    return path
