"""A model's outputs on a task's development rows as a report shows them: counts of right and wrong, pairs of
scores, and the worst errors, by the task's kind. Runs no model (predictions.py), draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtdnn_ds.data.examples import Decoded, Examples, TermOutputs
from mtdnn_ds.data.examples.sampled import SampledExamples
from mtdnn_ds.report.wrong_rows import WrongRow, wrong_rows
from mtdnn_ds.tasks.answer_metrics import text_f1
from mtdnn_ds.tasks.spec import TaskSpec

WORST = 10
_MOST_LABELS = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskAnswers:
    """A task's dev rows and what the model makes of them."""

    kind: str
    weights: str  # folder
    num_rows: int
    num_asked: int  # rows that were predicted
    labels: tuple[str, ...] = ()  # of the confusion counts
    confusion: tuple[tuple[int, ...], ...] = ()  # true x predicted
    scores: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # true, predicted
    num_wrong: int | None = None
    worst: tuple[WrongRow, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Predicted:
    """A task's dev examples with the model's outputs, raw and as answers."""

    spec: TaskSpec
    examples: Examples
    outputs: Sequence[TermOutputs]
    decoded: Decoded


def task_answers(spec: TaskSpec, examples: Examples, outputs: Sequence[TermOutputs]) -> TaskAnswers:
    """Counts and worst rows of one task, as far as its kind has them; without the name of the weights."""
    if spec.custom is not None or spec.kind not in _KINDS:
        note = f"a {spec.kind} has no picture of its own; its scores are in the tables above"
        return _answers(spec, examples, note=note)

    whole = examples.base if isinstance(examples, SampledExamples) else examples
    decoded = whole.decode(outputs)
    return _KINDS[spec.kind](_Predicted(spec=spec, examples=examples, outputs=outputs, decoded=decoded))


def _answers(spec: TaskSpec, examples: Examples, **found: Any) -> TaskAnswers:
    num_rows = examples.num_examples
    return TaskAnswers(kind=spec.kind, weights="", num_rows=num_rows, num_asked=num_rows, **found)


def _class_answers(task: _Predicted) -> TaskAnswers:
    """Worst: the rows whose right label has the least probability."""
    right, predicted = _indices(task.decoded)
    labels = task.spec.labels
    probabilities = _softmax(task.outputs[0].values.astype(np.float64))
    of_right = probabilities[np.arange(len(right)), right]
    wrong = np.flatnonzero(right != predicted)
    worst = wrong[np.argsort(of_right[wrong], kind="stable")][:WORST]

    def described(row: int) -> tuple[str, str, str]:
        sure = probabilities[row, predicted[row]]
        how_wrong = f"{sure:.1%} sure, and {of_right[row]:.1%} of the right label"
        return labels[right[row]], labels[predicted[row]], how_wrong

    names, confusion = _confusion(right, predicted, labels)
    return _answers(
        task.spec,
        task.examples,
        labels=names,
        confusion=confusion,
        num_wrong=len(wrong),
        worst=wrong_rows(task.spec, task.examples, worst, described),
    )


def _score_answers(task: _Predicted) -> TaskAnswers:
    """Worst: the rows whose score is farthest off."""
    right = np.asarray(task.decoded.references, dtype=np.float64)
    predicted = np.asarray(task.decoded.predictions, dtype=np.float64)
    gaps = np.abs(right - predicted)
    worst = np.argsort(-gaps, kind="stable")[:WORST]

    def described(row: int) -> tuple[str, str, str]:
        return f"{right[row]:.3g}", f"{predicted[row]:.3g}", f"off by {gaps[row]:.3g}"

    return _answers(
        task.spec,
        task.examples,
        scores=(tuple(right.tolist()), tuple(predicted.tolist())),
        worst=wrong_rows(task.spec, task.examples, worst, described),
    )


def _word_answers(task: _Predicted) -> TaskAnswers:
    """Worst: the rows with most wrong words. Counts are of words."""
    references, predictions = task.decoded.references, task.decoded.predictions
    ids = {label: index for index, label in enumerate(task.spec.labels)}
    pairs = [
        (ids[known], ids[own])
        for row, answer in zip(references, predictions, strict=True)
        for known, own in zip(row, answer, strict=True)
    ]
    right, predicted = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    names, confusion = _confusion(right, predicted, task.spec.labels)

    missed = np.array([_num_different(*both) for both in zip(references, predictions, strict=True)])
    worst = [int(row) for row in np.argsort(-missed, kind="stable")[:WORST] if missed[row]]

    def described(row: int) -> tuple[str, str, str]:
        how_wrong = f"{missed[row]} of {len(references[row])} words"
        return _entities(references[row]), _entities(predictions[row]), how_wrong

    rows = np.array(worst, dtype=np.int64)
    return _answers(
        task.spec,
        task.examples,
        labels=names,
        confusion=confusion,
        num_wrong=int((missed > 0).sum()),
        worst=wrong_rows(task.spec, task.examples, rows, described, by_split_row=True),
        note="counted by words; O is no entity",
    )


def _num_different(tags: Sequence[str], others: Sequence[str]) -> int:
    return sum(tag != other for tag, other in zip(tags, others, strict=True))


def _entities(tags: Sequence[str]) -> str:
    """`B-name@1 I-name@2`"""
    return " ".join(f"{tag}@{number}" for number, tag in enumerate(tags, 1) if tag != "O") or "no entity"


def _choice_answers(task: _Predicted) -> TaskAnswers:
    right, predicted = _indices(task.decoded)
    wrong = np.flatnonzero(right != predicted)

    def described(row: int) -> tuple[str, str, str]:
        return f"choice {right[row] + 1}", f"choice {predicted[row] + 1}", "another choice"

    return _answers(
        task.spec,
        task.examples,
        num_wrong=len(wrong),
        worst=wrong_rows(task.spec, task.examples, wrong[:WORST], described),
        note="the first wrong rows",
    )


def _span_answers(task: _Predicted) -> TaskAnswers:
    """Worst: the answers with the least F1."""
    references, predictions = task.decoded.references, task.decoded.predictions
    f1 = np.array([_best_f1(*both) for both in zip(predictions, references, strict=True)])
    worst = [int(row) for row in np.argsort(f1, kind="stable")[:WORST] if f1[row] < 1]

    def described(row: int) -> tuple[str, str, str]:
        right = " | ".join(references[row]) or "no answer"
        return right, predictions[row] or "no answer", f"F1 {f1[row]:.2f}"

    rows = np.array(worst, dtype=np.int64)
    return _answers(
        task.spec,
        task.examples,
        num_wrong=int((f1 < 1).sum()),
        worst=wrong_rows(task.spec, task.examples, rows, described, by_split_row=True),
        note="an answer is wrong here if its F1 is below 1",
    )


def _best_f1(answer: str, references: Sequence[str]) -> float:
    """Against the nearest reference; where there is none, no answer is right."""
    return max((text_f1(answer, reference) for reference in references), default=float(not answer))


_KINDS: Mapping[str, Callable[[_Predicted], TaskAnswers]] = {
    "classification": _class_answers,
    "regression": _score_answers,
    "similarity": _score_answers,
    "token_classification": _word_answers,
    "multiple_choice": _choice_answers,
    "span": _span_answers,
}


def _indices(decoded: Decoded) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) int64: right ones and predicted ones."""
    right = np.asarray(decoded.references).astype(np.int64)
    predicted = np.asarray(decoded.predictions).astype(np.int64)
    return right, predicted


def _softmax(logits_SC: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits_SC - logits_SC.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _confusion(
    right: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Names and counts of true x predicted labels; of very many labels the most frequent ones, and the others
    together.
    """
    names = tuple(labels)
    places = np.arange(len(labels))  # of each label in the counts
    if len(labels) > _MOST_LABELS:
        num_kept = _MOST_LABELS - 1
        by_frequency = np.argsort(-np.bincount(right, minlength=len(labels)), kind="stable")
        kept = np.sort(by_frequency[:num_kept])
        places = np.full(len(labels), num_kept)
        places[kept] = np.arange(num_kept)
        names = (*(labels[index] for index in kept), f"{len(labels) - num_kept} others")

    size = len(names)
    pairs = places[right] * size + places[predicted]
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    return names, tuple(tuple(row) for row in counts.tolist())
