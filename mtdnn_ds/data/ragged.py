"""Index arithmetic for parts of unequal length that stand end to end.

Pure NumPy; knows neither texts nor tensors.
"""

from __future__ import annotations

import numpy as np


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where each part begins: lengths (2, 3, 4) give [0, 2, 5]."""
    return np.cumsum(lengths) - lengths


def ragged_ranges(starts_S: np.ndarray, lengths_S: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each part: starts (5, 0), lengths (2, 3) give [5, 6, 0, 1, 2]."""
    shifts_S = starts_S - starts_of(lengths_S)
    return np.arange(int(lengths_S.sum()), dtype=np.int64) + np.repeat(shifts_S, lengths_S)


def places_within(lengths_S: np.ndarray) -> np.ndarray:
    """Place of each member within its part: lengths (2, 0, 3) give [0, 1, 0, 1, 2]."""
    return ragged_ranges(np.zeros_like(lengths_S), lengths_S)


def ragged_index(lengths_S: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Index that reorders parts: lengths (2, 3) in order (1, 0) give [2, 3, 4, 0, 1]."""
    return ragged_ranges(starts_of(lengths_S)[order], lengths_S[order])
