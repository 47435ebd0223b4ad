"""Evaluation: every row of every dev split exactly once over all ranks, metrics from all predictions. Trains nothing.

A task's second dev split (MNLI's dev_mm) gives the same metrics with its suffix (accuracy_mm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mtdnn_ds import dist
from mtdnn_ds.data.batches.loader import LoaderSettings, evaluation_batches
from mtdnn_ds.data.examples import Examples, TermOutputs
from mtdnn_ds.faults.heartbeat import mark
from mtdnn_ds.losses.readout import read_out
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.metrics import average, compute_metrics, task_score
from mtdnn_ds.tasks.spec import TaskSpec

BATCHES_BETWEEN_QUESTIONS = 8  # whether to stop: an exchange of one number
ExamplesOf = Mapping[str, Mapping[str, Examples]]
Wanted = Sequence[tuple[int, str]]  # task id, split


class EvaluationStopped(Exception):
    """A rank wants to stop; raised on all of them."""


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
    examples: ExamplesOf,
    settings: LoaderSettings,
    device: torch.device,
    *,
    stop_asked: Callable[[], bool] | None = None,
) -> Evaluation:
    """Evaluate all dev splits of all tasks. `forward` is the engine or the bare model (PackedBatch -> {form: outputs}).

    Collective: all ranks must call this; every rank gets the same result. Raises EvaluationStopped on all ranks when `stop_asked`,
    which is called now and then, says True on any of them.
    """
    wanted = [
        (task_id, name)
        for task_id, spec in enumerate(specs)
        for name in spec.dev_splits
        if name in examples[spec.name]
    ]
    if not wanted:
        return Evaluation(metrics={}, scores={}, average=0.0)
    outputs = predict(forward, wanted, specs, layout, examples, settings, device, stop_asked=stop_asked)
    return dist.on_main(lambda: scored(wanted, outputs, specs, examples))


def scored(
    wanted: Wanted, outputs: Sequence[Sequence[TermOutputs]], specs: Sequence[TaskSpec], examples: ExamplesOf
) -> Evaluation:
    """Metrics of the outputs of each wanted (task id, split)."""
    metrics: dict[str, dict[str, float]] = {}
    for (task_id, split), of_split in zip(wanted, outputs, strict=True):
        spec = specs[task_id]
        decoded = examples[spec.name][split].decode(of_split)
        values = compute_metrics(spec.metrics, decoded.predictions, decoded.references, spec.custom)
        metrics.setdefault(spec.name, {}).update(
            {name + split.removeprefix("dev"): value for name, value in values.items()}
        )
    scores = {name: task_score(values) for name, values in metrics.items()}
    return Evaluation(metrics=metrics, scores=scores, average=average(metrics))


def predict(
    forward: Any,
    wanted: Wanted,
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    examples: ExamplesOf,
    settings: LoaderSettings,
    device: torch.device,
    *,
    stop_asked: Callable[[], bool] | None = None,
) -> list[list[TermOutputs]]:
    """The outputs of each term of each wanted (task id, split), in the order of the split's examples, on every rank.

    Collective: all ranks must call this.
    """
    sets = [examples[specs[task_id].name][name] for task_id, name in wanted]
    tasks = [task_id for task_id, _ in wanted]
    mine: list[_Rows] = []
    was_training = forward.training
    forward.eval()
    with torch.no_grad():
        for number, batch in enumerate(
            evaluation_batches(tasks, sets, layout, settings)
        ):  # equally many on every rank
            if (
                stop_asked is not None
                and number % BATCHES_BETWEEN_QUESTIONS == 0
                and dist.any_rank(stop_asked(), device)
            ):
                forward.train(was_training)
                raise EvaluationStopped
            mark(f"evaluating, micro-batch {number + 1}")
            outputs = forward(batch.to(device))
            for form, targets in batch.targets.items():
                examples_K = targets.examples[targets.groups.numpy()]
                mine.append(
                    _Rows(
                        values=read_out(form, outputs[form]).float().cpu().numpy(),
                        term_ids=targets.term_ids.numpy(),
                        labels=targets.labels.numpy(),
                        sets=batch.example_tasks[examples_K],
                        examples=batch.example_rows[examples_K],
                    )
                )
    forward.train(was_training)
    gathered = [part for parts in dist.gather(mine) for part in parts]
    return [
        [
            _in_order(gathered, index, term_id, layout, of_set.num_examples)
            for term_id in layout.terms_of(task)
        ]
        for index, (task, of_set) in enumerate(zip(tasks, sets, strict=True))
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """One form's rows of one micro-batch on the host."""

    values: np.ndarray  # (K, C)
    term_ids: np.ndarray  # (K,)
    labels: np.ndarray  # (K,)
    sets: np.ndarray  # (K,) which of the evaluated splits
    examples: np.ndarray  # (K,) example of it


def _in_order(
    gathered: Sequence[_Rows], index: int, term_id: int, layout: HeadLayout, num_examples: int
) -> TermOutputs:
    """Rows of one term in one split, by example; rows of an example keep their order."""
    term = layout.terms[term_id]
    columns = (
        slice(term.first_column, term.first_column + term.num_outputs) if term.num_outputs else slice(None)
    )
    values, labels, examples = [], [], []
    for rows in gathered:
        members = np.flatnonzero((rows.sets == index) & (rows.term_ids == term_id))
        if members.size:
            values.append(rows.values[members, columns])
            labels.append(rows.labels[members])
            examples.append(rows.examples[members])
    examples_K = np.concatenate([np.zeros(0, dtype=np.int64), *examples])
    order = np.argsort(examples_K, kind="stable")
    counts = np.bincount(examples_K, minlength=num_examples)
    assert len(np.unique(examples_K)) == num_examples or term.suffix, (
        "an example was evaluated not exactly once"
    )
    return TermOutputs(
        values=np.concatenate(values)[order]
        if values
        else np.zeros((0, max(term.num_outputs, 1)), dtype=np.float32),
        labels=np.concatenate([np.zeros(0, dtype=np.float32), *labels])[order],
        offsets=np.concatenate(([0], np.cumsum(counts))),
    )
