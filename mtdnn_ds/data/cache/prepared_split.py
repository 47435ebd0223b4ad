"""PreparedSplit: the rows of one (task, split), memory-mapped, gathered without a Python loop over examples.

Does not build or find the cache (build.py). A row is some texts, a label and what its kind keeps beside them;
data/examples/ makes training examples of rows.

Shape legend: R rows of the split, S sequences of one gather, T tokens of one gather.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtdnn_ds.data.cache.tokenize import SpecialTokens, Template, kept_lengths, room_for_texts
from mtdnn_ds.data.ragged import ragged_ranges, starts_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One record batch of the cache.

    Row r's tokens are tokens[offsets[r] : offsets[r + 1]], its texts one after the other, and the lengths of
    these text_lengths[text_offsets[r] : text_offsets[r + 1]].
    """

    tokens: np.ndarray  # uint16 or int32, flat
    offsets: np.ndarray  # int64, one more than rows
    text_lengths: np.ndarray  # int32, flat: tokens of each text
    text_offsets: np.ndarray  # int64, one more than rows
    labels: np.ndarray  # float32
    source_rows: np.ndarray  # int64
    extra: Mapping[str, Any]  # Arrow arrays that the task's kind keeps, see data/rows/readers.py


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRange:
    """Where the tokens of one text of each of S sequences stand. int64, (S,) each."""

    shard: np.ndarray
    begin: np.ndarray  # its first token in the shard
    length: np.ndarray

    def first(self, num_kept: np.ndarray) -> TextRange:
        """The first `num_kept` (S,) tokens of each."""
        return TextRange(shard=self.shard, begin=self.begin, length=num_kept)

    def last(self, num_kept: np.ndarray) -> TextRange:
        """The last `num_kept` (S,) tokens of each."""
        return TextRange(shard=self.shard, begin=self.begin + self.length - num_kept, length=num_kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedSplit:
    """Labels and tokens of a split. All rows but those of `skipped`, in the order of the source."""

    task: str
    split: str
    num_rows: int
    labels: np.ndarray  # (R,) float32, class id or score; NaN where the source or the kind has none
    source_rows: np.ndarray  # (R,) int64, line or row number in the source, as a person counts
    skipped: Mapping[str, int]  # rows left out, by reason
    fingerprint: str  # sha256 of the contents, how they are read, the tokenizer and the code's version
    specials: SpecialTokens
    num_texts: int  # of every row; 0 if rows differ
    rows_per_shard: int
    shards: tuple[Shard, ...]

    @property
    def template(self) -> Template:
        """Of sequences that hold all texts of a row."""
        return self.specials.pair if self.num_texts == 2 else self.specials.single

    # Columns

    def row_lengths(self) -> np.ndarray:
        """(R,) int64: tokens of all texts of each row, without special tokens."""
        return np.concatenate([np.diff(shard.offsets) for shard in self.shards])

    def texts_per_row(self) -> np.ndarray:
        """(R,) int64: number of texts of each row."""
        return np.concatenate([np.diff(shard.text_offsets) for shard in self.shards])

    def text_lengths(self) -> np.ndarray:
        """Tokens of every text of every row, end to end, int64."""
        return np.concatenate([shard.text_lengths for shard in self.shards]).astype(np.int64)

    def number_column(self, name: str) -> np.ndarray:
        """A further column of numbers (R,) that the task's kind keeps."""
        return np.concatenate([shard.extra[name].to_numpy(zero_copy_only=False) for shard in self.shards])

    def list_values(self, name: str) -> np.ndarray:
        """Values of a further column of lists, those of all rows end to end."""
        return np.concatenate([shard.extra[name].values.to_numpy() for shard in self.shards])

    def column(self, name: str, rows: np.ndarray) -> list[Any]:
        """Values of any further column, as Python values, in the order of `rows`."""
        rows = np.asarray(rows, dtype=np.int64)
        return [
            self.shards[row // self.rows_per_shard].extra[name][int(row % self.rows_per_shard)].as_py()
            for row in rows.tolist()
        ]

    def token_column(self, name: str, text: TextRange) -> np.ndarray:
        """Values of a further column that has one for each token, of the tokens of `text` end to end."""
        value_type = self.shards[0].extra[name].type.value_type.to_pandas_dtype()
        values = np.empty(int(text.length.sum()), dtype=value_type)
        self._copy_tokens(
            text,
            lambda shard: shard.extra[name].values.to_numpy(zero_copy_only=True),
            to=values,
            starts_S=starts_of(text.length),
        )
        return values

    # Texts and sequences

    def texts(self, rows_S: np.ndarray, numbers_S: np.ndarray | int) -> TextRange:
        """Text number `numbers_S[s]` (from 0) of row `rows_S[s]`; a number alone counts for all rows."""
        rows_S = np.asarray(rows_S, dtype=np.int64)
        numbers_S = np.broadcast_to(np.asarray(numbers_S, dtype=np.int64), np.shape(rows_S))
        shard_S, local_S = rows_S // self.rows_per_shard, rows_S % self.rows_per_shard

        begin_S, length_S = np.empty_like(rows_S), np.empty_like(rows_S)
        for index in np.unique(shard_S):
            shard, members = self.shards[index], np.flatnonzero(shard_S == index)
            local, number = local_S[members], numbers_S[members]
            first_text = shard.text_offsets[local]

            # Texts stand end to end: text n begins after texts 0 .. n - 1 of its row.
            earlier = shard.text_lengths[ragged_ranges(first_text, number)]
            before = np.concatenate(([0], np.cumsum(earlier, dtype=np.int64)))
            ends = np.cumsum(number)
            begin_S[members] = shard.offsets[local] + before[ends] - before[ends - number]
            length_S[members] = shard.text_lengths[first_text + number]
        return TextRange(shard=shard_S, begin=begin_S, length=length_S)

    def lengths(self, max_length: int) -> np.ndarray:
        """(R,) int32: tokens of every row as `gather` returns it, at most `max_length`."""
        # Longest-first truncation keeps exactly as many tokens as fit, so the split of the row into two texts
        # does not matter here.
        room = room_for_texts(self.template, max_length)
        return (np.minimum(self.row_lengths(), room) + self.template.num_special).astype(np.int32)

    def gather(self, rows: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """input_ids (T,) int64, token_type_ids (T,) int64, lengths (S,) int32 of `rows` (S,), in their order.

        For rows of one or two texts, each row one sequence.
        """
        first = self.texts(rows, 0)
        second = None if self.num_texts == 1 else self.texts(rows, 1)
        return self.assemble(*self.truncated(first, second, max_length))

    def truncated(
        self, first: TextRange, second: TextRange | None, max_length: int
    ) -> tuple[TextRange, TextRange | None]:
        """Both texts cut so that a sequence of them has at most `max_length` tokens.

        As the tokenizer itself truncates: longest first.
        """
        if second is None:
            room = room_for_texts(self.specials.single, max_length)
            kept_S, _ = kept_lengths(first.length, np.zeros_like(first.length), room)
            return self._cut(first, kept_S), None

        room = room_for_texts(self.specials.pair, max_length)
        kept_first_S, kept_second_S = kept_lengths(first.length, second.length, room)
        return self._cut(first, kept_first_S), self._cut(second, kept_second_S)

    def _cut(self, text: TextRange, num_kept: np.ndarray) -> TextRange:
        if self.specials.truncates_left:
            return text.last(num_kept)
        return text.first(num_kept)

    def assemble(
        self, first: TextRange, second: TextRange | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sequences of the given tokens with the tokenizer's special ones.

        input_ids (T,), token_type_ids (T,) int64, lengths (S,) int32.
        """
        template = self.specials.single if second is None else self.specials.pair
        second_lengths_S = np.zeros_like(first.length) if second is None else second.length
        lengths_S = first.length + second_lengths_S + template.num_special

        # Where each part of a sequence starts in the output: prefix, text a, middle, text b, suffix.
        prefix_S = starts_of(lengths_S)
        into_first_S = prefix_S + len(template.prefix)
        middle_S = into_first_S + first.length
        into_second_S = middle_S + len(template.middle)
        suffix_S = into_second_S + second_lengths_S

        input_ids_T = np.empty(int(lengths_S.sum()), dtype=np.int64)
        token_type_ids_T = np.full_like(input_ids_T, template.first_type)
        self._copy_tokens(first, lambda shard: shard.tokens, to=input_ids_T, starts_S=into_first_S)
        if second is not None:
            self._copy_tokens(second, lambda shard: shard.tokens, to=input_ids_T, starts_S=into_second_S)
            token_type_ids_T[ragged_ranges(into_second_S, second.length)] = template.second_type

        for start_S, ids, types in (
            (prefix_S, template.prefix, template.prefix_types),
            (middle_S, template.middle, template.middle_types),
            (suffix_S, template.suffix, template.suffix_types),
        ):
            positions = start_S[:, None] + np.arange(len(ids))
            input_ids_T[positions] = np.array(ids, dtype=np.int64)
            token_type_ids_T[positions] = np.array(types, dtype=np.int64)
        return input_ids_T, token_type_ids_T, lengths_S.astype(np.int32)

    def _copy_tokens(
        self,
        text: TextRange,
        values_of: Callable[[Shard], np.ndarray],
        *,
        to: np.ndarray,
        starts_S: np.ndarray,
    ) -> None:
        """Copy the values of the text's tokens, those of sequence s to to[starts_S[s]] and behind it."""
        for index in np.unique(text.shard):
            members = text.shard == index
            length = text.length[members]
            values = values_of(self.shards[index])[ragged_ranges(text.begin[members], length)]
            to[ragged_ranges(starts_S[members], length)] = values
