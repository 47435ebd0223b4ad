"""Stateless shuffling: position within an epoch -> row, in O(1) memory. No random generator, no cryptography.

A Feistel network whose halves are digits in base a and b, a * b >= size (Black and Rogaway 2002, "Ciphers
with arbitrary finite domains", section 5), followed by cycle walking: an output outside [0, size) is sent
through the network again. The network is a bijection on [0, a*b), so walking ends after at most a*b steps and
the whole is a bijection on [0, size). With a = ceil(sqrt(size)), b = ceil(size / a) fewer than a of the a*b
values lie outside, so hardly any position walks.
"""

from __future__ import annotations

import numpy as np

from mtdnn_ds.counter_hash import epoch_keys, words

# 4 are enough for large domains (Luby and Rackoff 1988); 8 also make all orders of 3 rows equally frequent.
_ROUNDS = 8


def permute(
    positions: np.ndarray,
    *,
    size: int | np.ndarray,
    seed: int,
    epoch: int | np.ndarray,
    stream: int | np.ndarray,
) -> np.ndarray:
    """Row at each of `positions` of an epoch, int64, in the shape all arguments broadcast to.

    For every (seed, stream, epoch) a bijection on [0, size); 0 <= positions < size < 2^52 is the caller's
    duty. `size`, `epoch` and `stream` may be arrays, so one call serves examples of many tasks and epochs.
    """
    arrays = (np.asarray(positions), np.asarray(size), np.asarray(epoch), np.asarray(stream, dtype=np.uint64))
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    # One-dimensional from here on: NumPy wraps uint64 arrays silently, as meant, but warns on scalars.
    value_B, size_B, epoch_B, stream_B = (
        np.broadcast_to(array, shape).astype(np.uint64).reshape(-1) for array in arrays
    )
    assert value_B.size == 0 or bool((value_B < size_B).all()), "positions must lie in [0, size)"

    key_B = epoch_keys(seed, stream_B, epoch_B)
    row_B = _network(value_B, size_B, key_B)
    outside = np.flatnonzero(row_B >= size_B)
    while outside.size:
        row_B[outside] = _network(row_B[outside], size_B[outside], key_B[outside])
        outside = outside[row_B[outside] >= size_B[outside]]
    return row_B.astype(np.int64).reshape(shape)


def _network(value_B: np.ndarray, size_B: np.ndarray, key_B: np.ndarray) -> np.ndarray:
    """A bijection on [0, a*b): value = left * b + right; each round adds a hash of one digit to the other."""
    a_B = np.ceil(np.sqrt(size_B.astype(np.float64))).astype(np.uint64)
    b_B = (size_B + a_B - np.uint64(1)) // a_B
    left_B, right_B = np.divmod(value_B, b_B)

    for number in range(_ROUNDS):
        round_key_B = words(key_B, np.array([number], np.uint64))
        if number % 2 == 0:
            left_B = (left_B + words(round_key_B, right_B) % a_B) % a_B
        else:
            right_B = (right_B + words(round_key_B, left_B) % b_B) % b_B
    return left_B * b_B + right_B
