"""The objective, the one place that divides: L = sum_t w_t * (sum_i l_i) / N_t, with N_t counted over the whole step.

The step plan knows N_t on every rank, so a micro-batch's share of L needs no communication and does not depend on how the
step's examples were cut into ranks and micro-batches. `coefficients` below are w_t / N_t. Scales, with N = sum_t N_t:

    examples     w_t = N_t / N                  every example counts the same                 coefficient 1 / N
    task_mean    w_t = 1 / number of tasks      every task present in the step counts the same
    log_classes  w_t = N_t / (N log C_t)        Muppet (Aghajanyan et al. 2021, section 3.2); a regression's factor is 1
    explicit     w_t = s_t N_t / N              s_t is the number given for the task
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from mtdnn_ds.losses.sequence import LossSum

Scale = Literal["examples", "task_mean", "log_classes", "explicit"]


def loss_coefficients(
    counts_N: np.ndarray,
    scale: Scale,
    *,
    num_classes: Sequence[int],
    explicit: Sequence[float],
) -> np.ndarray:
    """w_t / N_t of each task for one step, (N,) float64; 0 for a task without examples in the step.

    `counts_N` are the step's N_t over all ranks, `num_classes` is 1 for a regression, `explicit` the tasks' own factors.
    """
    present_N = counts_N > 0
    factors_N = {
        "examples": lambda: np.ones(len(counts_N)),
        "task_mean": lambda: counts_N.sum() / (max(int(present_N.sum()), 1) * np.maximum(counts_N, 1)),
        "log_classes": lambda: np.array([1.0 if classes == 1 else 1.0 / math.log(classes) for classes in num_classes]),
        "explicit": lambda: np.asarray(explicit, dtype=np.float64),
    }[scale]()
    return np.where(present_N, factors_N / max(int(counts_N.sum()), 1), 0.0)


def micro_batch_loss(sums: LossSum, coefficients_N: Tensor) -> Tensor:
    """A micro-batch's share of the objective, a scalar: the shares of all ranks and micro-batches of a step add up to L."""
    return (sums.total * coefficients_N).sum()


def step_loss(totals_N: np.ndarray, coefficients_N: np.ndarray) -> float:
    """L itself, from every task's loss sum over the whole step."""
    return float((totals_N * coefficients_N).sum())


def task_means(totals_N: np.ndarray, counts_N: np.ndarray, task_names: Sequence[str]) -> dict[str, float]:
    """Mean loss of each task present in the step, for the log."""
    return {name: float(total / count) for name, total, count in zip(task_names, totals_N, counts_N, strict=True) if count > 0}
