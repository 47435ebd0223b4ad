"""Random words from counters: the word at (key, counter) without the words before it. Not a generator with a state, not cryptography.

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): word n of the generator that starts at a key.
NumPy wraps uint64 arrays silently, as meant, but warns on scalars: everything here is an array.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the increment of SplitMix64's counter


def stream_of(name: str) -> int:
    """The stream of a name, of a task for example: adding a task to a run does not disturb the streams of the others."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def epoch_keys(seed: int, stream: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """The key of each (stream, epoch); arrays of uint64 of one shape."""
    return mix(mix(stream + mix(np.array([seed], np.uint64))) + epochs)


def sequence_keys(
    owner_S: np.ndarray, streams_B: np.ndarray, rows_B: np.ndarray, epochs_B: np.ndarray
) -> np.ndarray:
    """(S,) uint64: a random number of each sequence, from its example's stream, row and epoch and from its place among the example's
    sequences. `owner_S`: index into B, or -1 for what belongs to no example.

    Owners (0, 1, 0) have places (0, 0, 1).
    """
    keys_B = words(
        epoch_keys(0, streams_B.astype(np.uint64), epochs_B.astype(np.uint64)), rows_B.astype(np.uint64)
    )
    order = np.argsort(owner_S, kind="stable")
    places_S = np.empty(len(owner_S), dtype=np.uint64)
    places_S[order] = np.arange(len(owner_S)) - np.searchsorted(owner_S[order], owner_S[order])
    return words(np.append(keys_B, np.uint64(0))[owner_S], places_S)


def words(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Word number `counters` of the generators that start at `keys`; both uint64, as broadcasting allows."""
    return mix(keys + counters * _GOLDEN)


def mix(word: np.ndarray) -> np.ndarray:
    """SplitMix64's step: add the increment, then its finalizer; a bijection on 64-bit words."""
    word = word + _GOLDEN
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
