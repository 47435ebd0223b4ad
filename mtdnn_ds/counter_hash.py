"""Random words from counters: the word at (key, counter) without the words before it. No generator state, no
cryptography.

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): word n of the
generator that starts at a key is mix(key + n * GOLDEN). Here on NumPy arrays and on Python's integers; on
tensors of int64 it is model/dropout/counter_masks.py, with the numbers that stand here.

NumPy wraps uint64 arrays silently, as meant, but warns on scalars: `mix` and `words` take arrays.

Shape legend: B examples, S sequences.
"""

from __future__ import annotations

import hashlib

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # the increment of SplitMix64's counter
ROUNDS, LAST_SHIFT = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)), 31
"""Of its finalizer: word = (word ^ word >> shift) * factor in each round, and word ^ word >> LAST_SHIFT at
the end."""


def stream_of(name: str) -> int:
    """The stream of a name, of a task or a module for example, from 0 to 2^64 - 1.

    A name's stream depends on no other name: adding a task to a run does not disturb the streams of the
    others.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def epoch_keys(seed: int, stream: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """The key of each (stream, epoch); arrays of uint64 of one shape."""
    return mix(mix(stream + mix(np.array([seed], np.uint64))) + epochs)


def sequence_keys(
    owner_S: np.ndarray, streams_B: np.ndarray, rows_B: np.ndarray, epochs_B: np.ndarray
) -> np.ndarray:
    """(S,) uint64: a random number of each sequence, from its example's stream, row and epoch and from its
    place among the example's sequences. `owner_S`: index into B, or -1 for what belongs to no example.

    Owners (0, 1, 0) have places (0, 0, 1).
    """
    streams_B, rows_B, epochs_B = (each.astype(np.uint64) for each in (streams_B, rows_B, epochs_B))
    keys_B = words(epoch_keys(0, streams_B, epochs_B), rows_B)

    order = np.argsort(owner_S, kind="stable")
    places_S = np.empty(len(owner_S), dtype=np.uint64)
    places_S[order] = np.arange(len(owner_S)) - np.searchsorted(owner_S[order], owner_S[order])

    return words(np.append(keys_B, np.uint64(0))[owner_S], places_S)


def words(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Word number `counters` of the generators that start at `keys`; both uint64, as broadcasting allows."""
    return mix(keys + counters * np.uint64(GOLDEN))


def mix(word: np.ndarray) -> np.ndarray:
    """SplitMix64's step on an array of uint64: add the increment, then the finalizer; a bijection on 64-bit
    words."""
    word = word + np.uint64(GOLDEN)
    for shift, factor in ROUNDS:
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    return word ^ (word >> np.uint64(LAST_SHIFT))


def mix_word(word: int) -> int:
    """The same of one integer, which may be above 2^64 - 1."""
    word = (word + GOLDEN) % 2**64
    for shift, factor in ROUNDS:
        word = (word ^ word >> shift) * factor % 2**64
    return word ^ word >> LAST_SHIFT
