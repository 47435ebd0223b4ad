"""Losses of supervised rows one by one: classes, scores, tags, masked tokens. Not of rows that compete.

In float32 whatever the dtype of the outputs.

Shape legend: K supervised rows, C columns of the head, O most outputs of one term, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.sums import TermTable, own_outputs, squared_errors


def class_losses(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Cross-entropy over the term's columns, (K,); labels are class ids."""
    log_p_KO = class_log_probabilities(outputs_KC, targets, table)
    return -log_p_KO.gather(1, targets.labels.long()[:, None]).squeeze(1)


def class_log_probabilities(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """(K, O): log-softmax over each row's own columns; -inf where its term has fewer than O."""
    outputs_KO = own_outputs(outputs_KC, targets.term_ids, table)
    return outputs_KO.masked_fill(~table.is_output[targets.term_ids], float("-inf")).log_softmax(dim=1)


def san_losses(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """-log P of each row's class, (K,); labels are class ids.

    SAN's outputs (model/heads/san.py) are log-probabilities already, averaged over its steps in log space.
    """
    log_p_KO = own_outputs(outputs_KC, targets.term_ids, table)
    return -log_p_KO.gather(1, targets.labels.long()[:, None]).squeeze(1)


def score_losses(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Squared error of the term's one column, (K,); in standard units where the task is standardized."""
    return squared_errors(outputs_KC, targets.labels, targets.term_ids, table)


def masked_token_losses(outputs_KV: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Cross-entropy over the vocabulary, (K,); labels are token ids."""
    return cross_entropy(outputs_KV.float(), targets.labels.long(), reduction="none")
