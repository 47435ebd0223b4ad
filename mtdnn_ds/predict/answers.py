"""Answers: what a task says of each row, as plain values, from the outputs of its terms. No model, no files.

classification {label, probabilities}; regression and ranking {score}; multiple_choice {choice,
probabilities}; similarity {cosine}; token_classification {words, labels, entities}; span {text, start, end,
score}; conversational_span the same with type; a kind of the user's own {prediction} or {words, predictions}.
Characters of an entity or a span count from 0, the end is behind the last one.

Shape legend: R rows, K rows of a term, C its outputs, E windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtdnn_ds.config.errors import TrainingError
from mtdnn_ds.data.examples import Examples, TermOutputs
from mtdnn_ds.data.examples.conversations import ConversationExamples
from mtdnn_ds.data.examples.span_scores import BestSpans, best_spans, first_best
from mtdnn_ds.data.examples.spans import SpanExamples
from mtdnn_ds.data.rows.checked import CheckedRow
from mtdnn_ds.predict.sets import SetOfView
from mtdnn_ds.predict.word_rows import WordRows
from mtdnn_ds.tasks.layout import ANSWER_TYPES
from mtdnn_ds.tasks.spec import TaskSpec

Answer = dict[str, Any]

_SPAN, _UNKNOWN = ANSWER_TYPES.index("span"), ANSWER_TYPES.index("unknown")


def answers_of(
    task: int, spec: TaskSpec, part: SetOfView, rows: Sequence[CheckedRow], outputs: Sequence[TermOutputs]
) -> list[Answer]:
    """The task's answer to each row of the set. Raises TrainingError if an output is not finite."""
    for of_term in outputs:
        if not np.isfinite(of_term.values).all():
            raise TrainingError(
                f"{spec.name}: the model's outputs are not finite; it has diverged in training, "
                "use an earlier checkpoint"
            )

    maker = part.maker(task)
    if isinstance(maker, WordRows):
        return _of_words(spec, maker, _texts(part, rows), outputs[0])
    if spec.custom is not None:
        return [{"prediction": float(value)} for value in spec.custom.predictions(outputs[0].values)]
    return _ANSWERS[spec.kind](spec, maker, rows, outputs)


def _texts(part: SetOfView, rows: Sequence[CheckedRow]) -> list[str]:
    """The texts that places of words count characters of; a list of words has a blank between them."""
    if part.view.kind == "words":
        return [" ".join(row.texts) for row in rows]
    return [row.texts[0] for row in rows]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    exponentials = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _of_classes(
    spec: TaskSpec, maker: Examples, rows: Sequence[CheckedRow], outputs: Sequence[TermOutputs]
) -> list[Answer]:
    # SAN's outputs are logarithms of probabilities already, of which softmax gives the probabilities.
    scores = outputs[0].values
    answers = []
    for index, row in zip(scores.argmax(axis=1).tolist(), softmax(scores).tolist(), strict=True):
        probabilities = dict(zip(spec.labels, row, strict=True))
        answers.append({"label": spec.labels[index], "probabilities": probabilities})
    return answers


def _of_scores(
    spec: TaskSpec, maker: Examples, rows: Sequence[CheckedRow], outputs: Sequence[TermOutputs]
) -> list[Answer]:
    return [{"score": float(value)} for value in outputs[0].values[:, 0]]


def _of_pairs(
    spec: TaskSpec, maker: Examples, rows: Sequence[CheckedRow], outputs: Sequence[TermOutputs]
) -> list[Answer]:
    # Both rows of a pair have its cosine.
    return [{"cosine": float(value)} for value in outputs[0].values[::2, 0]]


def _of_choices(
    spec: TaskSpec, maker: Examples, rows: Sequence[CheckedRow], outputs: Sequence[TermOutputs]
) -> list[Answer]:
    return [
        {"choice": int(scores.argmax()), "probabilities": softmax(scores).tolist()}
        for scores in np.split(outputs[0].values[:, 0], outputs[0].offsets[1:-1])
    ]


def _of_words(spec: TaskSpec, maker: WordRows, texts: Sequence[str], outputs: TermOutputs) -> list[Answer]:
    ends = np.cumsum(maker.counts_R)[:-1]
    num_words = len(maker.is_asked_N)
    words = []
    for text, places in zip(texts, maker.places, strict=True):
        words.append([text[start:end] for start, end in places])

    answers: list[Answer] = []
    if spec.custom is not None:
        predicted_N = np.full(num_words, np.nan)
        predicted_N[maker.is_asked_N] = spec.custom.predictions(outputs.values)
        for own, row in zip(words, np.split(predicted_N, ends), strict=True):
            predictions = [None if np.isnan(value) else float(value) for value in row]
            answers.append({"words": own, "predictions": predictions})
        return answers

    unasked = spec.labels.index("O") if "O" in spec.labels else 0
    labels_N = np.full(num_words, unasked)
    labels_N[maker.is_asked_N] = outputs.values.argmax(axis=1)
    for text, places, own, ids in zip(texts, maker.places, words, np.split(labels_N, ends), strict=True):
        labels = [spec.labels[index] for index in ids.tolist()]
        answers.append({"words": own, "labels": labels, "entities": entities(text, places, labels)})
    return answers


def entities(text: str, places: Sequence[tuple[int, int]], labels: Sequence[str]) -> list[Answer]:
    """Runs of B-TYPE, I-TYPE, I-TYPE.

    An I- that continues nothing of its type begins one, as seqeval counts it.
    """
    found: list[Answer] = []
    before = "O"
    for (start, end), label in zip(places, labels, strict=True):
        position, _, name = label.partition("-")
        if position not in ("B", "I") or not name:
            before = "O"
            continue

        if position == "I" and before != "O" and found[-1]["type"] == name:
            found[-1].update(end=end, text=text[found[-1]["start"] : end])
        else:
            found.append({"type": name, "start": start, "end": end, "text": text[start:end]})
        before = label
    return found


def _of_spans(
    spec: TaskSpec, maker: Examples, rows: Sequence[CheckedRow], outputs: Sequence[TermOutputs]
) -> list[Answer]:
    assert isinstance(maker, SpanExamples)
    scores, windows = outputs[0], maker.windows
    threshold = spec.options["null_threshold"]
    spans = _spans(spec, maker, scores)
    window_R = first_best(spans.scores, windows.num_windows_R)

    answers = _texts_of_spans(maker, rows, window_R, spans)
    nulls_R = np.minimum.reduceat(scores.values[scores.offsets[:-1]].sum(axis=1), windows.first_windows_R)
    for answer, score, null in zip(answers, spans.scores[window_R].tolist(), nulls_R.tolist(), strict=True):
        answer["score"] = score
        if not np.isfinite(score) or (threshold is not None and null - score > threshold):
            answer.update(text="", start=None, end=None, score=null)
    return answers


def _of_turns(
    spec: TaskSpec, maker: Examples, rows: Sequence[CheckedRow], outputs: Sequence[TermOutputs]
) -> list[Answer]:
    """From the window whose `unknown` is the least likely, as evaluation does."""
    assert isinstance(maker, ConversationExamples)
    scores, types = outputs
    spans = _spans(spec, maker, scores)
    others_E = np.logaddexp.reduce(np.delete(types.values, _UNKNOWN, axis=1), axis=1)
    known_E = others_E - types.values[:, _UNKNOWN]
    window_R = first_best(known_E, maker.windows.num_windows_R)

    answers = _texts_of_spans(maker, rows, window_R, spans)
    kinds_R, scores_R = types.values[window_R].argmax(axis=1), spans.scores[window_R]
    for answer, kind, score in zip(answers, kinds_R.tolist(), scores_R.tolist(), strict=True):
        answer.update(type=ANSWER_TYPES[kind], score=score if np.isfinite(score) else 0.0)
        if kind != _SPAN or not np.isfinite(score):
            answer.update(text=ANSWER_TYPES[kind], start=None, end=None)
    return answers


def _spans(spec: TaskSpec, maker: SpanExamples | ConversationExamples, scores: TermOutputs) -> BestSpans:
    """The best span of each window."""
    windows = maker.windows
    return best_spans(
        scores.values,
        scores.offsets,
        windows.context_starts,
        windows.ends - windows.begins,
        spec.options["max_answer_tokens"],
    )


def _texts_of_spans(
    maker: SpanExamples | ConversationExamples,
    rows: Sequence[CheckedRow],
    window_R: np.ndarray,
    spans: BestSpans,
) -> list[Answer]:
    """Text and characters of the span in each row's window `window_R`."""
    windows = maker.windows
    first_R, last_R = spans.first[window_R], spans.last[window_R]
    begins = np.where(first_R >= 0, windows.begins[window_R], 0)
    starts, ends = windows.characters_of(np.arange(len(rows)), first_R + begins, last_R + begins)
    return [
        {"text": row.texts[1][start:end], "start": start, "end": end}
        for row, start, end in zip(rows, starts.tolist(), ends.tolist(), strict=True)
    ]


_ANSWERS: Mapping[
    str, Callable[[TaskSpec, Examples, Sequence[CheckedRow], Sequence[TermOutputs]], list[Answer]]
] = {
    "classification": _of_classes,
    "regression": _of_scores,
    "ranking": _of_scores,
    "similarity": _of_pairs,
    "multiple_choice": _of_choices,
    "span": _of_spans,
    "conversational_span": _of_turns,
}
"""Kind -> its answers; token_classification and kinds of the user's own are told apart before."""
