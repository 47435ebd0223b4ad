"""What a run's best weights answer on development rows: counts of right and wrong, pairs of scores, and the worst errors with their texts.

Classifications and scores of large dev sets: rows at equal distances, at most as many as asked for. Draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mtdnn_ds.data.examples import Decoded, Examples, TermOutputs
from mtdnn_ds.data.examples.sampled import SampledExamples
from mtdnn_ds.data.sources.tables import iterate_rows, place_of, row_word
from mtdnn_ds.tasks.answer_metrics import text_f1
from mtdnn_ds.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from mtdnn_ds.runs.load import FinishedRun

WORST = 10
_BY_ROW = (
    "classification",
    "regression",
)  # kinds whose examples are rows, so that some of them can stand for all
_MOST_LABELS = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class WrongRow:
    """One row that the model gets wrong."""

    place: str  # file and line
    texts: tuple[tuple[str, str], ...]  # column, text
    right: str
    predicted: str
    how_wrong: str


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


def answers_of_run(
    found: FinishedRun, say: Callable[[str], None], *, max_rows: int
) -> dict[str, TaskAnswers]:
    """Of every task with a dev split, from its own best weights. Raises UserErrors if data or weights are not there."""
    import torch

    from mtdnn_ds.checkpoint.weights import read_weights
    from mtdnn_ds.runs.evaluate import predict
    from mtdnn_ds.runs.load import best_folders, load_run, load_weights
    from mtdnn_ds.runs.setup import prepare_run_data

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = prepare_run_data(
        found.recipe,
        found.specs,
        say,
        splits={"dev", *(name for spec in found.specs for name in spec.dev_splits[:1])},
    )
    loaded = load_run(found, device=device)
    ids = {spec.name: index for index, spec in enumerate(data.specs) if spec.dev_splits}
    sets = {
        name: _some(data.specs[ids[name]], data.examples[name][data.specs[ids[name]].dev_splits[0]], max_rows)
        for name in ids
    }
    answers: dict[str, TaskAnswers] = {}
    for folder, tasks in best_folders(found.folder, list(ids), found.weights_folder).items():
        load_weights(loaded.model, read_weights(folder), folder)
        say(f"predicting dev rows of {', '.join(tasks)} with {folder}")
        wanted = [(ids[name], data.specs[ids[name]].dev_splits[0]) for name in tasks]
        examples = {name: {data.specs[ids[name]].dev_splits[0]: sets[name]} for name in tasks}
        outputs = predict(loaded.model, wanted, data.specs, data.layout, examples, loaded.settings, device)
        for name, of_task in zip(tasks, outputs, strict=True):
            spec = data.specs[ids[name]]
            own = found.folder.best / name
            weights = str((own if own.is_dir() else folder).relative_to(found.folder.path))
            answers[name] = replace(
                task_answers(spec, sets[name], of_task), weights=weights, num_rows=sets[name].split.num_rows
            )
    return {name: answers[name] for name in ids}


def _some(spec: TaskSpec, examples: Examples, most: int) -> Examples:
    """The examples, or rows of them at equal distances."""
    if spec.kind not in _BY_ROW or spec.custom is not None or examples.num_examples <= most:
        return examples
    return SampledExamples(examples, np.linspace(0, examples.num_examples - 1, most).round().astype(np.int64))


def task_answers(spec: TaskSpec, examples: Examples, outputs: Sequence[TermOutputs]) -> TaskAnswers:
    """Counts and worst rows of one task, as far as its kind has them."""
    blank = TaskAnswers(
        kind=spec.kind, weights="", num_rows=examples.num_examples, num_asked=examples.num_examples
    )
    if spec.custom is not None or spec.kind not in _KINDS:
        return replace(
            blank, note=f"a {spec.kind} has no picture of its own; its scores are in the tables above"
        )
    whole = examples.base if isinstance(examples, SampledExamples) else examples
    decoded = whole.decode(outputs)
    return _KINDS[spec.kind](spec, examples, outputs, decoded, blank)


def _classes(
    spec: TaskSpec, examples: Examples, outputs: Sequence[TermOutputs], decoded: Decoded, blank: TaskAnswers
) -> TaskAnswers:
    right, predicted = (
        np.asarray(each).astype(np.int64) for each in (decoded.references, decoded.predictions)
    )
    logits = outputs[0].values.astype(np.float64)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    of_right, every = probabilities[np.arange(len(right)), right], np.arange(len(right))
    wrong = every[right != predicted]
    worst = wrong[np.argsort(of_right[wrong], kind="stable")][:WORST]
    counts, labels = _counted(right, predicted, spec.labels)
    says = {
        int(row): f"{probabilities[row, predicted[row]]:.1%} sure, and {of_right[row]:.1%} of the right label"
        for row in worst
    }
    rows = _wrong_rows(
        spec, examples, worst, lambda row: (spec.labels[right[row]], spec.labels[predicted[row]], says[row])
    )
    return replace(blank, labels=labels, confusion=counts, num_wrong=len(wrong), worst=rows)


def _numbers(
    spec: TaskSpec, examples: Examples, outputs: Sequence[TermOutputs], decoded: Decoded, blank: TaskAnswers
) -> TaskAnswers:
    right, predicted = (
        np.asarray(each, dtype=np.float64) for each in (decoded.references, decoded.predictions)
    )
    worst = np.argsort(-np.abs(right - predicted), kind="stable")[:WORST]
    rows = _wrong_rows(
        spec,
        examples,
        worst,
        lambda row: (
            f"{right[row]:.3g}",
            f"{predicted[row]:.3g}",
            f"off by {abs(right[row] - predicted[row]):.3g}",
        ),
    )
    return replace(blank, scores=(tuple(right.tolist()), tuple(predicted.tolist())), worst=rows)


def _words(
    spec: TaskSpec, examples: Examples, outputs: Sequence[TermOutputs], decoded: Decoded, blank: TaskAnswers
) -> TaskAnswers:
    ids = {label: index for index, label in enumerate(spec.labels)}
    pairs = [
        (ids[known], ids[own])
        for row, answer in zip(decoded.references, decoded.predictions, strict=True)
        for known, own in zip(row, answer, strict=True)
    ]
    right, predicted = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    counts, labels = _counted(right, predicted, spec.labels)
    missed = np.array(
        [
            sum(a != b for a, b in zip(known, own, strict=True))
            for known, own in zip(decoded.references, decoded.predictions, strict=True)
        ]
    )
    worst = [int(row) for row in np.argsort(-missed, kind="stable")[:WORST] if missed[row]]

    def described(row: int) -> tuple[str, str, str]:
        return (
            _entities(decoded.references[row]),
            _entities(decoded.predictions[row]),
            f"{missed[row]} of {len(decoded.references[row])} words",
        )

    rows = _wrong_rows(spec, examples, np.array(worst, dtype=np.int64), described, by_split_row=True)
    note = "counted by words; O is no entity"
    return replace(
        blank, labels=labels, confusion=counts, num_wrong=int((missed > 0).sum()), worst=rows, note=note
    )


def _entities(tags: Sequence[str]) -> str:
    return " ".join(f"{tag}@{number}" for number, tag in enumerate(tags, 1) if tag != "O") or "no entity"


def _choices(
    spec: TaskSpec, examples: Examples, outputs: Sequence[TermOutputs], decoded: Decoded, blank: TaskAnswers
) -> TaskAnswers:
    right, predicted = (
        np.asarray(each).astype(np.int64) for each in (decoded.references, decoded.predictions)
    )
    wrong = np.flatnonzero(right != predicted)
    rows = _wrong_rows(
        spec,
        examples,
        wrong[:WORST],
        lambda row: (f"choice {right[row] + 1}", f"choice {predicted[row] + 1}", "another choice"),
    )
    return replace(blank, num_wrong=len(wrong), worst=rows, note="the first wrong rows")


def _spans(
    spec: TaskSpec, examples: Examples, outputs: Sequence[TermOutputs], decoded: Decoded, blank: TaskAnswers
) -> TaskAnswers:
    f1 = np.array(
        [
            max((text_f1(own, each) for each in known), default=float(not own))
            for own, known in zip(decoded.predictions, decoded.references, strict=True)
        ]
    )
    worst = np.array([row for row in np.argsort(f1, kind="stable")[:WORST] if f1[row] < 1], dtype=np.int64)
    rows = _wrong_rows(
        spec,
        examples,
        worst,
        lambda row: (
            " | ".join(decoded.references[row]) or "no answer",
            decoded.predictions[row] or "no answer",
            f"F1 {f1[row]:.2f}",
        ),
        by_split_row=True,
    )
    return replace(
        blank, num_wrong=int((f1 < 1).sum()), worst=rows, note="an answer is wrong here if its F1 is below 1"
    )


_KINDS: Mapping[str, Callable[..., TaskAnswers]] = {
    "classification": _classes,
    "regression": _numbers,
    "similarity": _numbers,
    "token_classification": _words,
    "multiple_choice": _choices,
    "span": _spans,
}


def _counted(
    right: np.ndarray, predicted: np.ndarray, labels: Sequence[str]
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Counts of true x predicted labels; of very many labels the most frequent ones, and the others together."""
    kept = np.arange(len(labels))
    names = tuple(labels)
    if len(labels) > _MOST_LABELS:
        frequent = np.argsort(-np.bincount(right, minlength=len(labels)), kind="stable")[: _MOST_LABELS - 1]
        kept = np.full(len(labels), _MOST_LABELS - 1)
        kept[np.sort(frequent)] = np.arange(_MOST_LABELS - 1)
        names = (*(labels[index] for index in np.sort(frequent)), f"{len(labels) - _MOST_LABELS + 1} others")
    size = len(names)
    counts = np.bincount(kept[right] * size + kept[predicted], minlength=size * size).reshape(size, size)
    return tuple(tuple(row) for row in counts.tolist()), names


def _wrong_rows(
    spec: TaskSpec,
    examples: Examples,
    rows: np.ndarray,
    described: Callable[[int], tuple[str, str, str]],
    *,
    by_split_row: bool = False,
) -> tuple[WrongRow, ...]:
    """The given rows with their texts, read again from the source. `by_split_row`: rows count the split's rows, not its examples."""
    source = spec.splits[spec.dev_splits[0]]
    numbers = [
        int(examples.split.source_rows[row]) if by_split_row else examples.source_row(int(row))
        for row in rows
    ]
    texts: dict[int, Any] = {}
    for number, cells in iterate_rows(source) if numbers else ():
        if number in numbers and isinstance(cells, tuple):
            texts[number] = cells
            if len(texts) == len(set(numbers)):
                break
    found = []
    for row, number in zip(rows.tolist(), numbers, strict=True):
        right, predicted, how = described(row)
        cells = texts.get(number, ())
        shown = tuple(
            (column, _shown(cell)) for column, cell in zip(source.text_columns, cells, strict=False)
        )
        found.append(
            WrongRow(
                place=f"{place_of(source)}, {row_word(source)} {number}",
                texts=shown,
                right=right,
                predicted=predicted,
                how_wrong=how,
            )
        )
    return tuple(found)


def _shown(cell: object) -> str:
    words = " ".join(map(str, cell)) if isinstance(cell, (list, tuple)) else str(cell)
    return words if len(words) <= 600 else words[:599] + "…"
