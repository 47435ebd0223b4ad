"""Examples of conversational_span: windows of the story behind the last turns, with the answer's type.

The span term is that of span (spans.py). The answer-type term has one row for each window: the answer's type
where the window holds the answer or what supports it, else `unknown`. A question is answered from the window
whose `unknown` is the least likely: its likeliest type decides between its best span, "yes", "no" and
"unknown". Where answers are pieces of the story (QuAC) yes and no are spans too, and no answer is
CANNOTANSWER.

Shape legend: R rows of the split, E windows, B windows asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtdnn_ds.config.errors import TrainingError
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.examples.base import Decoded, Gathered, TargetRows, TermOutputs
from mtdnn_ds.data.examples.span_scores import best_spans, first_best
from mtdnn_ds.data.examples.spans import span_targets, texts_of
from mtdnn_ds.data.examples.windows import Windows
from mtdnn_ds.tasks.answer_metrics import CANNOT_ANSWER
from mtdnn_ds.tasks.layout import ANSWER_TYPES
from mtdnn_ds.tasks.spec import TaskSpec

_SPAN, _UNKNOWN = ANSWER_TYPES.index("span"), ANSWER_TYPES.index("unknown")


class ConversationExamples:
    """Windows of the questions of conversations (CoQA, QuAC).

    A history that is too long loses its oldest words.
    """

    def __init__(self, spec: TaskSpec, split: PreparedSplit, *, max_length: int) -> None:
        self.split, self.max_answer_tokens = split, spec.options["max_answer_tokens"]
        self.windows = Windows(
            split,
            task=spec.name,
            max_length=max_length,
            stride=spec.options["stride"],
            keeps_end_of_first=True,
        )
        self.num_examples, self.lengths = self.windows.num_windows, self.windows.lengths
        self.rows = self.windows.rows

        self.is_free_R = split.number_column("is_free").astype(bool)
        first_R, last_R = self.windows.tokens_of(
            split.number_column("answer_start"), split.number_column("answer_end")
        )
        # Where people wrote yes or no, the span that supports it is not the answer.
        has_span_R = (split.labels == _SPAN) | ~self.is_free_R
        self.answers = np.where(has_span_R, first_R, -1), np.where(has_span_R, last_R, -1)
        self.types_E = self._types(first_R, last_R)

    def _types(self, first_R: np.ndarray, last_R: np.ndarray) -> np.ndarray:
        """Label of each window (E,).

        It is its row's type if the window holds all of the support, or as much as a window can; else unknown.
        """
        windows = self.windows
        first_E, last_E = first_R[windows.rows], last_R[windows.rows]
        in_window_E = np.minimum(windows.ends, last_E + 1) - np.maximum(windows.begins, first_E)
        most_E = np.maximum.reduceat(in_window_E, windows.first_windows_R)[windows.rows]
        whole_E = np.minimum(windows.ends - windows.begins, last_E + 1 - first_E)

        types_E = self.split.labels[windows.rows]
        keeps_type_E = np.isnan(types_E) | (in_window_E == most_E) | (in_window_E == whole_E)
        return np.where(keeps_type_E, types_E, np.float32(_UNKNOWN))

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        input_ids, token_type_ids, lengths = self.windows.gather(examples_B)
        every, labels_B = np.arange(len(examples_B)), self.types_E[examples_B]
        return Gathered(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            lengths=lengths,
            examples=every,
            targets=[
                span_targets(self.windows, examples_B, lengths, self.answers, ~np.isnan(labels_B)),
                TargetRows(rows=every, labels=labels_B, examples=every),
            ],
        )

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        """The answer to each question in words, and those of people.

        Raises TrainingError if outputs are not finite.
        """
        scores, types = outputs
        if not np.isfinite(types.values).all():
            raise TrainingError(
                "predicted answer types are not finite: the model has diverged; lower optimizer.lr"
            )

        windows, rows = self.windows, np.arange(self.split.num_rows)
        spans = best_spans(
            scores.values,
            scores.offsets,
            windows.context_starts,
            windows.ends - windows.begins,
            self.max_answer_tokens,
        )
        of_known = np.delete(types.values, _UNKNOWN, axis=1)
        known_E = np.logaddexp.reduce(of_known, axis=1) - types.values[:, _UNKNOWN]  # log-odds

        window_R = first_best(known_E, windows.num_windows_R)
        types_R = types.values[window_R].argmax(axis=1)
        texts = texts_of(windows, rows, window_R, spans.first, spans.last)
        predictions = [
            self._answer(int(kind), text, bool(is_free))
            for kind, text, is_free in zip(types_R, texts, self.is_free_R, strict=True)
        ]
        return Decoded(predictions=predictions, references=self.split.column("answers", rows))

    @staticmethod
    def _answer(kind: int, span: str, is_free: bool) -> str:
        if kind == _SPAN:
            return span
        if is_free:
            return ANSWER_TYPES[kind]
        if kind == _UNKNOWN:
            return CANNOT_ANSWER
        return span

    def source_row(self, example: int) -> int:
        return int(self.split.source_rows[self.windows.rows[example]])
