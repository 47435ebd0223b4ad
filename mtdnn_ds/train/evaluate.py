"""Evaluation: every row of every dev split exactly once over all ranks, metrics from all predictions. Trains nothing.

A task's second dev split (MNLI's dev_mm) gives the same metrics with its suffix (accuracy_mm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtdnn_ds import dist
from mtdnn_ds.data.cache import PreparedSplit
from mtdnn_ds.data.loader import LoaderSettings, evaluation_batches
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.metrics import average, compute_metrics, task_score
from mtdnn_ds.tasks.spec import TaskSpec

Prepared = Mapping[str, Mapping[str, PreparedSplit]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Metrics of every evaluated task, and their averages."""

    metrics: dict[str, dict[str, float]]  # task -> metric -> value
    scores: dict[str, float]  # task -> mean of its metrics
    average: float  # mean of the scores


def evaluate(
    forward: Any,
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    prepared: Prepared,
    settings: LoaderSettings,
    device: torch.device,
) -> Evaluation:
    """Evaluate all dev splits of all tasks. `forward` is the engine or the bare model (PackedBatch -> logits (K, C)).

    Collective: all ranks must call this; every rank gets the same result.
    """
    wanted = [(task_id, name) for task_id, spec in enumerate(specs) for name in spec.dev_splits if name in prepared[spec.name]]
    if not wanted:
        return Evaluation(metrics={}, scores={}, average=0.0)
    outputs = predict(forward, wanted, specs, layout, prepared, settings, device)
    return dist.on_main(lambda: _scored(wanted, outputs, specs, prepared))


def _scored(wanted: Sequence[tuple[int, str]], outputs: Sequence[np.ndarray], specs: Sequence[TaskSpec], prepared: Prepared) -> Evaluation:
    metrics: dict[str, dict[str, float]] = {}
    for (task_id, split), rows in zip(wanted, outputs, strict=True):
        spec = specs[task_id]
        values = compute_metrics(spec.metrics, decode(spec, rows), prepared[spec.name][split].labels)
        metrics.setdefault(spec.name, {}).update({name + split.removeprefix("dev"): value for name, value in values.items()})
    scores = {name: task_score(values) for name, values in metrics.items()}
    return Evaluation(metrics=metrics, scores=scores, average=average(metrics))


def predict(
    forward: Any,
    wanted: Sequence[tuple[int, str]],
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    prepared: Prepared,
    settings: LoaderSettings,
    device: torch.device,
) -> list[np.ndarray]:
    """The outputs (rows, num_outputs) float32 of each wanted (task id, split), in row order, on every rank.

    Collective: all ranks must call this.
    """
    splits = [prepared[specs[task_id].name][name] for task_id, name in wanted]
    task_ids = [task_id for task_id, _ in wanted]
    mine: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    was_training = forward.training
    forward.eval()
    with torch.no_grad():
        for batch in evaluation_batches(task_ids, splits, len(specs), settings):
            logits_KC = forward(batch.to(device)).float().cpu().numpy()
            supervised = batch.sequence.rows.numpy()
            mine.append((batch.example_tasks[supervised], batch.example_rows[supervised], logits_KC))
    forward.train(was_training)
    gathered = [part for parts in dist.gather(mine) for part in parts]
    outputs = [
        np.full((split.num_rows, layout.num_outputs[task_id]), np.nan, dtype=np.float32)
        for task_id, split in zip(task_ids, splits, strict=True)
    ]
    seen = [np.zeros(split.num_rows, dtype=np.int64) for split in splits]
    for index_K, rows_K, logits_KC in gathered:
        for index in np.unique(index_K):
            members = index_K == index
            first = layout.first_column[task_ids[index]]
            outputs[index][rows_K[members]] = logits_KC[members, first : first + layout.num_outputs[task_ids[index]]]
            np.add.at(seen[index], rows_K[members], 1)
    assert all((counts == 1).all() for counts in seen), "an example was evaluated not exactly once"
    return outputs


def decode(spec: TaskSpec, outputs: np.ndarray) -> np.ndarray:
    """Class ids (rows,) int64, or scores (rows,) float32 for a regression."""
    return outputs[:, 0] if spec.kind == "regression" else outputs.argmax(axis=1)
