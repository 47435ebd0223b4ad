"""Record batches of the prepared cache: checked rows tokenised into flat Arrow columns, and views into them.

No files (build.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from mtdnn_ds.data.cache.prepared_split import Shard
from mtdnn_ds.data.cache.tokenize import encodings, flatten, word_prefix, word_starts
from mtdnn_ds.data.rows.checked import CheckedRow
from mtdnn_ds.data.rows.readers import Reader

_OWN_COLUMNS = ("tokens", "text_lengths", "label", "source_row")  # those that every kind has


def schema_of(tokenizer: Any, reader: Reader) -> pa.Schema:
    """Columns of a split of the reader's kind."""
    token_type = pa.uint16() if len(tokenizer) <= 2**16 else pa.int32()
    columns = [
        ("tokens", pa.large_list(token_type)),
        ("text_lengths", pa.large_list(pa.int32())),
        ("label", pa.float32()),
        ("source_row", pa.int64()),
    ]
    if reader.keeps_offsets:
        columns.append(("token_offsets", pa.large_list(pa.int32())))
    if reader.keeps_words:
        columns.append(("word_starts", pa.large_list(pa.uint8())))
    return pa.schema([*columns, *reader.extra.items()])


def blocks(rows: Iterator[CheckedRow], num_rows: int) -> Iterator[list[CheckedRow]]:
    """Rows in lists of `num_rows`, the last one shorter: each becomes a record batch."""
    while block := list(islice(rows, num_rows)):
        yield block


def record_batch(
    block: Sequence[CheckedRow], tokenizer: Any, schema: pa.Schema, reader: Reader
) -> pa.RecordBatch:
    """Texts of a row stand one after the other in the flat token buffer: a0 b0 a1 b1 ..."""
    prefix = word_prefix(tokenizer) if reader.texts_are_words else ""
    texts = [prefix + text for row in block for text in row.texts]
    lengths = np.empty(len(texts), dtype=np.int64)
    # The first is there for a block without texts, and for the type.
    offsets = [np.zeros(0, dtype=np.int32)]
    words = [np.zeros(0, dtype=np.uint8)]

    def measured_ids() -> Iterator[list[int]]:
        needs_offsets = reader.keeps_offsets or reader.keeps_words
        for index, encoding in enumerate(encodings(tokenizer, texts, offsets=needs_offsets)):
            lengths[index] = len(encoding.ids)
            if reader.keeps_offsets:
                offsets.append(np.array(encoding.offsets, dtype=np.int32).reshape(-1))
            if reader.keeps_words:
                words.append(word_starts(encoding))
            yield encoding.ids

    value_type = schema.field("tokens").type.value_type
    tokens = flatten(measured_ids(), np.dtype(value_type.to_pandas_dtype()))
    text_offsets = np.concatenate(([0], np.cumsum([len(row.texts) for row in block])))
    token_offsets = np.concatenate(([0], np.cumsum(lengths)))[text_offsets]

    columns = {
        "tokens": _lists(token_offsets, pa.array(tokens, value_type)),
        "text_lengths": _lists(text_offsets, pa.array(lengths.astype(np.int32))),
        "label": pa.array(np.array([row.label for row in block], dtype=np.float32)),
        "source_row": pa.array(np.array([row.number for row in block], dtype=np.int64)),
    }
    if reader.keeps_offsets:
        columns["token_offsets"] = _lists(2 * token_offsets, pa.array(np.concatenate(offsets), pa.int32()))
    if reader.keeps_words:
        columns["word_starts"] = _lists(token_offsets, pa.array(np.concatenate(words), pa.uint8()))
    for name, kind in reader.extra.items():
        columns[name] = pa.array([row.extra[name] for row in block], kind)
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _lists(offsets: np.ndarray, values: pa.Array) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)


def shard_of(batch: pa.RecordBatch) -> Shard:
    """Zero-copy views into a record batch."""
    return Shard(
        tokens=batch.column("tokens").values.to_numpy(zero_copy_only=True),
        offsets=batch.column("tokens").offsets.to_numpy(zero_copy_only=True),
        text_lengths=batch.column("text_lengths").values.to_numpy(zero_copy_only=True),
        text_offsets=batch.column("text_lengths").offsets.to_numpy(zero_copy_only=True),
        labels=batch.column("label").to_numpy(zero_copy_only=True),
        source_rows=batch.column("source_row").to_numpy(zero_copy_only=True),
        extra={name: batch.column(name) for name in batch.schema.names if name not in _OWN_COLUMNS},
    )
