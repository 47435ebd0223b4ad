"""What a finished run says: the table of all tasks, its folder, how to open TensorBoard. Measures nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtdnn_ds.monitor.console import text_table
from mtdnn_ds.runs.evaluate import Evaluation
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.runs.state import RunState
from mtdnn_ds.tasks.metrics import majority_baseline
from mtdnn_ds.tasks.spec import TaskSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """One task's row in the table of results."""

    task: str
    num_rows: int  # of the dev split
    metrics: Mapping[str, float]  # final values, the main metric first
    majority_baseline: (
        float | None
    )  # main metric of always answering the most frequent label; None: no meaning
    best_value: float | None  # of the main metric during the run
    best_step: int | None


def show_results(data: RunData, state: RunState, folder: RunFolder) -> None:
    """Say the run's last evaluation beside the majority baseline of each dev split, and each task's best
    step.
    """
    if state.evaluation is not None and state.evaluation.metrics:
        log.info(f"\ndev metrics after step {state.evaluated_at}:")
        log.info(format_results(task_results(data, state.evaluation, state.best), state.evaluation.average))

    log.info(f"\nrun folder: {folder.path}")
    log.info(f"TensorBoard: tensorboard --logdir {folder.path}")


def task_results(
    data: RunData, evaluation: Evaluation, best: Mapping[str, Mapping[str, float]]
) -> list[TaskResult]:
    """One row per evaluated task; `best` holds each task's best "score" and its "step", as far as known."""
    rows = []
    for spec in data.specs:
        if spec.name not in evaluation.metrics:
            continue

        splits = [data.examples[spec.name][name].split for name in spec.dev_splits]
        best_value, best_step = None, None
        if spec.name in best:
            best_value, best_step = best[spec.name]["score"], int(best[spec.name]["step"])

        rows.append(
            TaskResult(
                task=spec.name,
                num_rows=sum(split.num_rows for split in splits),
                metrics=evaluation.metrics[spec.name],
                majority_baseline=_baseline(spec, splits[0].labels),
                best_value=best_value,
                best_step=best_step,
            )
        )
    return rows


def format_results(results: Sequence[TaskResult], average: float) -> str:
    """The table of all tasks: final dev metrics beside what always answering the most frequent label would
    get.
    """
    rows: list[tuple[str, ...]] = []
    for result in results:
        best_step = "-"
        if result.best_step is not None:
            best_step = f"{result.best_step:,}"

        (metric, value), *others = result.metrics.items()
        beside = (_value(result.majority_baseline), _value(result.best_value), best_step)
        rows.append((result.task, f"{result.num_rows:,}", metric, _value(value), *beside))
        rows += [("", "", metric, _value(value), "", "", "") for metric, value in others]
    rows.append(("average", "", "", _value(average), "", "", ""))

    header = ("task", "dev rows", "metric", "value", "majority", "best", "at step")
    return text_table(header, rows, names=(0, 2))


def _value(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _baseline(spec: TaskSpec, labels: np.ndarray) -> float | None:
    """The first metric of always giving the same answer, where the kind has one."""
    if spec.kind not in ("classification", "regression"):
        return None
    return majority_baseline(spec.kind, spec.metrics, labels)[spec.metrics[0]]
