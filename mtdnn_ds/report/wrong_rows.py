"""Rows that a model gets wrong, with their texts, read again from the task's source.

Decides nothing about right and wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from mtdnn_ds.data.examples import Examples
from mtdnn_ds.data.sources.names import place_of, row_word
from mtdnn_ds.data.sources.tables import iterate_rows
from mtdnn_ds.tasks.spec import Source, TaskSpec

_LONGEST_TEXT = 600  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class WrongRow:
    """One row that the model gets wrong."""

    place: str  # file and line
    texts: tuple[tuple[str, str], ...]  # column, text
    right: str
    predicted: str
    how_wrong: str


def wrong_rows(
    spec: TaskSpec,
    examples: Examples,
    rows: np.ndarray,
    described: Callable[[int], tuple[str, str, str]],
    *,
    by_split_row: bool = False,
) -> tuple[WrongRow, ...]:
    """The given rows of the task's first dev split.

    `described`: what is right, predicted and how wrong, of each.

    `by_split_row`: rows count the split's rows, not its examples.
    """
    source = spec.splits[spec.dev_splits[0]]
    if by_split_row:
        numbers = [int(examples.split.source_rows[row]) for row in rows]
    else:
        numbers = [examples.source_row(int(row)) for row in rows]
    texts = _texts_of(source, set(numbers))

    found = []
    for row, number in zip(rows.tolist(), numbers, strict=True):
        right, predicted, how_wrong = described(row)
        wrong = WrongRow(
            place=f"{place_of(source)}, {row_word(source)} {number}",
            texts=texts.get(number, ()),
            right=right,
            predicted=predicted,
            how_wrong=how_wrong,
        )
        found.append(wrong)
    return tuple(found)


def _texts_of(source: Source, numbers: Collection[int]) -> dict[int, tuple[tuple[str, str], ...]]:
    """Columns and texts of the rows with these numbers, as far as they can be read."""
    texts: dict[int, tuple[tuple[str, str], ...]] = {}
    if not numbers:
        return texts

    for number, cells in iterate_rows(source):
        if number not in numbers or not isinstance(cells, tuple):
            continue
        columns = zip(source.text_columns, cells, strict=False)
        texts[number] = tuple((column, _shown(cell)) for column, cell in columns)
        if len(texts) == len(numbers):
            break
    return texts


def _shown(cell: object) -> str:
    text = " ".join(map(str, cell)) if isinstance(cell, (list, tuple)) else str(cell)
    if len(text) <= _LONGEST_TEXT:
        return text
    return text[: _LONGEST_TEXT - 1] + "…"
