"""Lines of a text file, and what a row is before it is judged. Knows no format (data/sources/tables.py, data/sources/text_file.py)."""

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


Cells = tuple[object, ...]
RawRow = tuple[int, Cells | RowProblem]

NOT_UTF8 = RowProblem("invalid UTF-8", "not valid UTF-8; convert the file, e.g. with iconv -t UTF-8")


def lines_of(path: str, broken: set[int]) -> Iterator[str]:
    r"""Lines with their ends, cut at \n only (a text may hold U+2028). Numbers of lines that are not UTF-8 go into `broken`."""
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
