"""Input files of predict and embed: csv, tsv, jsonl, parquet, txt. Never read as a whole.

They have columns, but for txt, which has a text a line, and are read in windows. A window is a stretch of
rows, bad ones included, so that windows are the same on every rank and in every run over the same file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from mtdnn_ds.config.errors import ConfigError, DataError, did_you_mean
from mtdnn_ds.data.rows.checked import CheckedRow
from mtdnn_ds.data.sources.lines import RawRow, RowProblem, lines_of
from mtdnn_ds.data.sources.names import row_word
from mtdnn_ds.data.sources.tables import fingerprint, iterate_rows
from mtdnn_ds.predict.views import View, parsed
from mtdnn_ds.tasks.spec import Format, Source
from mtdnn_ds.tasks.user_sources import COLUMN_NUMBER

_FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
}
_IDS = ("id", "idx", "index")
_MAX_LISTED = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """An input file, and the columns it has."""

    path: str
    format: Format
    columns: tuple[str, ...]
    chosen: tuple[str, ...]  # text columns that the user has named
    id_column: str | None  # None: rows are named by their line or number
    header: bool


class Scan(NamedTuple):
    """What one look at every row found."""

    num_rows: int
    num_bad: int


class Window(NamedTuple):
    """Some rows, as each view reads the good ones."""

    ids: list[Any]
    checked: list[list[CheckedRow]]  # one list for each view
    num_bad: int


def open_table(path: str, *, text_columns: str | None, id_column: str | None) -> Table:
    """The input file with its columns. Raises ConfigError and DataError in the words of the flags."""
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise ConfigError(f"--input {path}: unknown file type '{suffix}'; use {', '.join(_FORMATS)}")
    if not Path(path).is_file():
        raise DataError(f"--input {path}: no such file")

    form = _FORMATS[suffix]
    chosen: tuple[str, ...] = ()
    if text_columns:
        chosen = tuple(name.strip() for name in text_columns.split(","))
    header = True
    if (
        form in ("csv", "tsv") and chosen
    ):  # columns that are named by numbers are those of a file without a header
        header = not all(COLUMN_NUMBER.fullmatch(name) for name in chosen)
    columns = _columns(path, form, header)

    problems = _column_problems(path, columns, chosen, id_column, header=header)
    if problems:
        raise ConfigError(problems)
    if id_column is None and header:
        id_column = next((name for name in _IDS if name in columns and name not in chosen), None)
    return Table(
        path=path,
        format=form,
        columns=columns if header else (*columns, *chosen),
        chosen=chosen,
        id_column=id_column,
        header=header,
    )


def _column_problems(
    path: str, columns: Sequence[str], chosen: Sequence[str], id_column: str | None, *, header: bool
) -> list[str]:
    """What is wrong with the columns that the flags name."""
    given = [("--text_columns", name) for name in chosen]
    if id_column:
        given.append(("--id_column", id_column))

    problems = []
    for flag, name in given:
        is_number = not header and COLUMN_NUMBER.fullmatch(name) is not None
        if name in columns or (is_number and -len(columns) <= int(name) < len(columns)):
            continue
        problems.append(f"{flag} {name}: {path} has no column '{name}'{did_you_mean(name, columns)}")
    problems += [
        f"--text_columns: '{name}' stands twice"
        for name in sorted({name for name in chosen if chosen.count(name) > 1})
    ]
    return problems


def _columns(path: str, form: Format, header: bool) -> tuple[str, ...]:
    """Names of the columns; their numbers in a file without a header."""
    if form == "text":
        return ("text",)
    if form == "parquet":
        return _columns_of_parquet(path)

    lines = lines_of(path, set())
    if form == "jsonl":
        return _columns_of_json(path, lines)
    if form == "csv":
        names = next(csv.reader(lines), [])
    else:
        names = next((line.removesuffix("\n").removesuffix("\r").split("\t") for line in lines), [])
    if not names or names == [""]:
        raise DataError(f"--input {path}: has no rows")
    if not header:
        return tuple(str(number) for number in range(len(names)))
    return tuple(names)


def _columns_of_parquet(path: str) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"--input {path}: is not a readable parquet file ({str(error).splitlines()[0]})"
        ) from error


def _columns_of_json(path: str, lines: Iterator[str]) -> tuple[str, ...]:
    """Keys of the first line that is not blank."""
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise DataError(f"--input {path}: has no rows")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"--input {path}: its first line is not valid JSON ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(row, dict) or not row:
        raise DataError(f"--input {path}: its first line is not a JSON object")
    return tuple(row)


def rows_in(table: Table, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any] | RowProblem]]:
    """(line or row, the values of `columns`), in file order."""
    if table.format == "text":
        yield from _texts(table.path)
        return
    for number, cells in _raw(table, columns):
        if isinstance(cells, RowProblem):
            yield number, cells
        else:
            yield number, dict(zip(columns, cells, strict=True))


def _raw(table: Table, columns: Sequence[str]) -> Iterator[RawRow]:
    # A tab-separated file has no quoting (IANA text/tab-separated-values), a CSV file has (RFC 4180).
    is_quoted = table.format == "csv"
    source = _source(table)
    return iterate_rows(replace(source, text_columns=tuple(columns), header=table.header, quoted=is_quoted))


def _texts(path: str) -> Iterator[tuple[int, Mapping[str, Any] | RowProblem]]:
    broken: set[int] = set()
    for number, line in enumerate(lines_of(path, broken), 1):
        if number in broken:
            detail = "not valid UTF-8; convert the file, e.g. with iconv -t UTF-8"
            yield number, RowProblem("invalid UTF-8", detail)
        else:
            yield number, {"text": line.removesuffix("\n").removesuffix("\r")}


def first_row(table: Table) -> Mapping[str, Any]:
    """A row that shows which columns hold lists: the first one that can be read."""
    columns = table.columns if table.header else table.chosen
    for _, row in rows_in(table, columns):
        if not isinstance(row, RowProblem):
            return row
    raise DataError(f"--input {table.path}: has no row that can be read")


def needed_columns(table: Table, views: Sequence[View]) -> tuple[str, ...]:
    """What is read of each row."""
    names = [column for view in views for column in (*view.texts, *view.more)]
    if table.id_column:
        names.append(table.id_column)
    return tuple(dict.fromkeys(names))


def scan(table: Table, views: Sequence[View], *, skips_bad: bool) -> Scan:
    """Look at every row.

    Raises DataError naming the bad ones, unless they are to be skipped, and where there is no good one.
    """
    num_rows = num_bad = 0
    listed: list[str] = []
    word = row_word(_source(table))
    for number, row in rows_in(table, needed_columns(table, views)):
        num_rows += 1
        problem = _read(views, number, row)
        if isinstance(problem, RowProblem):
            num_bad += 1
            if len(listed) < _MAX_LISTED:
                listed.append(f"  {word} {number}: {problem.detail}")
    if num_bad > len(listed):
        listed.append(f"  ... and {num_bad - len(listed):,} more")

    if num_rows == 0:
        raise DataError(f"--input {table.path}: has no rows")
    if num_bad and not skips_bad:
        head = (
            f"--input {table.path}: {num_bad:,} of {num_rows:,} rows cannot be used; "
            "mend them, or leave them out with --on_bad_row skip"
        )
        raise DataError("\n".join([head, *listed]))
    if num_bad == num_rows:
        head = f"--input {table.path}: none of its {num_rows:,} rows can be used"
        raise DataError("\n".join([head, *listed]))
    return Scan(num_rows=num_rows, num_bad=num_bad)


def windows_of(
    table: Table, views: Sequence[View], *, window_rows: int, first: int, rank: int, world_size: int
) -> Iterator[Window]:
    """This rank's windows from number `first` on: those with (number - first) % world_size == rank."""
    rows = islice(rows_in(table, needed_columns(table, views)), first * window_rows, None)
    number = 0
    while True:
        is_own = number % world_size == rank
        ids: list[Any] = []
        checked: list[list[CheckedRow]] = [[] for _ in views]
        num_read = num_bad = 0
        for place, row in islice(rows, window_rows):
            num_read += 1
            if not is_own:
                continue

            one = _read(views, place, row)
            if isinstance(one, RowProblem) or isinstance(row, RowProblem):
                num_bad += 1
                continue
            ids.append(row[table.id_column] if table.id_column else place)
            for into, each in zip(checked, one, strict=True):
                into.append(each)

        if not num_read:
            return
        number += 1
        if is_own:
            yield Window(ids, checked, num_bad)


def _read(
    views: Sequence[View], number: int, row: Mapping[str, Any] | RowProblem
) -> list[CheckedRow] | RowProblem:
    """The row as each view reads it, or the first thing that is wrong with it."""
    if isinstance(row, RowProblem):
        return row
    return parsed(views, number, row)


def input_fingerprint(table: Table) -> str:
    """Identity of the file's contents."""
    return fingerprint(_source(table))


def _source(table: Table) -> Source:
    """The file, as the readers of data know files."""
    return Source(format=table.format, path=table.path, text_columns=(), label_column=None)
