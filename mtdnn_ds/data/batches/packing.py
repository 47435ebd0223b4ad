"""Packing: a step's examples -> W ranks x M micro-batches of bounded tokens and equal cost. Pure NumPy.

Makes no tensors, knows no plan. Cost of a sequence of L tokens in a layer of hidden size D, in flops of the
forward pass (backward is twice that): the linear layers take 12 D^2 multiply-adds a token (query, key, value,
output 4 D^2; feed-forward 8 D^2) = 24 D^2 L flops; scores and their product with the values take 2 L D
multiply-adds a token = 4 D L^2 flops. Together 24 D^2 L (1 + L / (6 D)), in proportion to the integer
L (6 D + L) that is used here: exact sums, so no tie depends on rounding.

Examples go, longest first, to the cheapest bin with room (longest processing time first, Graham 1969). The
W * M bins are then dealt to the ranks W at a time, from expensive to cheap: under ZeRO 2 and 3 ranks wait for
each other at every micro-batch, so micro-batch i is of one cost on all ranks. In each deal the most expensive
bin goes to the rank that has the least so far.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtdnn_ds.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """Every example of the step once.

    `micro_batches[rank][i]` holds int64 indices into the step, shortest sequence first.
    """

    micro_batches: tuple[tuple[np.ndarray, ...], ...]  # W x M; one may be empty (collate.py adds a filler)
    num_micro_batches: int  # M, equal on all ranks
    rank_imbalance: float  # cost of the dearest rank / mean over ranks; 1 is perfect
    tokens: int  # real tokens of the step
    packing_efficiency: float  # tokens / (W * M * max_tokens)


def pack(
    lengths: np.ndarray,
    task_ids: np.ndarray,
    *,
    world_size: int,
    max_tokens: int,
    hidden_size: int,
    one_task_per_micro_batch: bool = False,
) -> Packing:
    """Cut a step of B >= 1 examples for `world_size` ranks. Deterministic.

    `lengths` (B,) are in tokens, each >= 1; `task_ids` (B,). No micro-batch has more than `max_tokens`
    tokens; M is the least for which the greedy filling works. With `one_task_per_micro_batch` no micro-batch
    mixes tasks (ranks and micro-batches may differ in their task). Raises ConfigError if a sequence is longer
    than `max_tokens`.
    """
    assert lengths.shape == task_ids.shape and lengths.size > 0 and int(lengths.min()) >= 1
    _check_longest(lengths, max_tokens)
    length_B = lengths.astype(np.int64)
    cost_B = length_B * (6 * hidden_size + length_B)
    group_B = task_ids if one_task_per_micro_batch else np.zeros_like(task_ids)

    # Within a group longest first; of equal lengths the later example first, so that a bin read backwards has
    # ties in the step's order.
    by_group = np.lexsort((-np.arange(length_B.size), -length_B, group_B))
    groups = np.split(by_group, np.flatnonzero(np.diff(group_B[by_group])) + 1)

    bins, num_micro_batches = _fill_groups(groups, length_B, cost_B, world_size, max_tokens)
    bin_costs = [int(cost_B[members].sum()) for members in bins]
    rank_bins, rank_costs = _deal(bin_costs, world_size)

    tokens = int(length_B.sum())
    return Packing(
        micro_batches=tuple(
            tuple(np.array(bins[b][::-1], dtype=np.int64) for b in mine) for mine in rank_bins
        ),
        num_micro_batches=num_micro_batches,
        rank_imbalance=max(rank_costs) * world_size / sum(rank_costs),
        tokens=tokens,
        packing_efficiency=tokens / (world_size * num_micro_batches * max_tokens),
    )


def _check_longest(lengths: np.ndarray, max_tokens: int) -> None:
    too_long = np.flatnonzero(lengths > max_tokens)
    if too_long.size:
        raise ConfigError(
            f"batch.max_tokens_per_micro_batch={max_tokens}: {too_long.size} of {lengths.size} examples "
            f"of a step are longer, the longest has {int(lengths.max())} tokens; "
            "raise it to at least encoder.max_length, or lower encoder.max_length."
        )


def _fill_groups(
    groups: Sequence[np.ndarray], length_B: np.ndarray, cost_B: np.ndarray, world_size: int, max_tokens: int
) -> tuple[list[list[int]], int]:
    """W * M bins, none with examples of two groups, and M. Groups hold indices, longest first.

    Ends: a group with a bin for each of its examples always fits, and every failure asks for one bin more.
    """
    needed = [_least_bins(length_B[members], max_tokens) for members in groups]
    costs = [int(cost_B[members].sum()) for members in groups]
    sizes = [members.size for members in groups]

    while True:
        num_micro_batches = -(-sum(needed) // world_size)
        allotted = _allot(needed, costs, sizes, world_size * num_micro_batches)
        filled = [
            _fill(members, length_B, cost_B, count, max_tokens)
            for members, count in zip(groups, allotted, strict=True)
        ]
        if None not in filled:
            bins = [members for group in filled if group is not None for members in group]
            empty: list[list[int]] = [[] for _ in range(world_size * num_micro_batches - len(bins))]
            return bins + empty, num_micro_batches

        for g, bins_of_group in enumerate(filled):
            if bins_of_group is None:
                needed[g] = allotted[g] + 1


def _least_bins(descending: np.ndarray, max_tokens: int) -> int:
    """Bins that no filling can do without: by tokens, and by long sequences.

    At most n sequences longer than max_tokens / (n + 1) share a bin.
    """
    least = -(-int(descending.sum()) // max_tokens)
    for n in range(1, 65):
        # In front of the first with L (n + 1) <= max_tokens.
        longer = int(np.searchsorted(-descending * (n + 1), -max_tokens))
        least = max(least, -(-longer // n))
    return least


def _allot(needed: Sequence[int], costs: Sequence[int], sizes: Sequence[int], num_bins: int) -> list[int]:
    """Bins of each group: the needed ones, and at most one for each of its examples.

    The spare ones go one by one to the group with the dearest bins.
    """
    allotted = list(needed)
    heap = [(-costs[g] / needed[g], g) for g in range(len(needed)) if needed[g] < sizes[g]]
    heapq.heapify(heap)

    for _ in range(num_bins - sum(needed)):
        if not heap:
            break
        _, g = heapq.heappop(heap)
        allotted[g] += 1
        if allotted[g] < sizes[g]:
            heapq.heappush(heap, (-costs[g] / allotted[g], g))
    return allotted


def _fill(
    longest_first: np.ndarray, length_B: np.ndarray, cost_B: np.ndarray, num_bins: int, max_tokens: int
) -> list[list[int]] | None:
    """Each example to the cheapest bin with room; None if an example finds none. O((B + bins) log bins).

    A bin too full for the present length is laid aside, and comes back when lengths have fallen to its room.
    It then has room, so it is laid aside again only after it has taken an example: at most B + bins times
    altogether.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    room = [max_tokens] * num_bins
    open_bins = [(0, b) for b in range(num_bins)]  # a heap by cost
    aside: list[tuple[int, int, int]] = []  # a heap by room, most first: (-room, cost, bin)
    lengths, costs = length_B[longest_first].tolist(), cost_B[longest_first].tolist()

    for example, length, cost in zip(longest_first.tolist(), lengths, costs, strict=True):
        while aside and -aside[0][0] >= length:
            _, bin_cost, b = heapq.heappop(aside)
            heapq.heappush(open_bins, (bin_cost, b))

        while open_bins and room[open_bins[0][1]] < length:
            bin_cost, b = heapq.heappop(open_bins)
            heapq.heappush(aside, (-room[b], bin_cost, b))
        if not open_bins:
            return None

        bin_cost, b = open_bins[0]
        heapq.heapreplace(open_bins, (bin_cost + cost, b))
        room[b] -= length
        bins[b].append(example)
    return bins


def _deal(bin_costs: Sequence[int], world_size: int) -> tuple[list[list[int]], list[int]]:
    """The bins of each rank in the order of its micro-batches, and each rank's cost."""
    dearest_first = sorted(range(len(bin_costs)), key=lambda b: (-bin_costs[b], b))
    rank_bins: list[list[int]] = [[] for _ in range(world_size)]
    rank_costs = [0] * world_size

    for start in range(0, len(dearest_first), world_size):
        cheapest_first = sorted(range(world_size), key=lambda rank: (rank_costs[rank], rank))
        for rank, b in zip(cheapest_first, dearest_first[start : start + world_size], strict=True):
            rank_bins[rank].append(b)
            rank_costs[rank] += bin_costs[b]
    return rank_bins, rank_costs
