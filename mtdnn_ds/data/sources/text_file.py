"""Documents of a plain text file. No sentences (data/documents.py)."""

from __future__ import annotations

from collections.abc import Iterator

from mtdnn_ds.data.sources.lines import NOT_UTF8, RawRow, lines_of


def documents_in(path: str) -> Iterator[RawRow]:
    """(line of its first paragraph, (text,)) of each document: a run of lines that are not blank, joined with their line ends."""
    broken: set[int] = set()
    first, block = 0, list[str]()
    for number, line in enumerate(lines_of(path, broken), 1):
        if line.strip():
            first = first if block else number
            block.append(line)
        elif block:
            yield _row(first, block, broken)
            block = []
    if block:
        yield _row(first, block, broken)


def _row(first: int, block: list[str], broken: set[int]) -> RawRow:
    bad = [number for number in range(first, first + len(block)) if number in broken]
    return (bad[0], NOT_UTF8) if bad else (first, ("".join(block),))
