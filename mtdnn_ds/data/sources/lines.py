"""Raw rows, and the lines of text files that they come from.

Judges no row; tables and other formats are in the files beside it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mtdnn_ds.config.errors import DataError


class RowProblem(NamedTuple):
    """Why a row cannot be used: a reason to count by, and what exactly is wrong."""

    reason: str
    detail: str
    left_out: bool = False  # whatever data.on_bad_row says: official practice of its task


Cells = tuple[object, ...]
RawRow = tuple[int, Cells | RowProblem]

NOT_UTF8 = RowProblem("invalid UTF-8", "not valid UTF-8; convert the file, e.g. with iconv -t UTF-8")


def lines_of(path: str, broken: set[int]) -> Iterator[str]:
    r"""Lines with their ends, cut at \n only (a text may hold U+2028).

    Numbers of lines that are not UTF-8 go into `broken`.

    Raises DataError for UTF-16.
    """
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise DataError(f"{path}: is UTF-16; save it as UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)

            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                broken.add(number)
                yield line.decode("utf-8", errors="surrogateescape")


def documents_in(path: str) -> Iterator[RawRow]:
    """(line of its first paragraph, (text,)) of each document of a plain text file.

    A document is a run of lines that are not blank, joined with their line ends.
    """
    broken: set[int] = set()
    first, block = 0, list[str]()

    for number, line in enumerate(lines_of(path, broken), 1):
        if line.strip():
            if not block:
                first = number
            block.append(line)
        elif block:
            yield _document(first, block, broken)
            block = []

    if block:
        yield _document(first, block, broken)


def _document(first: int, block: list[str], broken: set[int]) -> RawRow:
    for number in range(first, first + len(block)):
        if number in broken:
            return number, NOT_UTF8
    return first, ("".join(block),)
