"""Training rows that stand in a development or test split of any task, found in the cache. Drops none.

Two rows are the same if all their texts are, in their order, token for token (row_hashes.py); their labels do
not matter. Of the evaluation splits one part of the hashes is held at a time, with many rows in several
passes; training splits are only read through.

Shape legend: R rows of a training split, B rows of a block, L leaked rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.row_hashes import HASHES_PER_PASS, hashed_blocks

TRAIN = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakedRows:
    """Of one task's training split."""

    rows: np.ndarray  # (L,) int64, their numbers in the split, rising
    num_rows: int  # of the whole split
    places: Mapping[str, int]  # TASK/SPLIT -> how many of them stand there; a row may stand in several

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"left_out": len(self.rows), "of": self.num_rows, "stand_in": dict(self.places)}


def leaked_rows(
    prepared: Mapping[str, Mapping[str, PreparedSplit]], hashes_per_pass: int = HASHES_PER_PASS
) -> dict[str, LeakedRows]:
    """{task: its leaked rows} of {task: {split: rows}}, without the tasks that have none.

    The number of passes changes nothing.
    """
    evaluated = {
        f"{task}/{name}": split
        for task, splits in prepared.items()
        for name, split in splits.items()
        if name != TRAIN
    }
    training = {task: splits[TRAIN] for task, splits in prepared.items() if TRAIN in splits}
    is_leaked = {task: np.zeros(split.num_rows, dtype=bool) for task, split in training.items()}
    places: dict[str, dict[str, int]] = {task: {} for task in training}

    num_hashes = sum(split.num_rows for split in evaluated.values())
    num_passes = max(1, -(-num_hashes // hashes_per_pass))
    for number in range(num_passes):
        hashes = {name: _hashes(split, number, num_passes) for name, split in evaluated.items()}
        together = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *hashes.values()]))
        for task, split in training.items():
            for block in hashed_blocks(split):
                found_B = _is_among(block.row_hashes, together)
                is_leaked[task][block.rows[found_B]] = True
                _count(block.row_hashes[found_B], hashes, places[task])

    return {
        task: LeakedRows(
            rows=np.flatnonzero(is_leaked[task]),
            num_rows=split.num_rows,
            places={name: places[task][name] for name in evaluated if name in places[task]},
        )
        for task, split in training.items()
        if is_leaked[task].any()
    }


def _hashes(split: PreparedSplit, number: int, num_passes: int) -> np.ndarray:
    """The split's hashes of one pass, each once, rising."""
    parts = [np.zeros(0, dtype=np.uint64)]
    for block in hashed_blocks(split):
        parts.append(block.row_hashes[block.row_hashes % np.uint64(num_passes) == number])
    return np.unique(np.concatenate(parts))


def _is_among(hashes_B: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """(B,) bool."""
    if not len(rising):
        return np.zeros(len(hashes_B), dtype=bool)
    places_B = np.minimum(np.searchsorted(rising, hashes_B), len(rising) - 1)
    return np.asarray(rising[places_B] == hashes_B)


def _count(found: np.ndarray, hashes: Mapping[str, np.ndarray], places: dict[str, int]) -> None:
    """Add how many of the hashes `found` stand in each evaluation split."""
    if not len(found):
        return
    for name, of_split in hashes.items():
        count = int(_is_among(found, of_split).sum())
        if count:
            places[name] = places.get(name, 0) + count
