"""What a finished run says: the table of every task, where the run folder is, how to open TensorBoard. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mtdnn_ds.monitor.console import TaskResult, format_results
from mtdnn_ds.runs.evaluate import Evaluation
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.runs.state import RunState
from mtdnn_ds.tasks.metrics import majority_baseline
from mtdnn_ds.tasks.spec import TaskSpec


def show_results(data: RunData, state: RunState, folder: RunFolder, *, say: Callable[[str], None]) -> None:
    """Print the run's last evaluation beside the majority baseline of each dev split, and each task's best step."""
    if state.evaluation is not None and state.evaluation.metrics:
        say(f"\ndev metrics after step {state.evaluated_at}:")
        say(format_results(task_results(data, state.evaluation, state.best), state.evaluation.average))
    say(f"\nrun folder: {folder.path}")
    say(f"TensorBoard: tensorboard --logdir {folder.path}")


def task_results(
    data: RunData, evaluation: Evaluation, best: Mapping[str, Mapping[str, float]]
) -> list[TaskResult]:
    """One row per evaluated task; `best` holds each task's best "score" and its "step", as far as known."""
    rows = []
    for spec in data.specs:
        if spec.name not in evaluation.metrics:
            continue
        examples = data.examples[spec.name]
        rows.append(
            TaskResult(
                task=spec.name,
                num_rows=sum(examples[name].split.num_rows for name in spec.dev_splits),
                metrics=evaluation.metrics[spec.name],
                majority_baseline=_baseline(spec, examples[spec.dev_splits[0]].split.labels),
                best_value=best[spec.name]["score"] if spec.name in best else None,
                best_step=int(best[spec.name]["step"]) if spec.name in best else None,
            )
        )
    return rows


def _baseline(spec: TaskSpec, labels: np.ndarray) -> float | None:
    """The first metric of always giving the same answer, where the kind has one."""
    return (
        majority_baseline(spec.kind, spec.metrics, labels)[spec.metrics[0]]
        if spec.kind in ("classification", "regression")
        else None
    )
