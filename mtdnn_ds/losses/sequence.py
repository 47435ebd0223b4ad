"""Losses of sequence-level tasks as sums and counts. Never a mean: only losses/objective.py divides.

Shape legend: K supervised rows, C columns of the fused head, N tasks of the run, M most outputs of one task.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mtdnn_ds.tasks.layout import HeadLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSum:
    """Per task: the sum of its units' losses and their number, both (N,) float32."""

    total: Tensor
    count: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnTable:
    """`HeadLayout` as tensors on a device, so that rows of different tasks are handled in one go."""

    columns: Tensor  # (N, M) int64, the task's columns; repeated first column where a task has fewer
    is_output: Tensor  # (N, M) bool
    is_regression: Tensor  # (N,) bool


def column_table(layout: HeadLayout, device: torch.device | str) -> ColumnTable:
    """Tables for `sequence_losses`; made once per run.

    Example: a task with columns 0, 1, 2 beside a score in column 3 gives columns [[0, 1, 2], [3, 3, 3]] and
    is_output [[T, T, T], [T, F, F]].
    """
    most = max(layout.num_outputs)
    rows = [
        [first + j if j < num else first for j in range(most)] for first, num in zip(layout.first_column, layout.num_outputs, strict=True)
    ]
    return ColumnTable(
        columns=torch.tensor(rows, dtype=torch.int64, device=device),
        is_output=torch.tensor([[j < num for j in range(most)] for num in layout.num_outputs], device=device),
        is_regression=torch.tensor(layout.is_regression, device=device),
    )


def sequence_losses(logits_KC: Tensor, task_ids_K: Tensor, labels_K: Tensor, table: ColumnTable) -> Tensor:
    """Loss of each supervised row, (K,) float32: cross-entropy over its task's columns, or the squared error of its score.

    `labels_K` holds a class id or a score. Computed in float32 whatever the dtype of the logits.
    """
    outputs_KM = logits_KC.float().gather(1, table.columns[task_ids_K])
    is_regression_K = table.is_regression[task_ids_K]
    # A score has one valid column, whose log-softmax is 0 with zero gradient: both branches are finite for every row.
    log_probabilities_KM = outputs_KM.masked_fill(~table.is_output[task_ids_K], float("-inf")).log_softmax(dim=1)
    class_ids_K = torch.where(is_regression_K, 0, labels_K).to(torch.int64)
    cross_entropy_K = -log_probabilities_KM.gather(1, class_ids_K[:, None]).squeeze(1)
    squared_error_K = (outputs_KM[:, 0] - torch.where(is_regression_K, labels_K, outputs_KM[:, 0].detach())) ** 2
    return torch.where(is_regression_K, squared_error_K, cross_entropy_K)


def sum_by_task(losses_K: Tensor, task_ids_K: Tensor, num_tasks: int) -> LossSum:
    """Sums and counts of each task. A matrix product instead of scattered additions, so the order of addition is fixed."""
    membership_KN = one_hot(task_ids_K, num_tasks).to(losses_K.dtype)
    return LossSum(total=losses_K @ membership_KN, count=membership_KN.sum(dim=0))
