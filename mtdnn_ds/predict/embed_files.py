"""embed for files: windows of the input to rows of a .npy or .parquet, written aside and renamed when whole. No flags.

A .npy holds one float32 row for each good row of the input, in their order; a .parquet the same as `embedding`, with `id` beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtdnn_ds import dist
from mtdnn_ds.monitor.bar import Bar
from mtdnn_ds.predict.embedding import embed_checked, embedding_view
from mtdnn_ds.predict.files import WINDOW_ROWS, Written, rounds
from mtdnn_ds.predict.model import MultiTaskModel, Pooling
from mtdnn_ds.predict.output import refuse_existing
from mtdnn_ds.predict.table import Table, Window, scan


class _Part(NamedTuple):
    ids: list[Any]
    states: np.ndarray
    bad: int
    truncated: int


class _NpyFile:
    def __init__(self, path: Path, num_rows: int, size: int) -> None:
        self._rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num_rows, size))
        self._done = 0

    def add(self, ids: Sequence[Any], states: np.ndarray) -> None:
        self._rows[self._done : self._done + len(states)] = states
        self._done += len(states)

    def close(self) -> None:
        self._rows.flush()
        del self._rows


class _ParquetFile:
    """A row group for each window. Ids are whole numbers if the first window's are, else texts."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._writer: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None

    def add(self, ids: Sequence[Any], states: np.ndarray) -> None:
        if not ids:
            return
        if self._writer is None:
            whole = all(isinstance(each, int) and not isinstance(each, bool) for each in ids)
            kind = pa.int64() if whole else pa.string()
            self._schema = pa.schema([("id", kind), ("embedding", pa.list_(pa.float32(), self._size))])
            self._writer = pq.ParquetWriter(self._path, self._schema)
        assert self._schema is not None
        named = list(ids) if self._schema.field("id").type == pa.int64() else [str(each) for each in ids]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), self._size)
        self._writer.write_table(
            pa.table([pa.array(named, self._schema.field("id").type), vectors], schema=self._schema)
        )

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def embed_file(
    model: MultiTaskModel,
    table: Table,
    output: Path,
    *,
    pooling: Pooling = "cls",
    layer: int = -1,
    task: str | None = None,
    skips_bad: bool = False,
    max_tokens: int | None = None,
    window_rows: int = WINDOW_ROWS,
) -> Written:
    """The embedding of every row of `table`. Collective: all ranks must call this. Raises ConfigError and DataError before anything is written."""
    view = embedding_view(model, table.columns, task=task, chosen=table.chosen)
    found = dist.on_main(lambda: scan(table, [view], skips_bad=skips_bad))
    aside = output.with_name(f"{output.name}.part")
    size = model.net.encoder.hidden_size
    held: list[_NpyFile | _ParquetFile] = []
    counts = {"rows": 0, "truncated": 0}

    def work(window: Window) -> _Part:
        states, truncated = embed_checked(
            model, view, window.checked[0], pooling=pooling, layer=layer, max_tokens=max_tokens
        )
        return _Part(window.ids, states, window.num_bad, truncated)

    def begin() -> None:
        refuse_existing(output)
        held.append(
            _NpyFile(aside, found.num_rows - found.num_bad, size)
            if output.suffix == ".npy"
            else _ParquetFile(aside, size)
        )

    def write(parts: Sequence[_Part]) -> None:
        for part in parts:
            held[0].add(part.ids, part.states)

    def finish() -> None:
        held.pop().close()
        refuse_existing(output)
        aside.replace(output)

    dist.on_main(begin)
    bar = Bar(found.num_rows, is_main=dist.is_main())
    try:
        for done, parts in rounds(
            table, [view], work, num_rows=found.num_rows, window_rows=window_rows, first=0
        ):
            dist.on_main(lambda parts=parts: write(parts))  # type: ignore[misc]
            counts["rows"] += sum(len(part.ids) for part in parts)
            counts["truncated"] += sum(part.truncated for part in parts)
            bar.update(done)
        dist.on_main(finish)
    finally:
        bar.close()
        if held:  # it failed: what is there so far is of no use
            held.pop().close()
            aside.unlink(missing_ok=True)
    return Written(rows=counts["rows"], bad=found.num_bad, truncated=counts["truncated"], went_on=0)
