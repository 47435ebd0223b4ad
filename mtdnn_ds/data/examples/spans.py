"""Examples of span: one window of a question's context is one example. Windows are cut in windows.py.

A question is answered from all its windows. Every token of a window is a row of the span term, as in
transformers' BertForQuestionAnswering; its label is 1 where the answer starts, plus 2 where it ends. The
first token (CLS) is both in a window that does not hold the whole answer, and where there is none.

Shape legend: R rows of the split, E windows, B windows asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.examples.base import Decoded, Gathered, TargetRows, TermOutputs
from mtdnn_ds.data.examples.span_scores import best_spans, first_best
from mtdnn_ds.data.examples.windows import Windows
from mtdnn_ds.data.ragged import starts_of
from mtdnn_ds.tasks.spec import TaskSpec

STARTS, ENDS = 1, 2


class SpanExamples:
    """Windows of questions about texts (SQuAD)."""

    def __init__(self, spec: TaskSpec, split: PreparedSplit, *, max_length: int) -> None:
        self.split = split
        self.max_answer_tokens = spec.options["max_answer_tokens"]
        self.null_threshold = spec.options["null_threshold"]
        num_unanswerable = int((split.labels == 0).sum())
        if num_unanswerable and self.null_threshold is None:
            raise ConfigError(
                f"tasks.{spec.name}.null_threshold: missing; {num_unanswerable:,} of {split.num_rows:,} "
                f"questions of {split.split} have no answer, "
                "and without a threshold every question gets one; "
                "set it (0 is usual), or leave those questions out"
            )

        self.windows = Windows(split, task=spec.name, max_length=max_length, stride=spec.options["stride"])
        self.num_examples, self.lengths = self.windows.num_windows, self.windows.lengths
        self.rows = self.windows.rows
        self.answers = self.windows.tokens_of(
            split.number_column("answer_start"), split.number_column("answer_end")
        )

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        input_ids, token_type_ids, lengths = self.windows.gather(examples_B)
        known_B = ~np.isnan(self.split.labels[self.windows.rows[examples_B]])
        return Gathered(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            lengths=lengths,
            examples=np.arange(len(examples_B)),
            targets=[span_targets(self.windows, examples_B, lengths, self.answers, known_B)],
        )

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        """The context's own words for each question, and people's answers.

        The words are "" where the question counts as unanswerable. Raises TrainingError if outputs are not
        finite.
        """
        (scores,) = outputs
        windows, rows = self.windows, np.arange(self.split.num_rows)
        spans = best_spans(
            scores.values,
            scores.offsets,
            windows.context_starts,
            windows.ends - windows.begins,
            self.max_answer_tokens,
        )
        window_R = first_best(spans.scores, windows.num_windows_R)
        texts = texts_of(windows, rows, window_R, spans.first, spans.last)

        if self.null_threshold is not None:
            # The score of no answer is that of CLS as start and end; a row has the lowest of its windows.
            nulls_E = scores.values[scores.offsets[:-1]].sum(axis=1)
            lead_R = np.minimum.reduceat(nulls_E, windows.first_windows_R) - spans.scores[window_R]
            is_null_R = lead_R > self.null_threshold
            texts = ["" if is_null else text for text, is_null in zip(texts, is_null_R, strict=True)]
        return Decoded(predictions=texts, references=self.split.column("answers", rows))

    def source_row(self, example: int) -> int:
        return int(self.split.source_rows[self.windows.rows[example]])


def span_targets(
    windows: Windows,
    windows_B: np.ndarray,
    lengths_B: np.ndarray,
    answers: tuple[np.ndarray, np.ndarray],
    known_B: np.ndarray,
) -> TargetRows:
    """Targets of the span term; `answers`: first and last token (R,) of each row's answer, -1 for none."""
    rows_B, begins_B = windows.rows[windows_B], windows.begins[windows_B]
    first_B, last_B = answers[0][rows_B], answers[1][rows_B]
    is_inside_B = (first_B >= begins_B) & (last_B < windows.ends[windows_B]) & (first_B >= 0)

    into_context_B = windows.context_starts[windows_B] - begins_B
    before_B = starts_of(lengths_B)
    labels = np.zeros(int(lengths_B.sum()), dtype=np.float32)
    labels[before_B + np.where(is_inside_B, first_B + into_context_B, 0)] += STARTS
    labels[before_B + np.where(is_inside_B, last_B + into_context_B, 0)] += ENDS
    labels[~np.repeat(known_B, lengths_B)] = np.nan

    examples = np.repeat(np.arange(len(windows_B)), lengths_B)
    return TargetRows(rows=np.arange(len(labels)), labels=labels, examples=examples)


def texts_of(
    windows: Windows, rows: np.ndarray, window: np.ndarray, first_E: np.ndarray, last_E: np.ndarray
) -> list[str]:
    """The context's own characters of the span of one window of each row; "" for a window without a span."""
    begins = np.where(first_E[window] >= 0, windows.begins[window], 0)
    starts, ends = windows.characters_of(rows, first_E[window] + begins, last_E[window] + begins)
    contexts = windows.split.column("context", rows)
    return [
        context[start:end]
        for context, start, end in zip(contexts, starts.tolist(), ends.tolist(), strict=True)
    ]
