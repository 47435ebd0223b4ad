"""The pages of experiments: score against number of examples (adapt), and tasks alone, in sequence and together (compare). Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtdnn_ds.report.chart import Chart, figure, svg_file
from mtdnn_ds.report.page import Section, page, table
from mtdnn_ds.report.plots import Series, bar_chart, line_chart
from mtdnn_ds.report.svg import color, escape
from mtdnn_ds.report.tables import mean_and_spread


def write_adaptation(
    folder: Path, curves: Mapping[str, Mapping[int, Sequence[float]]], *, title: str, metric: str
) -> tuple[Path, Path]:
    """adaptation.html and adaptation.svg: a line through the means and a band over all samplings of each start, as figure 4 of MT-DNN
    (Liu et al. 2019). `curves`: start -> training examples -> one score a sampling.
    """
    series = [
        Series(
            name=start,
            x=[float(size) for size in sorted(points)],
            y=[sum(points[size]) / len(points[size]) for size in sorted(points)],
            color=color(index),
            spread={float(size): points[size] for size in sorted(points)},
            markers=True,
        )
        for index, (start, points) in enumerate(curves.items())
    ]
    chart = line_chart(
        f"dev {metric}",
        series,
        x_label="training examples (log scale)",
        log_x=True,
        wide=True,
        note="band: all samplings, line: their mean",
    )
    sizes = sorted({size for points in curves.values() for size in points})
    rows = [
        [
            f"{size:,}",
            *(escape(mean_and_spread(points[size])) for points in curves.values() if size in points),
        ]
        for size in sizes
    ]
    return _write(
        folder / "adaptation",
        f"Adaptation: {title}",
        chart,
        table(["training examples", *map(escape, curves)], rows),
    )


def write_comparison(
    folder: Path, scores: Mapping[str, Mapping[str, Sequence[float]]], *, title: str
) -> tuple[Path, Path]:
    """comparison.html and comparison.svg: a group of bars a task, a bar a way of training, a dot a seed. `scores`: way -> task -> one score a seed."""
    chart = bar_chart(
        "dev score: the mean of a task's metrics", scores, note="bars: means over seeds, dots: seeds"
    )
    tasks = list(dict.fromkeys(task for of_way in scores.values() for task in of_way))
    rows = [
        [escape(task), *(escape(mean_and_spread(of_way[task])) for of_way in scores.values())]
        for task in tasks
    ]
    return _write(
        folder / "comparison", f"Comparison: {title}", chart, table(["task", *map(escape, scores)], rows)
    )


def _write(path: Path, title: str, chart: Chart, numbers: str) -> tuple[Path, Path]:
    """Both files, which the experiment owns: going on with it writes them again."""
    sections = [
        Section(name="picture", title="Picture", body=f'<div class="grid">{figure(chart)}</div>'),
        Section(
            name="numbers", title="Numbers", body=f'<p class="lead">Mean and standard deviation.</p>{numbers}'
        ),
    ]
    files = path.with_suffix(".html"), path.with_suffix(".svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    files[0].write_text(page(title, "", sections), encoding="utf-8")
    files[1].write_text(svg_file(chart), encoding="utf-8")
    return files
