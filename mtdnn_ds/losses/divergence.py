"""How far two predictions of the same micro-batch are apart, unit by unit. Not a loss: no labels.

Symmetric, zero for equal predictions:

    distributions P, Q   sum_c (p_c - q_c) (log p_c - log q_c) = KL(P || Q) + KL(Q || P)
    numbers a, b         (a - b)^2

which is l_s of SMART (Jiang et al. 2020, arXiv:1911.03437, section 2.1). A term's units are those of its
loss, so that both have the same denominator. In float32 whatever the outputs' dtype.

Shape legend: K supervised rows, U supervised units of a form (rows or examples), C columns of the head,
M terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.forms import unit_terms
from mtdnn_ds.losses.groups import group_log_softmax, group_sum
from mtdnn_ds.losses.pairs import pair_cosines
from mtdnn_ds.losses.rows import class_log_probabilities
from mtdnn_ds.losses.sums import TermTable, own_outputs, squared_errors, sum_by_term
from mtdnn_ds.tasks.layout import FORMS

Divergence = Callable[[Tensor, Tensor, Targets, TermTable], Tensor]


def class_divergence(ours_KC: Tensor, theirs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Between each row's distributions over its term's columns, (K,).

    Log-probabilities (SAN's) are their own log-softmax.
    """
    is_output_KO = table.is_output[targets.term_ids]
    ours_KO, theirs_KO = (
        class_log_probabilities(outputs_KC, targets, table).masked_fill(~is_output_KO, 0.0)
        for outputs_KC in (ours_KC, theirs_KC)
    )
    # A column that is none of the term's has equal values on both sides, and adds 0.
    return _symmetric_kl(ours_KO, theirs_KO).sum(dim=1)


def row_divergence(ours_KC: Tensor, theirs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Between distributions over the rows of an example, (G,): what its choices or candidates get."""
    ours_K, theirs_K = (
        group_log_softmax(own_outputs(outputs_KC, targets.term_ids, table)[:, 0], targets)
        for outputs_KC in (ours_KC, theirs_KC)
    )
    return group_sum(_symmetric_kl(ours_K, theirs_K), targets)


def span_divergence(ours_KC: Tensor, theirs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """The mean of those of start and of end over an example's tokens, (G,), as the loss is a mean."""
    ours_K2, theirs_K2 = (
        group_log_softmax(own_outputs(outputs_KC, targets.term_ids, table)[:, :2], targets)
        for outputs_KC in (ours_KC, theirs_KC)
    )
    return group_sum(_symmetric_kl(ours_K2, theirs_K2), targets).mean(dim=1)


def score_divergence(ours_KC: Tensor, theirs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Squared difference of scores, (K,), in the units of the loss."""
    theirs_K = own_outputs(theirs_KC, targets.term_ids, table)[:, 0]
    return squared_errors(ours_KC, theirs_K, targets.term_ids, table)


def cosine_divergence(ours_KD: Tensor, theirs_KD: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Squared difference of the cosines of an example's two embeddings, (G,)."""
    return (pair_cosines(ours_KD) - pair_cosines(theirs_KD)) ** 2


DIVERGENCES: Mapping[str, Divergence] = {
    "class": class_divergence,
    "score": score_divergence,
    "choice": row_divergence,
    "pairwise": row_divergence,
    "tag": class_divergence,
    "span": span_divergence,
    "san": class_divergence,
    "cosine": cosine_divergence,
    "contrastive": cosine_divergence,
}
"""Forms with a rule: tasks/regularized.py says which have none, and why."""


def divergence_sums(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    targets: Mapping[str, Targets],
    table: TermTable,
    forms: Sequence[str],
) -> Tensor:
    """(M,): the sum of each term's divergences over the units of `forms`; 0 for the terms of other forms."""
    total_M = table.columns.new_zeros(table.num_terms, dtype=torch.float32)
    for form in forms:
        of_form = targets[form]
        divergences_U = DIVERGENCES[form](ours[form], theirs[form], of_form, table)
        term_ids_U = unit_terms(of_form, per_example=FORMS[form].unit == "example")
        total_M = total_M + sum_by_term(divergences_U, term_ids_U, table.num_terms).total
    return total_M


def _symmetric_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() - log_q.exp()) * (log_p - log_q)
