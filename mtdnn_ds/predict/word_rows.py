"""Sequences of which the first token of each word is asked about. No labels, no tags.

A text is cut into words at blanks and punctuation (`WORD`), as the tagged corpora are: "Mr. Smith's dog" has
Mr . Smith's dog. A word without a token (invisible characters), or cut off by max_length, is not asked about.

Shape legend: R rows, B rows asked for, N words of all rows, K words asked about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.tokenize import room_for_texts
from mtdnn_ds.data.examples import Decoded, Gathered, TargetRows, TermOutputs
from mtdnn_ds.data.ragged import ragged_ranges

WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")

NOT_DECODED = "answers are made of the outputs elsewhere, and there is nothing to compare them with"


class WordRows:
    """Rows of one text each, and which words of them are asked about."""

    def __init__(
        self,
        split: PreparedSplit,
        *,
        max_length: int,
        places: list[list[tuple[int, int]]],
        positions_N: np.ndarray,
    ) -> None:
        """`places`: (start, end) of each row's words, characters of its text.

        `positions_N`: each word's first token in its row, -1 for a word that has none.
        """
        self.split, self.num_examples, self.places = split, split.num_rows, places
        self.rows = np.arange(split.num_rows)
        template = split.specials.single
        kept_R = np.minimum(split.row_lengths(), room_for_texts(template, max_length))
        self.lengths = kept_R + template.num_special
        self._kept_R, self._prefix_length = kept_R, len(template.prefix)

        self.counts_R = np.array([len(words) for words in places], dtype=np.int64)
        row_of_N = np.repeat(np.arange(split.num_rows), self.counts_R)
        self.is_asked_N = (positions_N >= 0) & (positions_N < kept_R[row_of_N])
        self._positions_K = positions_N[self.is_asked_N]
        self._asked_R = np.bincount(row_of_N[self.is_asked_N], minlength=split.num_rows)
        self._begins_R = np.cumsum(self._asked_R) - self._asked_R

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        """The rows' sequences, with a target for each word asked about."""
        # The texts of a row stand end to end, so its tokens are those from its first text on.
        tokens = self.split.texts(examples_B, np.zeros_like(examples_B)).first(self._kept_R[examples_B])
        input_ids, token_type_ids, lengths = self.split.assemble(tokens, None)

        every, counts_B = np.arange(len(examples_B)), self._asked_R[examples_B]
        words_K = ragged_ranges(self._begins_R[examples_B], counts_B)
        first_tokens_B = np.cumsum(lengths) - lengths + self._prefix_length
        targets = TargetRows(
            rows=np.repeat(first_tokens_B, counts_B) + self._positions_K[words_K],
            labels=np.full(len(words_K), np.nan, dtype=np.float32),
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
        raise AssertionError(NOT_DECODED)

    def source_row(self, example: int) -> int:
        """The row of the input that an example was made of."""
        return int(self.split.source_rows[example])


def rows_of_words(split: PreparedSplit, sentences: Sequence[Sequence[str]], *, max_length: int) -> WordRows:
    """Rows whose texts are words; their places are those in the sentence with a blank between words."""
    lengths_N = split.text_lengths()
    row_of_N = np.repeat(np.arange(split.num_rows), split.texts_per_row())
    row_lengths_R = split.row_lengths()
    before_R = np.cumsum(row_lengths_R) - row_lengths_R
    positions_N = np.where(lengths_N > 0, np.cumsum(lengths_N) - lengths_N - before_R[row_of_N], -1)
    places = []
    for words in sentences:
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        places.append([(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)])
    return WordRows(split, max_length=max_length, places=places, positions_N=positions_N)


def rows_of_text(split: PreparedSplit, texts: Sequence[str], *, num_before: int, max_length: int) -> WordRows:
    """Rows of one text each, cut into words here.

    The split keeps the offsets of tokens, which begin behind `num_before` characters.
    """
    (shard,) = split.shards
    offsets = shard.extra["token_offsets"].values.to_numpy().reshape(-1, 2)
    places, positions = [], []
    for row, text in enumerate(texts):
        words = [match.span() for match in WORD.finditer(text)]
        own = offsets[shard.offsets[row] : shard.offsets[row + 1]]
        starts = np.array([start for start, _ in words], dtype=np.int64) + num_before
        ends = np.array([end for _, end in words], dtype=np.int64) + num_before

        # The first token that ends behind the word's start, if it begins before the word's end.
        first = np.searchsorted(own[:, 1], starts, side="right")
        begins = np.append(own[:, 0], np.iinfo(np.int32).max)[first]
        places.append(words)
        positions.append(np.where(begins < ends, first, -1))

    positions_N = np.concatenate([np.zeros(0, dtype=np.int64), *positions])
    return WordRows(split, max_length=max_length, places=places, positions_N=positions_N)
