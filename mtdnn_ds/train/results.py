"""What a finished run says: the table of every task, where the run folder is, how to open TensorBoard. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable

from mtdnn_ds.tasks.metrics import majority_baseline
from mtdnn_ds.train.progress import TaskResult, format_results
from mtdnn_ds.train.run_folder import RunFolder
from mtdnn_ds.train.setup import RunData
from mtdnn_ds.train.state import RunState


def show_results(data: RunData, state: RunState, folder: RunFolder, *, say: Callable[[str], None]) -> None:
    """Print the run's last evaluation beside the majority baseline of each dev split, and each task's best step."""
    if state.evaluation is not None and state.evaluation.metrics:
        say(f"\ndev metrics after step {state.evaluated_at}:")
        say(format_results(task_results(data, state), state.evaluation.average))
    say(f"\nrun folder: {folder.path}")
    say(f"TensorBoard: tensorboard --logdir {folder.path}")


def task_results(data: RunData, state: RunState) -> list[TaskResult]:
    """One row per evaluated task."""
    assert state.evaluation is not None
    rows = []
    for spec in data.specs:
        metrics = state.evaluation.metrics.get(spec.name)
        if metrics is None:
            continue
        dev = data.prepared[spec.name]["dev"]
        best = state.best.get(spec.name)
        rows.append(
            TaskResult(
                task=spec.name,
                num_rows=sum(data.prepared[spec.name][name].num_rows for name in spec.dev_splits),
                metrics=metrics,
                majority_baseline=majority_baseline(spec.kind, spec.metrics, dev.labels)[spec.metrics[0]],
                best_value=None if best is None else best["score"],
                best_step=None if best is None else int(best["step"]),
            )
        )
    return rows
