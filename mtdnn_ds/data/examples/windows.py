"""Sliding windows over the second text of each row, behind its first text; and characters to tokens and back.

No answers are chosen here. A row's context is cut into windows as transformers cuts it with
`truncation="only_second"`, `stride` and `return_overflowing_tokens`: each holds as many tokens as fit behind
the first text, and begins `stride` tokens before its predecessor's end. A first text longer than half the
room is cut. Example: room 6, first text of 2 tokens, context of 9, stride 1: windows 0-3, 3-6, 6-8.

Shape legend: R rows of the split, E windows of the split, B windows asked for, T their tokens.
"""

from __future__ import annotations

import numpy as np

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.data.cache.prepared_split import PreparedSplit, Shard
from mtdnn_ds.data.cache.tokenize import room_for_texts
from mtdnn_ds.data.ragged import places_within, ragged_ranges, starts_of


class Windows:
    """All windows of a split: `rows`, `begins`, `ends` (E,) are each one's row and tokens of its context."""

    def __init__(
        self,
        split: PreparedSplit,
        *,
        task: str,
        max_length: int,
        stride: int | None,
        keeps_end_of_first: bool = False,
    ) -> None:
        """`stride` None: a third of `max_length`.

        `keeps_end_of_first`: which end of a first text that is too long stays.
        """
        template = split.specials.pair
        room = room_for_texts(template, max_length)
        fewest = room - room // 2  # context tokens of a window whose first text had to be cut
        if stride is None:
            stride = max_length // 3
        if stride >= fewest:
            raise ConfigError(
                f"tasks.{task}.stride={stride}: windows of encoder.max_length={max_length} hold as few as "
                f"{fewest} tokens of the context; make it less than that"
            )

        self.split, self.keeps_end_of_first = split, keeps_end_of_first
        first_R, self.context_lengths_R = split.text_lengths().reshape(-1, 2).T
        self.first_lengths_R = np.minimum(first_R, room // 2)
        capacity_R = room - self.first_lengths_R
        step_R = capacity_R - stride
        self.num_windows_R = 1 + np.maximum(0, -(-(self.context_lengths_R - capacity_R) // step_R))
        self.first_windows_R = starts_of(self.num_windows_R)

        self.rows = np.repeat(np.arange(split.num_rows), self.num_windows_R)
        self.begins = places_within(self.num_windows_R) * step_R[self.rows]
        self.ends = np.minimum(self.begins + capacity_R[self.rows], self.context_lengths_R[self.rows])
        first_E = self.first_lengths_R[self.rows]
        self.lengths = first_E + self.ends - self.begins + template.num_special
        self.context_starts = len(template.prefix) + first_E + len(template.middle)  # place in the sequence

    @property
    def num_windows(self) -> int:
        return len(self.rows)

    def gather(self, windows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """input_ids (T,), token_type_ids (T,), lengths (B,) of the sequences of some windows."""
        rows_B, begins_B = self.rows[windows_B], self.begins[windows_B]
        first, kept_B = self.split.texts(rows_B, 0), self.first_lengths_R[rows_B]
        first = first.last(kept_B) if self.keeps_end_of_first else first.first(kept_B)
        context = self.split.texts(rows_B, 1)
        context = context.last(context.length - begins_B).first(self.ends[windows_B] - begins_B)
        return self.split.assemble(first, context)

    def tokens_of(self, starts_R: np.ndarray, ends_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last context token (R,) of characters start .. end - 1 of each row's context.

        -1, -1 where start is negative. A token belongs to them if it shares a character with them; characters
        without a token (accents alone, say) take the next one.
        """
        first_R, last_R = np.full(len(starts_R), -1), np.full(len(starts_R), -1)
        for index, shard in enumerate(self.split.shards):
            rows = np.arange(len(shard.labels)) + index * self.split.rows_per_shard
            rows = rows[(starts_R[rows] >= 0) & (self.context_lengths_R[rows] > 0)]
            context = self.split.texts(rows, 1)
            tokens = ragged_ranges(context.begin, context.length)
            characters = _token_offsets(shard)

            # One ascending key for all rows of the shard, so that one search finds the place in every row.
            row_key, before = np.arange(len(rows)) << 32, starts_of(context.length)
            key = np.repeat(row_key, context.length)

            # The first token that ends behind the start, and the last one that begins before the end.
            token_ends, token_begins = key + characters[2 * tokens + 1], key + characters[2 * tokens]
            first = np.searchsorted(token_ends, row_key + starts_R[rows], side="right") - before
            last = np.searchsorted(token_begins, row_key + ends_R[rows], side="left") - before - 1
            first_R[rows] = np.minimum(first, context.length - 1)
            last_R[rows] = np.maximum(last, first_R[rows])
        return first_R, last_R

    def characters_of(
        self, rows: np.ndarray, first: np.ndarray, last: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Start and end in the context's characters of tokens first .. last of some rows.

        0, 0 where first is negative.
        """
        starts, ends = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
        context = self.split.texts(rows, 1)
        for index, shard in enumerate(self.split.shards):
            own = np.flatnonzero((context.shard == index) & (first >= 0))
            characters = _token_offsets(shard)
            starts[own] = characters[2 * (context.begin[own] + first[own])]
            ends[own] = characters[2 * (context.begin[own] + last[own]) + 1]
        return starts, ends


def _token_offsets(shard: Shard) -> np.ndarray:
    """Start and end of every token of a shard, two numbers a token."""
    return shard.extra["token_offsets"].values.to_numpy()
