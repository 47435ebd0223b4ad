"""Which tokens of a sequence are masked, and what stands in their place. Knows no documents.

All is drawn from keys and positions alone. The number to mask is exact: n = max(1, rate * candidates rounded
half up). Words are taken in a drawn order as long as more than half of the next one belongs to the first n
tokens, and at least one is taken; so with pieces exactly n tokens are masked, and with whole words the number
is as near to n as that order allows. Of the masked tokens 80 % become the mask token, 10 % a token drawn
uniformly from the vocabulary without its special tokens, and 10 % stay (Devlin et al. 2019, arXiv:1810.04805,
section 3.1).

Shape legend: S sequences, N tokens of their texts, U units that are masked together, K masked tokens.
"""

from __future__ import annotations

import numpy as np

from mtdnn_ds.counter_hash import words
from mtdnn_ds.data.ragged import starts_of

# Which of a sequence's keys is for what.
ORDER, FATE, RANDOM_TOKEN = (np.array([number], np.uint64) for number in range(3))


def chosen_tokens(
    keys_S: np.ndarray,
    owner_N: np.ndarray,
    position_N: np.ndarray,
    is_start_N: np.ndarray,
    is_candidate_N: np.ndarray,
    rate: float,
) -> np.ndarray:
    """Indices into N of the masked tokens, (K,), rising; at least one of each sequence.

    Tokens stand in order: `owner_N` (the sequence of each) never falls, `position_N` is its place in the
    sequence, and a unit goes from one start to the next. Tokens that are no candidates are never masked,
    unless a sequence has no others.
    """
    has_candidate_S = np.bincount(owner_N, weights=is_candidate_N, minlength=len(keys_S)) > 0
    kept = np.flatnonzero(is_candidate_N | ~has_candidate_S[owner_N])
    unit = np.cumsum(is_start_N)[kept]
    first = np.flatnonzero(np.diff(unit, prepend=-1))  # of each unit, among the kept
    num_tokens_U = np.diff(np.append(first, len(kept)))
    owner_U = owner_N[kept[first]]

    candidates_S = np.bincount(owner_N[kept], minlength=len(keys_S))
    number_S = np.maximum(1, np.floor(rate * candidates_S + 0.5).astype(np.int64))
    draw_U = words(words(keys_S, ORDER)[owner_U], position_N[kept[first]].astype(np.uint64))

    # In the drawn order: tokens of the units before each one in the same sequence.
    order = np.lexsort((draw_U, owner_U))
    length_U, owner_U = num_tokens_U[order], owner_U[order]
    before_U = starts_of(length_U)
    before_U -= before_U[np.searchsorted(owner_U, owner_U)]

    taken_U = np.empty(len(order), dtype=bool)
    taken_U[order] = (2 * before_U + length_U <= 2 * number_S[owner_U]) | (before_U == 0)
    return kept[np.repeat(taken_U, num_tokens_U)]


def replaced(
    ids_K: np.ndarray, keys_K: np.ndarray, position_K: np.ndarray, *, mask_id: int, ordinary_ids: np.ndarray
) -> np.ndarray:
    """What stands in the place of masked tokens, (K,); `keys_K` are their sequences' keys."""
    counters = position_K.astype(np.uint64)
    share_K = (words(words(keys_K, FATE), counters) >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    drawn_K = ordinary_ids[words(words(keys_K, RANDOM_TOKEN), counters) % np.uint64(len(ordinary_ids))]
    return np.select([share_K < 0.8, share_K < 0.9], [np.full_like(ids_K, mask_id), drawn_K], ids_K)
