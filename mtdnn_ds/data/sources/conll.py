"""Sentences of a .conll file: a word with its tag in each line, a blank line after each sentence.

No labels are judged here (data/rows/words.py).

Columns stand between tabs, or between blanks in a line without a tab, and have numbers: text_columns[0] of
the source is the word's, label_column the tag's. Lines that begin with -DOCSTART- part documents. Before a
sentence's first word, a line that begins with # is a comment (CoNLL-U) unless its tag is one:
"# sent_id = 7" is a comment, "# O" and "#nlproc<TAB>O" are words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain

from mtdnn_ds.config.errors import DataError
from mtdnn_ds.data.sources.lines import NOT_UTF8, Cells, RawRow, RowProblem, lines_of
from mtdnn_ds.tasks.spec import Source

_BLANKS = re.compile(r"[ \t]+")
_TAG = re.compile(r"O|[BI]-\S+")
_Line = tuple[int, list[str]]  # line number, fields


def sentences_in(source: Source) -> Iterator[RawRow]:
    """(line of its first word, (words, tags)) of each sentence; (words,) without a label column."""
    columns = [int(source.text_columns[0])]
    tag_column = None
    if source.label_column is not None:
        tag_column = int(source.label_column)
        columns.append(tag_column)

    broken: set[int] = set()
    width = 0  # fields of the file's first word
    sentence: list[_Line] = []
    for number, line in chain(enumerate(lines_of(source.path, broken), 1), [(0, "")]):
        fields = _fields(line)
        if fields and fields[0] != "-DOCSTART-":
            if sentence or not _is_comment(fields, tag_column):
                sentence.append((number, fields))
        elif sentence:
            width = width or _checked_width(source.path, columns, sentence[0][1])
            yield sentence[0][0], _cells(sentence, columns, width, broken)
            sentence = []


def _fields(line: str) -> list[str]:
    if not line.strip():
        return []
    if "\t" in line:
        return [field.strip() for field in line.rstrip("\r\n").split("\t")]
    return _BLANKS.split(line.strip())


def _is_comment(fields: Sequence[str], tag_column: int | None) -> bool:
    if not fields[0].startswith("#"):
        return False
    if tag_column is None:
        if len(fields) == 1:
            return False
        tag_column = -1
    return not (-len(fields) <= tag_column < len(fields) and _TAG.fullmatch(fields[tag_column]))


def _checked_width(path: str, columns: Sequence[int], first: Sequence[str]) -> int:
    """Fields of the first word's line.

    Raises DataError if a column lies outside of them, or both are the same.
    """
    width = len(first)
    outside = [str(column) for column in columns if not -width <= column < width]
    missing = None
    if outside:
        missing = f"no column {', '.join(outside)}"
    elif len(columns) == 2 and columns[0] % width == columns[1] % width:
        missing = "no column beside the word's for the tag"

    if missing is not None:
        raise DataError(f"{path}: {missing}; its lines have {width} fields, numbered from 0")
    return width


def _cells(
    sentence: Sequence[_Line], columns: Sequence[int], width: int, broken: set[int]
) -> Cells | RowProblem:
    for number, fields in sentence:
        if number in broken:
            return RowProblem(NOT_UTF8.reason, f"line {number} is {NOT_UTF8.detail}")
        if len(fields) != width:
            return RowProblem(
                "wrong number of fields", f"line {number} has {len(fields)} fields instead of {width}"
            )
    return tuple([fields[column] for _, fields in sentence] for column in columns)
