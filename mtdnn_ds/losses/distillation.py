"""Distillation: units with soft targets learn them beside their labels. Not the teachers that give them.

With p the teachers' probabilities at temperature T, q the model's at the same temperature, and w the weight:

    classes   w T^2 KL(p || q) + (1 - w) l       l is the form's own loss. The gradient of KL(p || q) shrinks
    rows      the same, over an example's rows   as 1 / T^2, which the factor undoes (Hinton et al. 2015,
                                                 arXiv:1503.02531, section 2)
    number    w (y - teacher's score)^2 + (1 - w) (y - label)^2; in standard units where the task has them

Outputs that are log-probabilities (SAN) serve as they are: softmax(log q / T) is q at temperature T.

Shape legend: K supervised rows, U supervised units (rows or examples), C columns of the head, O most outputs
of one term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.groups import group_log_softmax, group_sum
from mtdnn_ds.losses.sums import TermTable, own_outputs, squared_errors
from mtdnn_ds.tasks.layout import FORMS, Answer

FormLoss = Callable[[Tensor, Targets, TermTable], Tensor]
SoftLoss = Callable[[Tensor, Tensor, Targets, TermTable, float], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """How soft targets and labels are mixed."""

    temperature: float  # above 0
    weight: float  # 0..1, of the soft targets


def distilled(form: str, hard: FormLoss, distillation: Distillation) -> FormLoss:
    """The loss of a form whose targets may have extra["soft"] (K, O).

    Rows that are NaN there have only their label. A form that has no such targets keeps `hard`.
    """
    answer = FORMS[form].answer if form in FORMS else None
    if answer is None:
        return hard
    soft_loss, weight = SOFT_LOSSES[answer], distillation.weight

    def of_units(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
        hard_U = hard(outputs_KC, targets, table)
        soft_KO = targets.extra.get("soft")
        if soft_KO is None:  # no task with a teacher in this micro-batch
            return hard_U

        lacks_soft_U = soft_KO[:, 0].isnan().float()
        if answer == "rows":  # the units are examples of several rows
            lacks_soft_U = group_sum(lacks_soft_U, targets)
        soft_U = soft_loss(outputs_KC, soft_KO.nan_to_num(0.0), targets, table, distillation.temperature)
        return torch.where(lacks_soft_U.bool(), hard_U, weight * soft_U + (1 - weight) * hard_U)

    return of_units


def soft_class_losses(
    outputs_KC: Tensor, soft_KO: Tensor, targets: Targets, table: TermTable, temperature: float
) -> Tensor:
    """T^2 KL(p || q) over each row's own columns, (K,)."""
    is_output_KO = table.is_output[targets.term_ids]
    own_KO = own_outputs(outputs_KC, targets.term_ids, table)
    scores_KO = own_KO.masked_fill(~is_output_KO, float("-inf")) / temperature
    # Soft targets are as wide as the widest term among the rows that have some.
    log_q_KO = scores_KO.log_softmax(dim=1).masked_fill(~is_output_KO, 0.0)[:, : soft_KO.shape[1]]
    return temperature**2 * (torch.xlogy(soft_KO, soft_KO) - soft_KO * log_q_KO).sum(dim=1)


def soft_row_losses(
    outputs_KC: Tensor, soft_K1: Tensor, targets: Targets, table: TermTable, temperature: float
) -> Tensor:
    """T^2 KL(p || q) over the rows of each example, (G,)."""
    log_q_K = group_log_softmax(own_outputs(outputs_KC, targets.term_ids, table)[:, 0] / temperature, targets)
    soft_K = soft_K1[:, 0]
    return temperature**2 * group_sum(torch.xlogy(soft_K, soft_K) - soft_K * log_q_K, targets)


def soft_score_losses(
    outputs_KC: Tensor, soft_K1: Tensor, targets: Targets, table: TermTable, temperature: float
) -> Tensor:
    """Squared difference to the teachers' score, (K,). A score has no temperature."""
    return squared_errors(outputs_KC, soft_K1[:, 0], targets.term_ids, table)


SOFT_LOSSES: Mapping[Answer, SoftLoss] = {
    "classes": soft_class_losses,
    "rows": soft_row_losses,
    "number": soft_score_losses,
}
