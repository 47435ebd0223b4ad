"""Losses as sums and counts, and the columns of each term as tensors. Never a mean.

Only losses/objective.py divides.

Shape legend: K supervised rows, U supervised units, C columns of a head, M terms of the run, O most outputs
of one term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.spec import TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSum:
    """Per term: the sum of its units' losses and their number, both (M,) float32."""

    total: Tensor
    count: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TermTable:
    """`HeadLayout` as tensors on a device, so that rows of different tasks are handled in one go."""

    columns: Tensor  # (M, O) int64, a term's columns of its head; the first is repeated where it has fewer
    is_output: Tensor  # (M, O) bool
    # (M,) float32: what a score's error is divided by; None where none is learnt in standard units
    deviations: Tensor | None = None

    @property
    def num_terms(self) -> int:
        return int(self.columns.shape[0])


def term_table(
    layout: HeadLayout, device: torch.device | str, specs: Sequence[TaskSpec] | None = None
) -> TermTable:
    """Tables for the losses; made once per run. `specs`: the run's tasks; None: no score has a scale.

    Example: a term with columns 0, 1, 2 beside a score in column 3 gives columns [[0, 1, 2], [3, 3, 3]] and
    is_output [[T, T, T], [T, F, F]].
    """
    most = max(1, *(term.num_outputs for term in layout.terms))
    columns, is_output = [], []
    for term in layout.terms:
        lacking = most - term.num_outputs
        columns.append([*term.columns] + [term.first_column] * lacking)
        is_output.append([True] * term.num_outputs + [False] * lacking)

    deviations = None
    scales = [specs[term.task].score_scale for term in layout.terms] if specs else []
    if any(scales):
        values = [scale[1] if scale else 1.0 for scale in scales]
        deviations = torch.tensor(values, dtype=torch.float32, device=device)

    return TermTable(
        deviations=deviations,
        columns=torch.tensor(columns, dtype=torch.int64, device=device),
        is_output=torch.tensor(is_output, device=device),
    )


def own_outputs(outputs_KC: Tensor, term_ids_K: Tensor, table: TermTable) -> Tensor:
    """Each row's outputs of its own term, (K, O) float32; where not `is_output`, the term's first again."""
    return outputs_KC.float().gather(1, table.columns[term_ids_K])


def squared_errors(outputs_KC: Tensor, others_K: Tensor, term_ids_K: Tensor, table: TermTable) -> Tensor:
    """Squares of each score's distance to the other one, in the term's own units, (K,)."""
    errors_K = own_outputs(outputs_KC, term_ids_K, table)[:, 0] - others_K
    if table.deviations is not None:
        errors_K = errors_K / table.deviations[term_ids_K]
    return errors_K**2


def sum_by_term(losses_U: Tensor, term_ids_U: Tensor, num_terms: int) -> LossSum:
    """Sums and counts of each term.

    A matrix product, not scattered additions: the order of addition is fixed.
    """
    membership_UM = one_hot(term_ids_U, num_terms).to(losses_U.dtype)
    return LossSum(total=losses_U @ membership_UM, count=membership_UM.sum(dim=0))
