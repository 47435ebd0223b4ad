"""Raw rows of a Source: which reader serves its format, and the readers of .tsv, .csv and .jsonl.

No labels or texts are judged here (data/rows/checked.py).

A row is (number, cells) or (number, RowProblem): `cells` hold the text columns and then the label column, if
any; `number` is where a person would look: the 1-based line of a text file (its header is line 1; for a
quoted record over several lines, its first), else the 1-based row.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mtdnn_ds.config.errors import DataError, did_you_mean
from mtdnn_ds.data.sources import generated
from mtdnn_ds.data.sources.columnar import dataset_rows, load_hub, parquet_rows, saved_folder
from mtdnn_ds.data.sources.conll import sentences_in
from mtdnn_ds.data.sources.coqa_quac import conversation_file, conversation_table
from mtdnn_ds.data.sources.lines import NOT_UTF8, Cells, RawRow, RowProblem, documents_in, lines_of
from mtdnn_ds.data.sources.names import columns_of, require_columns
from mtdnn_ds.data.sources.squad import squad_questions
from mtdnn_ds.files import file_sha256
from mtdnn_ds.tasks.spec import Source

_EMPTY_LINE = RowProblem("empty line", "an empty line")
_SEPARATORS = {"tsv": "\t", "csv": ","}

_Record = tuple[int, list[str] | RowProblem]  # line number, fields


def iterate_rows(source: Source) -> Iterator[RawRow]:
    """Every row, in file order.

    Raises DataError if the source as a whole cannot be read or lacks a column.
    """
    if source.nested:
        return conversation_table(source, columns_of(source), iterate_rows(replace(source, nested=False)))
    if source.format == "generated":
        return _generated_rows(source)
    if source.format in ("hub", "datasets"):
        return dataset_rows(source)

    if not Path(source.path).is_file():
        raise DataError(f"{source.path}: no such file")

    if source.format == "parquet":
        return parquet_rows(source)
    if source.format == "text":
        return documents_in(source.path)
    if source.format == "conll":
        return sentences_in(source)
    if source.format == "squad":
        return squad_questions(source)
    if source.format == "conversations":
        return conversation_file(source)
    if source.format == "jsonl":
        return _json_rows(source)
    return _table_rows(source)


def fingerprint(source: Source) -> str:
    """Identity of a source's contents: sha256 of its files, or what the hub or the generator calls it.

    Raises DataError if they cannot be read.
    """
    if source.format == "generated":
        return f"generated {source.path} {source.split} {generated.VERSION}"
    if source.format == "hub":
        return f"hub {load_hub(source)._fingerprint}"

    files = [Path(source.path)]
    if source.format == "datasets":
        files = sorted(file for file in saved_folder(source).rglob("*") if file.is_file())

    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(bytes.fromhex(file_sha256(file)))
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read ({error.strerror})") from error
    return f"files {digest.hexdigest()}"


def _generated_rows(source: Source) -> Iterator[RawRow]:
    examples = generated.generate(source.path, source.split or "")
    for number, (texts, label) in enumerate(examples, 1):
        yield number, (*texts, label)


# Lines and their fields


def _without_trailing_blanks(records: Iterable[_Record]) -> Iterator[_Record]:
    """Empty lines ([]) at the end of a file are no rows; before another row they are bad ones."""
    blank: list[int] = []
    for number, record in records:
        if record == []:
            blank.append(number)
            continue

        yield from ((line, _EMPTY_LINE) for line in blank)
        blank.clear()
        yield number, record


def _plain_records(source: Source) -> Iterator[_Record]:
    """A line's fields as they stand, quotes included."""
    broken: set[int] = set()
    separator = _SEPARATORS[source.format]

    for number, line in enumerate(lines_of(source.path, broken), 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if number in broken:
            yield number, NOT_UTF8
        elif text:
            yield number, text.split(separator)
        else:
            yield number, []


def _quoted_records(source: Source) -> Iterator[_Record]:
    """Fields between separators or double quotes; a record may go over several lines."""
    broken: set[int] = set()
    lines = lines_of(source.path, broken)
    reader = csv.reader(lines, delimiter=_SEPARATORS[source.format], strict=True)

    while True:
        first = reader.line_num + 1
        try:
            record: list[str] | RowProblem = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            record = RowProblem("not valid CSV", f"not valid CSV ({error}); is a double quote left open?")

        if broken.intersection(range(first, reader.line_num + 1)):
            record = NOT_UTF8
        yield first, record


# .tsv and .csv


def _table_rows(source: Source) -> Iterator[RawRow]:
    columns = columns_of(source)
    positions: list[int] = []  # of the columns among the fields, known from the first record on
    num_fields = 0

    records = _quoted_records(source) if source.quoted else _plain_records(source)
    for number, record in _without_trailing_blanks(records):
        if isinstance(record, RowProblem):
            if not positions and source.header:
                raise DataError(f"{source.path}: line {number}, the header: {record.detail}")
            yield number, record
            continue

        if not positions:
            positions, num_fields = _positions(source, columns, record), len(record)
            if source.header:
                continue

        if len(record) != num_fields:
            detail = f"{len(record)} fields instead of {num_fields}"
            left_out = source.short_rows_left_out and len(record) < num_fields
            yield number, RowProblem("wrong number of fields", detail, left_out)
        else:
            yield number, tuple(record[position] for position in positions)


def _positions(source: Source, columns: Sequence[str], first_record: Sequence[str]) -> list[int]:
    """Where the wanted columns stand: by the header, or by the width of a first line that is none."""
    if source.header:
        require_columns(source, columns, first_record)
        return [first_record.index(column) for column in columns]

    width = len(first_record)
    outside = [column for column in columns if not -width <= int(column) < width]
    if outside:
        raise DataError(
            f"{source.path}: no column {', '.join(outside)}; its lines have {width} fields, numbered from 0"
        )
    return [int(column) % width for column in columns]


# .jsonl


def _json_rows(source: Source) -> Iterator[RawRow]:
    columns = columns_of(source)
    broken: set[int] = set()

    for number, record in _without_trailing_blanks(_json_records(source, broken)):
        if isinstance(record, RowProblem):
            yield number, record
        elif number in broken:
            yield number, NOT_UTF8
        else:
            yield number, _json_cells(record[0], columns)


def _json_records(source: Source, broken: set[int]) -> Iterator[_Record]:
    """Each line as its only field; a blank one has none."""
    for number, line in enumerate(lines_of(source.path, broken), 1):
        yield number, [line] if line.strip() else []


def _json_cells(line: str, columns: Sequence[str]) -> Cells | RowProblem:
    try:
        row = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        return RowProblem("not valid JSON", f"not valid JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError):  # what Python's reader makes of [[[[... and of thousands of digits
        return RowProblem(
            "not valid JSON", "JSON that is nested too deeply, or holds a number of too many digits"
        )

    if not isinstance(row, dict):
        return RowProblem("not valid JSON", "not a JSON object")
    missing = [column for column in columns if column not in row]
    if missing:
        return RowProblem("missing column", f"no key '{missing[0]}'{did_you_mean(missing[0], row)}")
    return tuple(row[column] for column in columns)
