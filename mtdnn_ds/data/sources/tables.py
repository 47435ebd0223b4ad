"""Raw rows of a Source, from text files, parquet, saved datasets, the hub or our generator. No labels or texts are judged here (data/rows/checked.py).

A row is (number, cells) or (number, RowProblem): `cells` hold the text columns and then the label column, if any; `number` is
where a person would look: the 1-based line of a text file (its header is line 1; for a quoted record over several lines,
its first), else the 1-based row.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtdnn_ds.config.errors import DataError, did_you_mean
from mtdnn_ds.data.sources import generated
from mtdnn_ds.data.sources.conll import sentences_in
from mtdnn_ds.data.sources.coqa_quac import conversation_file, conversation_table
from mtdnn_ds.data.sources.lines import NOT_UTF8, Cells, RawRow, RowProblem, lines_of
from mtdnn_ds.data.sources.squad import squad_questions
from mtdnn_ds.data.sources.text_file import documents_in
from mtdnn_ds.tasks.spec import Source

_ROWS_PER_READ = 1024
_TEXT_FORMATS = ("tsv", "csv", "jsonl", "text", "conll")
_EMPTY_LINE = RowProblem("empty line", "an empty line")


def columns_of(source: Source) -> tuple[str, ...]:
    """The columns that a row's cells come from, in their order."""
    return (
        source.text_columns
        + source.more_columns
        + ((source.label_column,) if source.label_column is not None else ())
    )


def place_of(source: Source) -> str:
    """How messages name a source."""
    if source.format in ("hub", "datasets"):
        return ":".join(part for part in (source.path, source.config, source.split) if part)
    return f"{source.path}/{source.split}" if source.format == "generated" else source.path


def row_word(source: Source) -> str:
    """What a row number counts: lines, rows, or the questions of nested sources."""
    if source.nested or source.format in ("squad", "conversations"):
        return "question"
    return "line" if source.format in _TEXT_FORMATS else "row"


def iterate_rows(source: Source) -> Iterator[RawRow]:
    """Every row, in file order. Raises DataError if the source as a whole cannot be read or lacks a column."""
    if source.nested:
        return conversation_table(source, columns_of(source), iterate_rows(replace(source, nested=False)))
    if source.format == "generated":
        return (
            (number, (*texts, label))
            for number, (texts, label) in enumerate(generated.generate(source.path, source.split or ""), 1)
        )
    if source.format in ("hub", "datasets"):
        return _dataset_rows(source)
    if not Path(source.path).is_file():
        raise DataError(f"{source.path}: no such file")
    if source.format == "parquet":
        return _parquet_rows(source)
    if source.format == "text":
        return documents_in(source.path)
    if source.format == "conll":
        return sentences_in(source)
    if source.format == "squad":
        return squad_questions(source)
    if source.format == "conversations":
        return conversation_file(source)
    return _json_rows(source) if source.format == "jsonl" else _table_rows(source)


def fingerprint(source: Source) -> str:
    """Identity of a source's contents: sha256 of its files, the dataset's own fingerprint on the hub, or the generator's version."""
    if source.format == "generated":
        return f"generated {source.path} {source.split} {generated.VERSION}"
    if source.format == "hub":
        return f"hub {_load_hub(source)._fingerprint}"
    files = [Path(source.path)]
    if source.format == "datasets":
        files = sorted(file for file in _saved_folder(source).rglob("*") if file.is_file())
    digest = hashlib.sha256()
    try:
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read ({error.strerror})") from error
    return f"files {digest.hexdigest()}"


# Text files


def _without_trailing_blanks(
    records: Iterable[tuple[int, list[str] | RowProblem]],
) -> Iterator[tuple[int, list[str] | RowProblem]]:
    """Empty lines ([]) at the end of a file are no rows; before another row they are bad ones."""
    blank: list[int] = []
    for number, record in records:
        if record == []:
            blank.append(number)
            continue
        yield from ((line, _EMPTY_LINE) for line in blank)
        blank.clear()
        yield number, record


def _plain_records(source: Source) -> Iterator[tuple[int, list[str] | RowProblem]]:
    broken: set[int] = set()
    separator = "\t" if source.format == "tsv" else ","
    for number, line in enumerate(lines_of(source.path, broken), 1):
        text = line.removesuffix("\n").removesuffix("\r")
        yield number, NOT_UTF8 if number in broken else (text.split(separator) if text else [])


def _quoted_records(source: Source) -> Iterator[tuple[int, list[str] | RowProblem]]:
    broken: set[int] = set()
    reader = csv.reader(
        lines_of(source.path, broken), delimiter="\t" if source.format == "tsv" else ",", strict=True
    )
    while True:
        first = reader.line_num + 1
        try:
            record: list[str] | RowProblem = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            record = RowProblem("not valid CSV", f"not valid CSV ({error}); is a double quote left open?")
        yield first, NOT_UTF8 if broken.intersection(range(first, reader.line_num + 1)) else record


def _table_rows(source: Source) -> Iterator[RawRow]:
    records = _without_trailing_blanks(_quoted_records(source) if source.quoted else _plain_records(source))
    columns = columns_of(source)
    positions: list[int] = []
    num_fields = 0
    for number, record in records:
        if isinstance(record, RowProblem):
            if not positions and source.header:
                raise DataError(f"{source.path}: line {number}, the header: {record.detail}")
            yield number, record
        elif not positions:
            positions, num_fields = _positions(source, columns, record), len(record)
            if not source.header:
                yield number, tuple(record[position] for position in positions)
        elif len(record) != num_fields:
            yield (
                number,
                RowProblem("wrong number of fields", f"{len(record)} fields instead of {num_fields}"),
            )
        else:
            yield number, tuple(record[position] for position in positions)


def _positions(source: Source, columns: Sequence[str], first_record: Sequence[str]) -> list[int]:
    """Where the wanted columns stand, from the header, or from the width of the first line of a file without one."""
    if source.header:
        _require_columns(source, columns, first_record)
        return [first_record.index(column) for column in columns]
    width = len(first_record)
    outside = [column for column in columns if not -width <= int(column) < width]
    if outside:
        raise DataError(
            f"{source.path}: no column {', '.join(outside)}; its lines have {width} fields, numbered from 0"
        )
    return [int(column) % width for column in columns]


def _require_columns(source: Source, columns: Sequence[str], known: Sequence[str]) -> None:
    place = place_of(source)
    problems = [
        f"{place}: no column '{column}'{did_you_mean(column, known)}"
        for column in columns
        if column not in known
    ]
    problems += [
        f"{place}: column '{column}' stands twice" for column in columns if list(known).count(column) > 1
    ]
    if problems:
        raise DataError(problems)


def _json_rows(source: Source) -> Iterator[RawRow]:
    columns = columns_of(source)
    broken: set[int] = set()
    lines = (
        (number, [line] if line.strip() else [])
        for number, line in enumerate(lines_of(source.path, broken), 1)
    )
    for number, record in _without_trailing_blanks(lines):
        if isinstance(record, RowProblem):
            yield number, record
        elif number in broken:
            yield number, NOT_UTF8
        else:
            yield number, _json_cells(record[0], columns)


def _json_cells(line: str, columns: Sequence[str]) -> Cells | RowProblem:
    try:
        row = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        return RowProblem("not valid JSON", f"not valid JSON ({error.msg}, column {error.colno})")
    except (
        ValueError,
        RecursionError,
    ):  # what Python's reader makes of [[[[... and of a number with thousands of digits
        return RowProblem(
            "not valid JSON", "JSON that is nested too deeply, or holds a number of too many digits"
        )
    if not isinstance(row, dict):
        return RowProblem("not valid JSON", "not a JSON object")
    missing = [column for column in columns if column not in row]
    if missing:
        return RowProblem("missing column", f"no key '{missing[0]}'{did_you_mean(missing[0], row)}")
    return tuple(row[column] for column in columns)


# Columnar sources


def _parquet_rows(source: Source) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source.path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{source.path}: is not a readable parquet file ({str(error).splitlines()[0]})"
        ) from error
    columns = columns_of(source)
    with file:
        _require_columns(source, columns, file.schema_arrow.names)
        number = 0
        batches = file.iter_batches(batch_size=_ROWS_PER_READ, columns=list(columns))
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowInvalid, OSError) as error:  # its footer is whole, its pages are not
                raise DataError(
                    f"{source.path}: is damaged after row {number:,} ({str(error).splitlines()[0]}); make it again"
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
    try:
        return None if cell is None else cell.decode("utf-8")
    except UnicodeDecodeError:
        return cell


def _dataset_rows(source: Source) -> Iterator[RawRow]:
    dataset = _load_hub(source) if source.format == "hub" else _load_saved(source)
    columns = columns_of(source)
    _require_columns(source, columns, dataset.column_names)
    # A ClassLabel column holds ids of the dataset's own name list: rows carry the names, so that no order is assumed. -1 is "none".
    names = [_class_names(dataset.features[column]) for column in columns]
    number = 0
    for batch in dataset.select_columns(list(columns)).with_format(None).iter(batch_size=_ROWS_PER_READ):
        for cells in zip(*(batch[column] for column in columns), strict=True):
            number += 1
            yield (
                number,
                tuple(
                    _class_name(cell, known) if known else cell
                    for cell, known in zip(cells, names, strict=True)
                ),
            )


def _class_names(feature: Any) -> Sequence[str] | None:
    """Names of a ClassLabel, or of a list of them."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _class_name(cell: object, names: Sequence[str]) -> object:
    if isinstance(cell, list):
        return [_class_name(each, names) for each in cell]
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell


def _saved_folder(source: Source) -> Path:
    return Path(source.path) / source.split if source.split else Path(source.path)


def _load_saved(source: Source) -> Any:
    import datasets

    try:
        return datasets.Dataset.load_from_disk(str(_saved_folder(source)))
    except (
        Exception
    ) as error:  # datasets raises errors of many libraries here; whichever it is, the folder is unusable
        raise DataError(
            f"{place_of(source)}: cannot be loaded as a saved dataset ({_first_line(error)}); save it again with save_to_disk"
        ) from error


def _load_hub(source: Source) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source.path, source.config, split=source.split)
    except Exception as error:  # no network, no such name, no access, no such split: errors of many libraries
        raise DataError(
            f"{place_of(source)}: cannot be loaded from the Hugging Face hub ({_first_line(error)}); check the name and the connection"
            f" (private data: run hf auth login), or use local files: the data.*_dir settings for built-in tasks, files for your own"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
