"""Pictures of experiments, as PNG files: accuracy against data, what tasks gain or forget. Draws numbers; computes none but mean and spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe & Ito: told apart by everybody, and in grey
MARKERS = ("o", "s", "^", "D", "v")
SIZE_INCHES, DPI = (7.0, 4.5), 150


def draw_adaptation(
    path: Path, curves: Mapping[str, Mapping[int, Sequence[float]]], *, title: str, metric: str, baseline: float | None = None
) -> None:
    """Score against number of training examples (log axis), a line through the means and a bar over all samplings of each start.

    `curves`: start -> training examples -> one score a sampling. As figure 4 of MT-DNN (Liu et al. 2019).
    """
    figure, axes = _figure()
    for number, ((start, points), color, marker) in enumerate(zip(curves.items(), COLORS, MARKERS, strict=False)):
        sizes = sorted(points)
        means = [float(np.mean(points[size])) for size in sizes]
        axes.fill_between(
            sizes, [min(points[size]) for size in sizes], [max(points[size]) for size in sizes], color=color, alpha=0.15, lw=0
        )
        for size in sizes:
            axes.plot([size] * len(points[size]), points[size], linestyle="none", marker=".", color=color, alpha=0.6, markersize=4)
        axes.plot(sizes, means, color=color, marker=marker, label=start)
        for size, mean in zip(sizes, means, strict=True):
            axes.annotate(
                f"{mean:.3f}", (size, mean), textcoords="offset points", xytext=(6, -13 if number else 7), fontsize=8, color=color,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )  # fmt: skip
    if baseline is not None:
        axes.axhline(baseline, color="0.5", linestyle=":", lw=1, label="most frequent label")
    axes.set_xscale("log")
    sizes = sorted({size for points in curves.values() for size in points})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("training examples (log scale)")
    axes.set_ylabel(f"dev {metric}")
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)


def draw_comparison(path: Path, scores: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> None:
    """One group of bars a task, one bar a way of training, with every seed as a dot. `scores`: way -> task -> one score a seed."""
    figure, axes = _figure()
    tasks = list(dict.fromkeys(task for of_way in scores.values() for task in of_way))
    width = 0.8 / len(scores)
    for index, ((way, of_way), color) in enumerate(zip(scores.items(), COLORS, strict=False)):
        for number, task in enumerate(tasks):
            if task not in of_way:
                continue
            place = number + (index - (len(scores) - 1) / 2) * width
            axes.bar(place, float(np.mean(of_way[task])), width * 0.92, color=color, label=way if number == 0 else None)
            axes.plot([place] * len(of_way[task]), of_way[task], linestyle="none", marker="o", markersize=3, color="black", alpha=0.6)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(len(tasks)), tasks, rotation=20 if len(tasks) > 4 else 0)
    axes.set_ylabel("dev score (mean of the task's metrics)")
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    _save(figure, path)


def _figure():  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure  # no window system, no global state

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
