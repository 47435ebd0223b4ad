"""embed for files: windows of the input to rows of a .npy or .parquet, which appears when whole. No flags.

It is written aside and renamed. A .npy holds one float32 row for each good row of the input, in their order;
a .parquet the same as `embedding`, with `id` beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtdnn_ds import dist
from mtdnn_ds.monitor.progress import RowProgress
from mtdnn_ds.predict.embedding import Pooling, embed_checked, embedding_view
from mtdnn_ds.predict.files import WINDOW_ROWS, OutputSummary, rounds
from mtdnn_ds.predict.model import MultiTaskModel
from mtdnn_ds.predict.output import refuse_existing
from mtdnn_ds.predict.table import Table, Window, scan


class _WindowStates(NamedTuple):
    """One window's embeddings, from the rank that made them."""

    ids: list[Any]
    states: np.ndarray
    truncated: int


class _NpyFile:
    """Must be closed."""

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
    """A row group for each window. Ids are whole numbers if the first window's are, else texts.

    Must be closed.
    """

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

        kind = self._schema.field("id").type
        named = list(ids) if kind == pa.int64() else [str(each) for each in ids]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), self._size)
        self._writer.write_table(pa.table([pa.array(named, kind), vectors], schema=self._schema))

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
) -> OutputSummary:
    """The embedding of every row of `table`.

    Collective: all ranks must call this. Raises ConfigError and DataError before anything is written.
    """
    view = embedding_view(model.loaded, table.columns, task=task, chosen=table.chosen)
    found = dist.on_main(lambda: scan(table, [view], skips_bad=skips_bad))
    aside = output.with_name(f"{output.name}.part")
    size = model.net.encoder.hidden_size
    files: list[_NpyFile | _ParquetFile] = []  # one, of rank 0, while it is open

    def work(window: Window) -> _WindowStates:
        states, truncated = embed_checked(
            model.loaded,
            model.tokenizing,
            view,
            window.checked[0],
            pooling=pooling,
            layer=layer,
            max_tokens=max_tokens,
        )
        return _WindowStates(window.ids, states, truncated)

    def begin() -> None:
        refuse_existing(output)
        if output.suffix == ".npy":
            files.append(_NpyFile(aside, found.num_rows - found.num_bad, size))
        else:
            files.append(_ParquetFile(aside, size))

    def write(parts: Sequence[_WindowStates]) -> None:
        for part in parts:
            files[0].add(part.ids, part.states)

    def finish() -> None:
        files.pop().close()
        refuse_existing(output)
        aside.replace(output)

    num_rows = num_truncated = 0
    dist.on_main(begin)
    bar = RowProgress(found.num_rows, is_main=dist.is_main())
    try:
        windows = rounds(table, [view], work, num_rows=found.num_rows, window_rows=window_rows, first=0)
        for done, parts in windows:
            dist.on_main(lambda parts=parts: write(parts))  # type: ignore[misc]
            num_rows += sum(len(part.ids) for part in parts)
            num_truncated += sum(part.truncated for part in parts)
            bar.update(done)
        dist.on_main(finish)
    finally:
        bar.close()
        if files:  # it failed: what is there so far is of no use
            files.pop().close()
            aside.unlink(missing_ok=True)
    return OutputSummary(rows=num_rows, bad=found.num_bad, truncated=num_truncated, went_on=0)
