"""Attention groups: which sequences of a micro-batch attention re-pads together. NumPy only; not the
attention (model/attention.py).

A group of S sequences padded to length L costs S * (L^2 + token * L) + overhead, counted in query-key pairs,
with the device's costs of a token and of a group (GroupCosts); the groups that `attention_groups` returns
have the smallest sum of that cost among all cuts of the sorted sequences.

Shape legend: T packed tokens, S sequences, L longest sequence of a group, U distinct lengths, P padded rows
of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtdnn_ds.batch.packed import AttentionGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCosts:
    """What a padded group costs beside its query-key pairs, in pairs."""

    token_pairs: float
    overhead_pairs: float


# Least-squares fit of overhead + a * tokens + b * pairs to the CPU time of one padded group's attention,
# forward and backward: 1 to 32 sequences of 8 to 256 tokens, float32, one thread of an AVX2 EPYC, torch 2.13.
# With 12 heads of 32 (MiniLM) and 16 heads of 64 (BERT-large), dropout 0 and 0.1: overhead 1,800 to 8,900
# pairs, a token 47 to 107 pairs; mean error 8-14 %.
CPU_COSTS = GroupCosts(token_pairs=64, overhead_pairs=4096)

# Not measured: an estimate for an H100 and 16 heads of 64 in bf16. A pair takes 14,000 flops forward and
# backward, 50 ps at 300 TFLOP/s. A token is read and written some 20 times in rows of 2 KB, 13 ns at 3 TB/s:
# 256 pairs. A group is about 30 launches of 4 microseconds: 2.4 million pairs.
CUDA_COSTS = GroupCosts(token_pairs=256, overhead_pairs=2.4e6)


def costs_on(device: torch.device) -> GroupCosts:
    """The costs of a kind of device."""
    return CUDA_COSTS if device.type == "cuda" else CPU_COSTS


def attention_groups(
    lengths_S: np.ndarray, costs: GroupCosts = CPU_COSTS
) -> tuple[tuple[AttentionGroup, ...], Tensor]:
    """The cheapest groups of sequences, and `packed_to_padded` (T,) int64 (see PackedBatch).

    `lengths_S` must be ascending and positive. Deterministic, and well under a millisecond for 64 sequences.
    Example: lengths (2, 3) give one group with padded_to_packed [[0, 1, 5], [2, 3, 4]] and packed_to_padded
    [0, 1, 3, 4, 5].
    """
    lengths_S = np.asarray(lengths_S, dtype=np.int64)
    assert lengths_S.size > 0 and lengths_S[0] > 0 and bool((np.diff(lengths_S) >= 0).all()), (
        "lengths must be positive and ascending"
    )

    first_sequences = cheapest_cut(
        lengths_S, token_cost_pairs=costs.token_pairs, group_overhead_pairs=costs.overhead_pairs
    )
    ends_of_groups = [*first_sequences[1:], lengths_S.size]
    starts_S = np.cumsum(lengths_S) - lengths_S
    num_tokens = int(lengths_S.sum())

    groups: list[AttentionGroup] = []
    padded_starts_S = np.empty_like(lengths_S)  # padded row of each sequence's first token
    num_padded_rows = 0
    for first, end in zip(first_sequences, ends_of_groups, strict=True):
        longest = int(lengths_S[end - 1])
        positions_L = np.arange(longest)
        is_token_SL = positions_L < lengths_S[first:end, None]
        padded_to_packed_SL = np.where(is_token_SL, starts_S[first:end, None] + positions_L, num_tokens)
        has_padding = lengths_S[first] < longest
        key_mask = torch.from_numpy(is_token_SL[:, None, None, :]) if has_padding else None
        groups.append(
            AttentionGroup(padded_to_packed=torch.from_numpy(padded_to_packed_SL), key_mask=key_mask)
        )

        padded_starts_S[first:end] = num_padded_rows + np.arange(end - first) * longest
        num_padded_rows += (end - first) * longest

    packed_to_padded_T = np.arange(num_tokens) + np.repeat(padded_starts_S - starts_S, lengths_S)
    return tuple(groups), torch.from_numpy(packed_to_padded_T)


def cheapest_cut(lengths_S: np.ndarray, *, token_cost_pairs: float, group_overhead_pairs: float) -> list[int]:
    """Index of each group's first sequence, for the cut with the smallest total cost; `lengths_S` ascending.

    Sequences of equal length never part: moving the shorter side of such a cut into the longer group's
    padding is free. So the dynamic programme runs over the U distinct lengths: best[j] = min over i <= j of
    best[i - 1] + cost(i..j).
    """
    lengths_U, first_of_U = np.unique(lengths_S, return_index=True)
    ends_U = np.append(first_of_U[1:], lengths_S.size)
    sequence_cost_U = lengths_U * (lengths_U + token_cost_pairs)
    # [i, j]: lengths i..j together
    num_sequences_UU = ends_U[None, :] - first_of_U[:, None]
    cost_UU = num_sequences_UU * sequence_cost_U[None, :] + group_overhead_pairs

    best = np.zeros(len(lengths_U) + 1)  # best[j]: the first j distinct lengths
    start_of_last_group = np.zeros(len(lengths_U), dtype=np.int64)
    for last in range(len(lengths_U)):
        totals = best[: last + 1] + cost_UU[: last + 1, last]
        start_of_last_group[last] = totals.argmin()
        best[last + 1] = totals[start_of_last_group[last]]

    cut: list[int] = []
    last = len(lengths_U) - 1
    while last >= 0:
        start = int(start_of_last_group[last])
        cut.append(int(first_of_U[start]))
        last = start - 1
    return cut[::-1]
