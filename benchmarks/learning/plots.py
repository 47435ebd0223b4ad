"""The pictures of docs/learning.md, from the committed results. Trains nothing.

    python -m benchmarks.learning.plots

rte_mnli: a line a seed, from alone to together. scitail: score against number of rows on a log axis, the band
over all samplings and seeds, as the paper's figure of domain adaptation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.learning.__main__ import RESULTS
from benchmarks.learning.runs import Result, read_results

DOCS = Path(__file__).parents[2] / "docs"
ROWS = {"scitail": 2126, "snli": 9999}  # of the whole training split

# The same bytes for the same results.
matplotlib.rcParams["svg.hashsalt"] = "mtdnn_ds"
matplotlib.rcParams["svg.fonttype"] = "none"


def paired_lines(results: Sequence[Result], task: str, ways: Sequence[str], path: Path) -> None:
    """A line a seed through the ways, and their means."""
    figure, axes = _figure()
    of_way = {way: {one.seed: _accuracy(one, task) for one in results if one.way == way} for way in ways}
    seeds = sorted(set.intersection(*(set(of_seed) for of_seed in of_way.values())))
    for seed in seeds:
        axes.plot(ways, [of_way[way][seed] for way in ways], color="tab:gray", marker="o", linewidth=1)

    means = [float(np.mean([of_way[way][seed] for seed in seeds])) for way in ways]
    axes.plot(ways, means, color="tab:blue", marker="o", linewidth=3, label=f"mean of {len(seeds)} seeds")
    axes.set_ylabel(f"{task} dev accuracy")
    axes.legend(frameon=False)
    _save(figure, path)


def adaptation_curve(results: Sequence[Result], task: str, path: Path) -> None:
    """A line through the means of each start, a band over all its runs."""
    figure, axes = _figure()
    for way, color in (("plain", "tab:gray"), ("mt-dnn", "tab:blue")):
        of_size: dict[int, list[float]] = {}
        for one in results:
            if one.way == way:
                size = int(ROWS[task] * float(one.at["fraction"]))
                of_size.setdefault(size, []).append(_accuracy(one, task))

        sizes = sorted(of_size)
        axes.plot(
            sizes, [float(np.mean(of_size[size])) for size in sizes], color=color, marker="o", label=way
        )
        low, high = ([pick(of_size[size]) for size in sizes] for pick in (min, max))
        axes.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0)

    axes.set_xscale("log")
    axes.set_xlabel("training rows")
    axes.set_ylabel(f"{task} dev accuracy")
    axes.legend(frameon=False)
    _save(figure, path)


def _accuracy(result: Result, task: str) -> float:
    return result.scores[task]["accuracy"]


def _figure():  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: Path) -> None:  # type: ignore[no-untyped-def]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Draw what there are results of; the exit code."""
    together = [*read_results(RESULTS / "rte_mnli.jsonl").values()]
    if together:
        paired_lines(together, "rte", ("alone", "with mnli"), DOCS / "learning_rte_mnli.svg")
    for task in ROWS:
        adapted = [*read_results(RESULTS / f"{task}.jsonl").values()]
        if adapted:
            adaptation_curve(adapted, task, DOCS / f"learning_{task}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
