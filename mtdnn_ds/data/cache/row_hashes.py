"""Hashes of a prepared split's rows and of their texts, from the token ids in the cache. Compares nothing.

Equal texts, as the tokenizer cuts them, have equal hashes. A text's hash is that of the sum over its tokens
of mix(token + 2^32 place), a row's that of the sum over its texts of mix(hash + place). Blocks of rows are
read one after the other, so the memory needed does not grow with the split.

Shape legend: R rows of a block, X texts of a block, T tokens of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtdnn_ds.counter_hash import mix
from mtdnn_ds.data.cache.prepared_split import PreparedSplit, Shard
from mtdnn_ds.data.ragged import places_within

HASHES_PER_PASS = 2**24  # that are held at once by those who compare them; about 0.5 GB with their order

_TOKENS_PER_BLOCK = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedBlock:
    """Neighbouring rows of a split."""

    rows: np.ndarray  # (R,) int64, their numbers in the split
    row_hashes: np.ndarray  # (R,) uint64
    text_hashes: np.ndarray  # (X,) uint64
    text_rows: np.ndarray  # (X,) int64, the row of each text
    text_lengths: np.ndarray  # (X,) int64, its tokens


def hashed_blocks(split: PreparedSplit) -> Iterator[HashedBlock]:
    """All rows of the split, in their order."""
    for index, shard in enumerate(split.shards):
        first = index * split.rows_per_shard
        begin, num_rows = 0, len(shard.labels)
        while begin < num_rows:
            most_tokens = shard.offsets[begin] + _TOKENS_PER_BLOCK
            end = int(np.searchsorted(shard.offsets, most_tokens, side="right")) - 1
            end = min(max(end, begin + 1), num_rows)
            yield _hashed(shard, begin, end, first)
            begin = end


def _hashed(shard: Shard, begin: int, end: int, first: int) -> HashedBlock:
    tokens_T = shard.tokens[shard.offsets[begin] : shard.offsets[end]].astype(np.uint64)
    lengths_X = shard.text_lengths[shard.text_offsets[begin] : shard.text_offsets[end]].astype(np.int64)
    texts_R = np.diff(shard.text_offsets[begin : end + 1]).astype(np.int64)

    places_T, places_X = places_within(lengths_X).astype(np.uint64), places_within(texts_R).astype(np.uint64)
    text_sums_X = _sums(mix(tokens_T + (places_T << np.uint64(32))), lengths_X)
    text_hashes_X = mix(text_sums_X + lengths_X.astype(np.uint64))
    row_sums_R = _sums(mix(text_hashes_X + places_X), texts_R)
    row_hashes_R = mix(row_sums_R + texts_R.astype(np.uint64))

    rows_R = first + np.arange(begin, end, dtype=np.int64)
    return HashedBlock(
        rows=rows_R,
        row_hashes=row_hashes_R,
        text_hashes=text_hashes_X,
        text_rows=np.repeat(rows_R, texts_R),
        text_lengths=lengths_X,
    )


def _sums(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sum of each group, modulo 2^64; 0 for an empty one, which np.add.reduceat would get wrong."""
    ends = np.concatenate((np.zeros(1, dtype=np.uint64), np.cumsum(values, dtype=np.uint64)))
    stops = np.cumsum(lengths)
    return ends[stops] - ends[stops - lengths]
