"""Raw rows of parquet files, of saved datasets and of the Hugging Face hub. No text files (tables.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtdnn_ds.config.errors import DataError
from mtdnn_ds.data.sources.lines import RawRow
from mtdnn_ds.data.sources.names import columns_of, place_of, require_columns
from mtdnn_ds.tasks.spec import Source

_ROWS_PER_READ = 1024


def parquet_rows(source: Source) -> Iterator[RawRow]:
    """Every row of a parquet file, from 1. Raises DataError if it cannot be read or lacks a column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source.path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{source.path}: is not a readable parquet file ({str(error).splitlines()[0]})"
        ) from error

    columns = columns_of(source)
    number = 0
    with file:
        require_columns(source, columns, file.schema_arrow.names)
        batches = file.iter_batches(batch_size=_ROWS_PER_READ, columns=list(columns))
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowInvalid, OSError) as error:  # its footer is whole, its pages are not
                raise DataError(
                    f"{source.path}: is damaged after row {number:,} ({str(error).splitlines()[0]}); "
                    "make it again"
                ) from error
            if batch is None:
                return

            for cells in zip(*(_parquet_cells(batch.column(column)) for column in columns), strict=True):
                number += 1
                yield number, cells


def _parquet_cells(column: Any) -> list[object]:
    """A column's values; a text that is not valid UTF-8 stays bytes, which no text column accepts."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_text_if_valid(cell) for cell in column.cast(pa.large_binary()).to_pylist()]


def _text_if_valid(cell: bytes | None) -> str | bytes | None:
    if cell is None:
        return None
    try:
        return cell.decode("utf-8")
    except UnicodeDecodeError:
        return cell


def dataset_rows(source: Source) -> Iterator[RawRow]:
    """Every row of a saved dataset or of one on the hub, from 1.

    Raises DataError if it cannot be loaded or lacks a column.
    """
    dataset = load_hub(source) if source.format == "hub" else _load_saved(source)
    columns = columns_of(source)
    require_columns(source, columns, dataset.column_names)

    # A ClassLabel column holds ids of the dataset's own name list: rows carry the names, so that no order is
    # assumed. -1 is "none".
    names = [_class_names(dataset.features[column]) for column in columns]

    number = 0
    for batch in dataset.select_columns(list(columns)).with_format(None).iter(batch_size=_ROWS_PER_READ):
        for cells in zip(*(batch[column] for column in columns), strict=True):
            number += 1
            yield number, tuple(map(_class_name, cells, names))


def _class_names(feature: Any) -> Sequence[str] | None:
    """Names of a ClassLabel, or of a list of them."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _class_name(cell: object, names: Sequence[str] | None) -> object:
    """The name that an id, or each of a list of them, stands for; the cell itself where there is none."""
    if not names:
        return cell
    if isinstance(cell, list):
        return [_class_name(each, names) for each in cell]
    if isinstance(cell, int) and 0 <= cell < len(names):
        return names[cell]
    return cell


def saved_folder(source: Source) -> Path:
    """Where a saved dataset's split lies."""
    folder = Path(source.path)
    return folder / source.split if source.split else folder


def _load_saved(source: Source) -> Any:
    import datasets

    try:
        return datasets.Dataset.load_from_disk(str(saved_folder(source)))
    except Exception as error:  # errors of many libraries; whichever it is, the folder is unusable
        raise DataError(
            f"{place_of(source)}: cannot be loaded as a saved dataset ({_first_line(error)}); "
            "save it again with save_to_disk"
        ) from error


def load_hub(source: Source) -> Any:
    """The dataset of the hub. Raises DataError."""
    import datasets

    try:
        return datasets.load_dataset(source.path, source.config, split=source.split)
    except Exception as error:  # no network, no such name, no access, no such split: errors of many libraries
        raise DataError(
            f"{place_of(source)}: cannot be loaded from the Hugging Face hub ({_first_line(error)}); "
            "check the name and the connection (private data: run hf auth login), "
            "or use local files: the data.*_dir settings for built-in tasks, files for your own"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
