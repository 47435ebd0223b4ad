"""Losses of examples that are several sequences with a score each. Not of spans, not of pairs of embeddings.

In float32 whatever the dtype of the outputs. With scores s of an example's sequences, R the right ones among
them and I the others:

    choice      -1/|R| sum_{r in R} log softmax(s)_r; with one right sequence the cross-entropy of multiple
                choice and of MT-DNN's relevance ranking (Liu et al. 2019, section 3.1, gamma 1), with several
                ListNet's top-one loss (Cao et al. 2007, section 4)
    pairwise    1/(|R| |I|) sum_{r in R, i in I} max(0, MARGIN - s_r + s_i)

Shape legend: K sequences, G examples, C columns of the head.
"""

from __future__ import annotations

from torch import Tensor

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.groups import group_log_softmax, group_sum
from mtdnn_ds.losses.sums import TermTable, own_outputs

MARGIN = 1.0


def choice_losses(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Cross-entropy over the sequences of each example, (G,); labels: 1 for right sequences, 0 for others."""
    scores_K = own_outputs(outputs_KC, targets.term_ids, table)[:, 0]
    right_sum_G = group_sum(targets.labels * group_log_softmax(scores_K, targets), targets)
    return -right_sum_G / group_sum(targets.labels, targets)


def pairwise_losses(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Mean hinge over the pairs of a right and another sequence of each example, (G,); labels as above."""
    scores_K = own_outputs(outputs_KC, targets.term_ids, table)[:, 0]

    # Row r, column i: whether r is a right and i another sequence of the same example.
    right_K = targets.labels == 1
    is_same_KK = targets.groups[:, None] == targets.groups[None, :]
    is_pair_KK = is_same_KK & right_K[:, None] & ~right_K[None, :]

    hinge_KK = (MARGIN - scores_K[:, None] + scores_K[None, :]).clamp(min=0) * is_pair_KK
    hinge_sum_G = group_sum(hinge_KK.sum(dim=1), targets)
    num_pairs_G = group_sum(is_pair_KK.float().sum(dim=1), targets)
    return hinge_sum_G / num_pairs_G
