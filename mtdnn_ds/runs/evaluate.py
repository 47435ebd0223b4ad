"""Evaluation: every row of every dev split exactly once over all ranks, metrics from all predictions.

Trains nothing. A task's second dev split (MNLI's dev_mm) gives the same metrics with its suffix
(accuracy_mm).

Shape legend: K rows of a term, C its outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtdnn_ds import dist
from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.data.batches.loader import LoaderSettings, evaluation_batches
from mtdnn_ds.data.examples import Examples, TermOutputs
from mtdnn_ds.faults.heartbeat import heartbeat
from mtdnn_ds.losses.forms import read_out
from mtdnn_ds.runs.readback import Readback, waiting_bytes
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.tasks.layout import HeadLayout, Term
from mtdnn_ds.tasks.metrics import average, compute_metrics, task_score
from mtdnn_ds.tasks.spec import TaskSpec

BATCHES_BETWEEN_QUESTIONS = 8  # whether to stop: an exchange of one number
ExamplesOf = Mapping[str, Mapping[str, Examples]]
TaskSplits = Sequence[tuple[int, str]]  # task id, split


class EvaluationStopped(Exception):
    """A rank wants to stop; raised on all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Metrics of every evaluated task, and their averages."""

    metrics: dict[str, dict[str, float]]  # task -> metric -> value
    scores: dict[str, float]  # task -> mean of its metrics
    average: float  # mean of the scores


@dataclass(frozen=True, kw_only=True, slots=True)
class TermRows:
    """Rows of one term in one set of examples, as one micro-batch gave them, on the host."""

    values: np.ndarray  # (K, C)
    labels: np.ndarray  # (K,)
    examples: np.ndarray  # (K,) example of the set


@dataclass(frozen=True, kw_only=True, slots=True)
class _AskedRows:
    """The rows of one form in one micro-batch, of all terms and sets: what is known before their outputs."""

    term_ids: np.ndarray  # (K,)
    labels: np.ndarray  # (K,)
    sets: np.ndarray  # (K,) number of the set
    examples: np.ndarray  # (K,) example of the set


RowsOfTerms = dict[tuple[int, int], list[TermRows]]
"""(number of the set, term id) -> its rows, micro-batch by micro-batch."""


def evaluate(
    forward: Any,
    data: RunData,
    settings: LoaderSettings,
    device: torch.device,
    *,
    stop_asked: Callable[[], bool] | None = None,
) -> Evaluation:
    """Evaluate all dev splits of all tasks.

    `forward`: the engine or the bare model (PackedBatch -> {form: outputs}). Collective: all ranks must call
    this; every rank gets the same result. Raises EvaluationStopped on all ranks when `stop_asked`, which is
    called now and then, says True on any of them.
    """
    wanted = [
        (task_id, name)
        for task_id, spec in enumerate(data.specs)
        for name in spec.dev_splits
        if name in data.examples[spec.name]
    ]
    if not wanted:
        return Evaluation(metrics={}, scores={}, average=0.0)

    outputs = predict(forward, wanted, data, settings, device, stop_asked=stop_asked)
    return dist.on_main(lambda: scored(wanted, outputs, data.specs, data.examples))


def scored(
    wanted: TaskSplits,
    outputs: Sequence[Sequence[TermOutputs]],
    specs: Sequence[TaskSpec],
    examples: ExamplesOf,
) -> Evaluation:
    """Metrics of the outputs of each wanted (task id, split)."""
    metrics: dict[str, dict[str, float]] = {}
    for (task_id, split), of_split in zip(wanted, outputs, strict=True):
        spec = specs[task_id]
        decoded = examples[spec.name][split].decode(of_split)
        values = compute_metrics(spec.metrics, decoded.predictions, decoded.references, spec.custom)

        suffix = split.removeprefix("dev")
        of_task = metrics.setdefault(spec.name, {})
        of_task.update({name + suffix: value for name, value in values.items()})

    scores = {name: task_score(values) for name, values in metrics.items()}
    return Evaluation(metrics=metrics, scores=scores, average=average(metrics))


def predict(
    forward: Any,
    wanted: TaskSplits,
    data: RunData,
    settings: LoaderSettings,
    device: torch.device,
    *,
    stop_asked: Callable[[], bool] | None = None,
) -> list[list[TermOutputs]]:
    """The outputs of each term of each wanted (task id, split), in the order of the split's examples.

    They come to the host together, after the last micro-batch, or earlier where they are many (readback.py).
    Collective: all ranks must call this; every rank gets them all. Raises EvaluationStopped as evaluate does.
    """
    sets = [data.examples[data.specs[task_id].name][name] for task_id, name in wanted]
    tasks = [task_id for task_id, _ in wanted]
    was_training = forward.training
    forward.eval()

    here: RowsOfTerms = {}
    readback = Readback(most_bytes=waiting_bytes(device))
    with torch.no_grad(), closing(evaluation_batches(tasks, sets, data.layout, settings)) as batches:
        # Equally many micro-batches on every rank, so that the question below meets on all of them.
        for number, batch in enumerate(batches):
            asks_now = number % BATCHES_BETWEEN_QUESTIONS == 0
            if stop_asked is not None and asks_now and dist.any_rank(stop_asked(), device):
                forward.train(was_training)
                raise EvaluationStopped

            heartbeat(f"evaluating, micro-batch {number + 1}")
            outputs = forward(batch.to(device))
            add_rows(here, batch, outputs, data.layout, readback)
        readback.read()
    forward.train(was_training)

    of_ranks = dist.gather(here)
    result = []
    for index, (task, examples) in enumerate(zip(tasks, sets, strict=True)):
        of_terms = []
        for term_id in data.layout.terms_of(task):
            rows = [part for of_rank in of_ranks for part in of_rank.get((index, term_id), [])]
            term = data.layout.terms[term_id]
            of_terms.append(by_example(rows, term, examples.num_examples))
            assert term.suffix or _covers(rows, examples), "an example was evaluated not exactly once"
        result.append(of_terms)
    return result


def add_rows(
    found: RowsOfTerms,
    batch: PackedBatch,
    outputs: Mapping[str, Tensor],
    layout: HeadLayout,
    readback: Readback,
) -> None:
    """Add what the heads gave for a micro-batch to `found`, once `readback` has it on the host.

    `batch.example_tasks` holds the number of the set of each example; `outputs`: {form: (rows of its terms,
    columns)}.
    """
    for form, targets in batch.targets.items():
        if not targets.num_rows:
            continue

        term_ids, labels = targets.term_ids.numpy(), targets.labels.numpy()
        places = targets.examples[targets.groups.numpy()]
        sets, examples = batch.example_tasks[places], batch.example_rows[places]

        asked = _AskedRows(term_ids=term_ids, labels=labels, sets=sets, examples=examples)
        readback.add(form, read_out(form, outputs[form]).float(), partial(_keep_rows, found, asked, layout))


def _keep_rows(found: RowsOfTerms, asked: _AskedRows, layout: HeadLayout, values: np.ndarray) -> None:
    """`values` (K, C) of the asked rows, to their sets and terms."""
    for term_id in np.unique(asked.term_ids).tolist():
        columns = _columns(layout.terms[term_id])
        is_of_term = asked.term_ids == term_id
        for index in np.unique(asked.sets[is_of_term]).tolist():
            own = np.flatnonzero(is_of_term & (asked.sets == index))
            rows = TermRows(
                values=values[own, columns], labels=asked.labels[own], examples=asked.examples[own]
            )
            found.setdefault((index, term_id), []).append(rows)


def by_example(parts: Sequence[TermRows], term: Term, num_examples: int) -> TermOutputs:
    """Rows of one term in one set, by example; those of an example keep their order. It may have none."""
    examples_K = np.concatenate([np.zeros(0, dtype=np.int64), *(part.examples for part in parts)])
    labels_K = np.concatenate([np.zeros(0, dtype=np.float32), *(part.labels for part in parts)])
    values_KC = np.zeros((0, max(term.num_outputs, 1)), dtype=np.float32)
    if parts:
        values_KC = np.concatenate([part.values for part in parts])

    order = np.argsort(examples_K, kind="stable")
    counts = np.bincount(examples_K, minlength=num_examples)
    return TermOutputs(
        values=values_KC[order],
        labels=labels_K[order],
        offsets=np.concatenate(([0], np.cumsum(counts))),
    )


def _columns(term: Term) -> slice:
    """A term's columns of its head's outputs; all of them where the head has none for each term."""
    if not term.num_outputs:
        return slice(None)
    return slice(term.columns.start, term.columns.stop)


def _covers(parts: Sequence[TermRows], examples: Examples) -> bool:
    """Whether every example of the set has rows."""
    found = [part.examples for part in parts]
    return len(np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))) == examples.num_examples
