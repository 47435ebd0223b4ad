"""GLUE as a benchmark: its nine tasks and diagnostic set as the leaderboard files them, and its averaging.
Reads no file, predicts nothing.

    score of a task = mean of its metrics; MNLI's = mean of matched and mismatched accuracy
    GLUE score      = mean over the nine tasks

(Wang et al. 2019, arXiv:1804.07461, section 3; https://gluebenchmark.com/leaderboard). The diagnostic set AX
is not averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class GlueTask:
    """A column of the leaderboard."""

    title: str
    metrics: tuple[str, ...]  # as evaluations name them, in the order that the leaderboard shows


@dataclass(frozen=True, kw_only=True, slots=True)
class GlueFile:
    """One file of a submission."""

    name: str
    task: str  # whose head predicts it
    split: str
    num_rows: int  # of the official test set
    words: tuple[str, ...]  # one for each class id; empty: a number from 0 to 5
    # Label of the official dev set; of two sets of MNLI, the matched one; 0.0 where there are no classes
    most_frequent: str


GLUE_TASKS: Mapping[str, GlueTask] = {
    "cola": GlueTask(title="CoLA", metrics=("matthews",)),
    "sst2": GlueTask(title="SST-2", metrics=("accuracy",)),
    "mrpc": GlueTask(title="MRPC", metrics=("f1", "accuracy")),
    "stsb": GlueTask(title="STS-B", metrics=("pearson", "spearman")),
    "qqp": GlueTask(title="QQP", metrics=("f1", "accuracy")),
    "mnli": GlueTask(title="MNLI m/mm", metrics=("accuracy", "accuracy_mm")),
    "qnli": GlueTask(title="QNLI", metrics=("accuracy",)),
    "rte": GlueTask(title="RTE", metrics=("accuracy",)),
    "wnli": GlueTask(title="WNLI", metrics=("accuracy",)),
}

SCORE_RANGE = (0.0, 5.0)  # of STS-B
_BITS, _NLI, _ENTAILED = (
    ("0", "1"),
    ("entailment", "neutral", "contradiction"),
    ("entailment", "not_entailment"),
)

GLUE_FILES: tuple[GlueFile, ...] = (
    GlueFile(name="CoLA.tsv", task="cola", split="test", num_rows=1_063, words=_BITS, most_frequent="1"),
    GlueFile(name="SST-2.tsv", task="sst2", split="test", num_rows=1_821, words=_BITS, most_frequent="1"),
    GlueFile(name="MRPC.tsv", task="mrpc", split="test", num_rows=1_725, words=_BITS, most_frequent="1"),
    GlueFile(name="STS-B.tsv", task="stsb", split="test", num_rows=1_379, words=(), most_frequent="0.0"),
    GlueFile(name="QQP.tsv", task="qqp", split="test", num_rows=390_965, words=_BITS, most_frequent="0"),
    GlueFile(
        name="MNLI-m.tsv", task="mnli", split="test", num_rows=9_796, words=_NLI, most_frequent="entailment"
    ),
    GlueFile(
        name="MNLI-mm.tsv",
        task="mnli",
        split="test_mm",
        num_rows=9_847,
        words=_NLI,
        most_frequent="entailment",
    ),
    GlueFile(
        name="QNLI.tsv",
        task="qnli",
        split="test",
        num_rows=5_463,
        words=_ENTAILED,
        most_frequent="not_entailment",
    ),
    GlueFile(
        name="RTE.tsv", task="rte", split="test", num_rows=3_000, words=_ENTAILED, most_frequent="entailment"
    ),
    GlueFile(name="WNLI.tsv", task="wnli", split="test", num_rows=146, words=_BITS, most_frequent="0"),
    GlueFile(name="AX.tsv", task="mnli", split="ax", num_rows=1_104, words=_NLI, most_frequent="entailment"),
)
"""In the order of the leaderboard. `words` stand in the order of the built-in tasks' labels
(tasks/builtin.py)."""


def glue_scores(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Score of each of GLUE's tasks in `metrics` (task -> metric -> value): the mean of its official metrics.

    Of MNLI's two test sets, one alone stands for both. A task without all others of its official metrics is
    left out.
    """
    scores = {}
    for task, known in GLUE_TASKS.items():
        own = [metrics[task][name] for name in known.metrics if name in metrics.get(task, {})]
        if len(own) == len(known.metrics) or (task == "mnli" and own):
            scores[task] = sum(own) / len(own)
    return scores


def glue_score(scores: Mapping[str, float]) -> float:
    """Macro average over the tasks in `scores`; GLUE's score if all nine are there."""
    return sum(scores.values()) / len(scores)


def glue_table(metrics: Mapping[str, Mapping[str, float]]) -> str | None:
    """GLUE's table as one row of percentages in the leaderboard's order, and what its last column is; None
    without a task of GLUE."""
    scores = glue_scores(metrics)
    if not scores:
        return None

    cells = [(known.title, _cell(task, metrics.get(task, {}))) for task, known in GLUE_TASKS.items()]
    whole = len(scores) == len(GLUE_TASKS)
    cells.append(("score" if whole else "average", f"{100 * glue_score(scores):.1f}"))

    widths = [max(len(title), len(value)) for title, value in cells]
    lines = [
        "  ".join(cell[row].ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for row in (0, 1)
    ]
    if not whole:
        lines.append(
            f"average of {len(scores)} of {len(GLUE_TASKS)} tasks, not the GLUE score; missing: "
            f"{', '.join(_missing(scores))}"
        )

    for task, known in GLUE_TASKS.items():
        absent = [name for name in known.metrics if name not in metrics.get(task, {})]
        if task in metrics and absent and task not in scores:
            lines.append(f"{task} is not averaged: it was scored without {', '.join(absent)}")
        elif task in scores and absent:
            lines.append(f"{task} has no {', '.join(absent)}: its score is the other set's alone")
    return "\n".join(lines)


def _missing(scores: Mapping[str, float]) -> list[str]:
    return [known.title.split()[0] for task, known in GLUE_TASKS.items() if task not in scores]


def _cell(task: str, values: Mapping[str, float]) -> str:
    """`89.3/85.4`: percentages, a metric that is not there as -."""
    known = GLUE_TASKS[task].metrics
    if not any(name in values for name in known):
        return "-"
    return "/".join(f"{100 * values[name]:.1f}" if name in values else "-" for name in known)
