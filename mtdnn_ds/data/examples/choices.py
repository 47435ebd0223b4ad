"""Examples of multiple_choice and ranking: a text and several candidates, each with it in its own sequence.

One row is one example.

Shape legend: R rows of the split, N candidates of all rows, B examples asked for, S their sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.tokenize import room_for_texts
from mtdnn_ds.data.examples.base import Decoded, Gathered, TargetRows, TermOutputs
from mtdnn_ds.data.ragged import ragged_ranges, starts_of
from mtdnn_ds.data.rows.choices import UNKNOWN
from mtdnn_ds.tasks.spec import TaskSpec


class ChoiceExamples:
    """Sequences of at most `max_length` tokens each; an example is as long as all its sequences together."""

    def __init__(self, spec: TaskSpec, split: PreparedSplit, *, max_length: int) -> None:
        self.spec, self.split, self.max_length = spec, split, max_length
        self.num_examples, self.rows = split.num_rows, np.arange(split.num_rows)

        # A row's first text goes with each of the others.
        texts_R, text_lengths = split.texts_per_row(), split.text_lengths()
        first_text_R = starts_of(texts_R)
        self._counts_R = texts_R - 1
        self._begins_R = starts_of(self._counts_R)

        template = split.specials.pair
        first_N = np.repeat(text_lengths[first_text_R], self._counts_R)
        second_N = text_lengths[ragged_ranges(first_text_R + 1, self._counts_R)]
        room = room_for_texts(template, max_length)
        lengths_N = np.minimum(first_N + second_N, room) + template.num_special
        self.lengths = np.add.reduceat(lengths_N, self._begins_R)

        self._right_N = split.list_values("right").astype(np.float32)
        self._right_N[self._right_N == UNKNOWN] = np.nan

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        counts_B = self._counts_R[examples_B]
        rows_S = np.repeat(examples_B, counts_B)
        numbers_S = ragged_ranges(np.ones_like(counts_B), counts_B)
        first, second = self.split.texts(rows_S, 0), self.split.texts(rows_S, numbers_S)
        input_ids, token_type_ids, lengths = self.split.assemble(
            *self.split.truncated(first, second, self.max_length)
        )

        right_S = self._right_N[ragged_ranges(self._begins_R[examples_B], counts_B)]
        examples_S = np.repeat(np.arange(len(examples_B)), counts_B)
        targets = TargetRows(rows=np.arange(len(rows_S)), labels=right_S, examples=examples_S)
        return Gathered(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            lengths=lengths,
            examples=examples_S,
            targets=[targets],
        )

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        """multiple_choice: numbers of the best and of the right choice.

        ranking: scores of all candidates, and which are relevant (1).
        """
        (own,) = outputs
        scores = np.split(own.values[:, 0], own.offsets[1:-1])
        if self.spec.kind == "multiple_choice":
            best = np.array([each.argmax() for each in scores])
            return Decoded(predictions=best, references=self.split.labels)
        return Decoded(predictions=scores, references=np.split(own.labels, own.offsets[1:-1]))

    def source_row(self, example: int) -> int:
        return int(self.split.source_rows[example])
