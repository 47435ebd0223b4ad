"""Sums and softmax over the rows of each example. Not a loss.

Rows of an example are neighbours (batch/packed.py), so examples are segments; torch adds up a segment's rows
one after the other, always in the same order, where scattered additions would make a GPU's result vary from
run to run.

Shape legend: K supervised rows, G examples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtdnn_ds.batch import Targets


def group_sum(values: Tensor, targets: Targets) -> Tensor:
    """(K, ...) -> (G, ...): the sum over each example's rows."""
    if not targets.num_rows:
        return values  # (0, ...), and still in the graph
    return torch.segment_reduce(values, "sum", offsets=_offsets(targets))


def group_log_sum_exp(scores: Tensor, targets: Targets) -> Tensor:
    """(K, ...) -> (G, ...): the log of the sum of exp(scores) over each example's rows.

    Its gradient has no scattered additions either.
    """
    if not targets.num_rows:
        return scores

    # log sum exp(s) = log sum exp(s - max) + max, which cannot overflow.
    highest = torch.segment_reduce(scores.detach(), "max", offsets=_offsets(targets))
    return group_sum((scores - highest.index_select(0, targets.groups)).exp(), targets).log() + highest


def group_log_softmax(scores: Tensor, targets: Targets) -> Tensor:
    """(K, ...) -> (K, ...): scores minus the log of the sum of exp(scores) over the same example's rows."""
    if not targets.num_rows:
        return scores

    offsets = _offsets(targets)
    highest = torch.segment_reduce(scores.detach(), "max", offsets=offsets).index_select(0, targets.groups)
    log_sums = torch.segment_reduce((scores - highest).exp(), "sum", offsets=offsets).log()
    return scores - highest - log_sums.index_select(0, targets.groups)


def _offsets(targets: Targets) -> Tensor:
    """(G+1,): groups [0, 0, 1, 1, 1] begin at rows [0, 2, 5]."""
    examples = torch.arange(len(targets.examples) + 1, device=targets.groups.device)
    return torch.searchsorted(targets.groups, examples)
