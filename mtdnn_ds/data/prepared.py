"""PreparedSplit: the rows of one (task, split), memory-mapped, gathered without a Python loop over examples. Does not build or find the cache.

Shape legend: R rows of the split, S rows of one gather, T tokens of one gather.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtdnn_ds.data.features import Template, kept_lengths, ragged_ranges, room_for_texts


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One record batch of the cache: row r's tokens are tokens[offsets[r] : offsets[r + 1]], text a first."""

    tokens: np.ndarray  # uint16 or int32, flat
    offsets: np.ndarray  # int64, one more than rows
    first_lengths: np.ndarray  # int32, tokens of text a
    labels: np.ndarray  # float32
    source_rows: np.ndarray  # int64


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedSplit:
    """Labels and tokens of a split. All rows but those of `skipped`, in the order of the source."""

    task: str
    split: str
    num_rows: int
    labels: np.ndarray  # (R,) float32, class id or score; NaN where the source has none
    source_rows: np.ndarray  # (R,) int64, line or row number in the source, as a person counts
    skipped: Mapping[str, int]  # rows left out, by reason
    fingerprint: str  # sha256 of the contents, how they are read, the tokenizer and the code's version
    template: Template
    truncates_left: bool
    rows_per_shard: int
    shards: tuple[Shard, ...]

    def lengths(self, max_length: int) -> np.ndarray:
        """(R,) int32: tokens of every row as `gather` would return it, special tokens included, at most `max_length`."""
        # Longest-first truncation keeps exactly as many tokens as fit, so the split of the row into two texts does not matter here.
        total_R = np.concatenate([np.diff(shard.offsets) for shard in self.shards])
        return (np.minimum(total_R, self._room(max_length)) + self.template.num_special).astype(np.int32)

    def gather(self, rows: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """input_ids (T,) int64, token_type_ids (T,) int64, lengths (S,) int32 of `rows` (S,), end to end in their order."""
        rows_S = np.asarray(rows, dtype=np.int64)
        shard_S, local_S = rows_S // self.rows_per_shard, rows_S % self.rows_per_shard
        members = [(self.shards[index], np.flatnonzero(shard_S == index)) for index in np.unique(shard_S)]
        begin_S, first_S, total_S = (np.empty(len(rows_S), dtype=np.int64) for _ in range(3))
        for shard, of_shard in members:
            local = local_S[of_shard]
            begin_S[of_shard] = shard.offsets[local]
            first_S[of_shard] = shard.first_lengths[local]
            total_S[of_shard] = shard.offsets[local + 1] - shard.offsets[local]
        second_S = total_S - first_S
        kept_first_S, kept_second_S = kept_lengths(first_S, second_S, self._room(max_length))
        template = self.template
        lengths_S = kept_first_S + kept_second_S + template.num_special

        # Where each part of a sequence starts in the output: prefix, text a, middle, text b, suffix.
        prefix_S = np.cumsum(lengths_S) - lengths_S
        into_first_S = prefix_S + len(template.prefix)
        middle_S = into_first_S + kept_first_S
        into_second_S = middle_S + len(template.middle)
        suffix_S = into_second_S + kept_second_S
        # Where the kept tokens start in the shard's flat buffer: at the text's start, or at its end if the left side is cut off.
        from_first_S = begin_S + (first_S - kept_first_S if self.truncates_left else 0)
        from_second_S = begin_S + first_S + (second_S - kept_second_S if self.truncates_left else 0)

        input_ids_T = np.empty(int(lengths_S.sum()), dtype=np.int64)
        token_type_ids_T = np.full_like(input_ids_T, template.first_type)
        for shard, of_shard in members:
            for into_S, from_S, kept_S in ((into_first_S, from_first_S, kept_first_S), (into_second_S, from_second_S, kept_second_S)):
                kept = kept_S[of_shard]
                input_ids_T[ragged_ranges(into_S[of_shard], kept)] = shard.tokens[ragged_ranges(from_S[of_shard], kept)]
        token_type_ids_T[ragged_ranges(into_second_S, kept_second_S)] = template.second_type
        for start_S, ids, types in (
            (prefix_S, template.prefix, template.prefix_types),
            (middle_S, template.middle, template.middle_types),
            (suffix_S, template.suffix, template.suffix_types),
        ):
            positions = start_S[:, None] + np.arange(len(ids))
            input_ids_T[positions] = np.array(ids, dtype=np.int64)
            token_type_ids_T[positions] = np.array(types, dtype=np.int64)
        return input_ids_T, token_type_ids_T, lengths_S.astype(np.int32)

    def _room(self, max_length: int) -> int:
        return room_for_texts(self.template, max_length)
