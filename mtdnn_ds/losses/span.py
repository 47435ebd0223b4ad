"""Loss of spans: the mean cross-entropy of start and end over an example's tokens. Not the answer's choice.

In float32 whatever the outputs' dtype. For an example with token scores s_k, e_k, start a and end b:

    l = (log sum_k exp s_k - s_a + log sum_k exp e_k - e_b) / 2

Shape legend: K supervised rows (tokens), G examples, C columns of the head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.groups import group_log_sum_exp, group_sum
from mtdnn_ds.losses.sums import TermTable, own_outputs


def span_losses(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """(G,); labels: 1 where the example's one answer starts, plus 2 where it ends."""
    scores_K2 = own_outputs(outputs_KC, targets.term_ids, table)[:, :2]
    labels_K = targets.labels.long()
    is_right_K2 = torch.stack([labels_K % 2 == 1, labels_K >= 2], dim=1)

    right_G2 = group_sum(scores_K2 * is_right_K2, targets)
    return (group_log_sum_exp(scores_K2, targets) - right_G2).mean(dim=1)
