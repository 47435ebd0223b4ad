"""Examples of words with a label each: a sentence is one sequence, labels stand at words' first tokens.

For token_classification and users' own kinds that read tokens. A word without a token (invisible characters)
and a word cut off by max_length have no supervised token; evaluation counts them as O, and leaves them out
where the kind is the user's own. A sentence without any token at all is no example, but its words are scored
too.

Shape legend: R rows of the split, E examples, N words of all rows, B examples asked for, T tokens,
K supervised words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtdnn_ds.config.errors import DataError
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.tokenize import room_for_texts
from mtdnn_ds.data.examples.base import Decoded, Gathered, TargetRows, TermOutputs
from mtdnn_ds.data.ragged import ragged_ranges, starts_of
from mtdnn_ds.data.rows.words import UNKNOWN_TAG
from mtdnn_ds.tasks.spec import TaskSpec


class WordExamples:
    """Sentences as the first `max_length` tokens, special ones included."""

    def __init__(self, spec: TaskSpec, split: PreparedSplit, *, max_length: int) -> None:
        self.spec, self.split = spec, split
        template = split.specials.single
        row_lengths_R = split.row_lengths()
        kept_R = np.minimum(row_lengths_R, room_for_texts(template, max_length))
        self.rows = np.flatnonzero(kept_R)
        self._kept_E = kept_R[self.rows]
        if not self.rows.size:
            raise DataError(f"{split.task}/{split.split}: no word has a token")
        self.num_examples = len(self.rows)
        self.lengths = self._kept_E + template.num_special
        self._prefix_length = len(template.prefix)

        # Place of each word's first token in its row; a word with one that is kept is supervised.
        word_lengths_N = split.text_lengths()
        row_of_N = np.repeat(np.arange(split.num_rows), split.texts_per_row())
        position_N = starts_of(word_lengths_N) - starts_of(row_lengths_R)[row_of_N]
        self._supervised = np.flatnonzero((word_lengths_N > 0) & (position_N < kept_R[row_of_N]))
        self._positions = position_N[self._supervised]

        self._labels = split.list_values("tags")[self._supervised].astype(np.float32)
        if spec.custom is None:
            self._labels[self._labels == UNKNOWN_TAG] = np.nan
        self._counts_E = np.bincount(row_of_N[self._supervised], minlength=split.num_rows)[self.rows]
        self._begins_E = starts_of(self._counts_E)

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        # The words of a row stand end to end, so a row's tokens are those from its first word on.
        rows_B = self.rows[examples_B]
        tokens = self.split.texts(rows_B, 0).first(self._kept_E[examples_B])
        input_ids, token_type_ids, lengths = self.split.assemble(tokens, None)

        every, counts_B = np.arange(len(rows_B)), self._counts_E[examples_B]
        words_K = ragged_ranges(self._begins_E[examples_B], counts_B)
        first_token_B = starts_of(lengths) + self._prefix_length
        targets = TargetRows(
            rows=np.repeat(first_token_B, counts_B) + self._positions[words_K],
            labels=self._labels[words_K],
            examples=np.repeat(every, counts_B),
        )
        return Gathered(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            lengths=lengths,
            examples=every,
            targets=[targets],
        )

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        """Label names of the words of every row, predicted and right.

        There are no right ones where the split has no labels.
        """
        (own,) = outputs
        if self.spec.custom is not None:
            return Decoded(predictions=self.spec.custom.predictions(own.values), references=own.labels)

        tags_N = self.split.list_values("tags").astype(np.int64)
        predicted_N = np.full_like(tags_N, self.spec.labels.index("O"))
        predicted_N[self._supervised] = own.values.argmax(axis=1)

        predictions = self._names_by_row(predicted_N)
        references: list[list[str]] = [[] for _ in predictions]
        if (tags_N != UNKNOWN_TAG).all():
            references = self._names_by_row(tags_N)
        return Decoded(predictions=predictions, references=references)

    def _names_by_row(self, tags_N: np.ndarray) -> list[list[str]]:
        names = np.array(self.spec.labels, dtype=object)
        ends = np.cumsum(self.split.texts_per_row())[:-1]
        return [each.tolist() for each in np.split(names[tags_N], ends)]

    def source_row(self, example: int) -> int:
        return int(self.split.source_rows[self.rows[example]])
