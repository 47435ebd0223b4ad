"""Loss of spans: the mean of the cross-entropies of start and end over the tokens of an example. In float32 whatever the outputs' dtype.

For example g with token scores s_k, e_k, start a and end b:  l_g = (log sum_k exp s_k - s_a + log sum_k exp e_k - e_b) / 2.

Shape legend: K supervised rows (tokens), G examples, C columns of the head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.sums import TermTable, own_outputs


def span_losses(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """(G,); labels are 1 where the example's answer starts, plus 2 where it ends (one start and one end an example)."""
    scores_K2 = own_outputs(outputs_KC, targets.term_ids, table)[:, :2]
    if not targets.num_rows:
        return scores_K2.sum(dim=1)  # (0,), and the head is in the graph
    # Rows of an example are neighbours, so examples are segments; torch adds a segment's rows one after the other, always in the same order.
    edges = torch.arange(len(targets.examples) + 1, device=scores_K2.device)
    offsets = torch.searchsorted(targets.groups, edges)
    highest_G2 = torch.segment_reduce(scores_K2.detach(), "max", offsets=offsets)
    exponentials_K2 = (scores_K2 - highest_G2.index_select(0, targets.groups)).exp()
    log_sums_G2 = torch.segment_reduce(exponentials_K2, "sum", offsets=offsets).log() + highest_G2
    labels_K = targets.labels.long()
    is_right_K2 = torch.stack([labels_K % 2 == 1, labels_K >= 2], dim=1)
    right_G2 = torch.segment_reduce(scores_K2 * is_right_K2, "sum", offsets=offsets)
    return (log_sums_G2 - right_G2).mean(dim=1)
