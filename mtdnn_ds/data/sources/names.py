"""How messages name a source and what its rows are called; the columns it must have.

Reads no rows (tables.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from mtdnn_ds.config.errors import DataError, did_you_mean
from mtdnn_ds.tasks.spec import Source

_TEXT_FORMATS = ("tsv", "csv", "jsonl", "text", "conll")


def columns_of(source: Source) -> tuple[str, ...]:
    """The columns that a row's cells come from, in their order."""
    columns = source.text_columns + source.more_columns
    if source.label_column is not None:
        columns += (source.label_column,)
    return columns


def place_of(source: Source) -> str:
    """How messages name a source."""
    if source.format in ("hub", "datasets"):
        return ":".join(part for part in (source.path, source.config, source.split) if part)
    if source.format == "generated":
        return f"{source.path}/{source.split}"
    return source.path


def row_word(source: Source) -> str:
    """What a row number counts: lines, rows, or the questions of nested sources."""
    if source.nested or source.format in ("squad", "conversations"):
        return "question"
    if source.format in _TEXT_FORMATS:
        return "line"
    return "row"


def require_columns(source: Source, columns: Sequence[str], known: Sequence[str]) -> None:
    """Raises DataError with every one of `columns` that the source's `known` ones lack, or hold twice."""
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
