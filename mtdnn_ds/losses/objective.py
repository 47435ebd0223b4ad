"""The objective L = sum_t w_t sum_m (sum_i l_i) / U_m, over tasks t, terms m, units i: what alone divides.

Not the losses l_i themselves (losses/forms.py).

U_m is the number of term m's supervised units (examples, tokens) in the WHOLE step, over all ranks and
micro-batches, so L does not depend on how the step's examples were cut. w_t comes from the examples N_t of
the step, which the plan knows. `coefficients` below are w_t / U_m. For a task whose units are its examples,
U = N_t. Scales, with N = sum_t N_t:

    examples     w_t = N_t / N              every example counts the same: coefficient 1 / N
    task_mean    w_t = 1 / number of tasks  every task present in the step counts the same
    log_classes  w_t = N_t / (N log C_t)    C_t: the size of the prediction space; nothing to choose from:
                                            N_t / N (Muppet, Aghajanyan et al. 2021, section 3.2)
    explicit     w_t = s_t N_t / N          s_t is the number given for the task
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mtdnn_ds.losses.sums import LossSum


def task_scales(
    counts_N: np.ndarray, scale: str, *, log_spaces: Sequence[float], explicit: Sequence[float]
) -> np.ndarray:
    """w_t of each task for one step, (N,) float64; 0 for a task without examples in the step.

    `counts_N` are the step's N_t over all ranks, `scale` is "explicit" or a name of loss.scale, `log_spaces`
    are the logs of the sizes of the tasks' prediction spaces, 0 for a task with nothing to choose from; only
    log_classes reads them, as "explicit" alone reads `explicit`, the tasks' own factors.
    """
    present_N = counts_N > 0
    if scale == "examples":
        factors_N = np.ones(len(counts_N))
    elif scale == "task_mean":
        factors_N = counts_N.sum() / (max(int(present_N.sum()), 1) * np.maximum(counts_N, 1))
    elif scale == "log_classes":
        factors_N = np.array([1.0 / log_space if log_space > 0 else 1.0 for log_space in log_spaces])
    else:
        assert scale == "explicit", scale
        factors_N = np.asarray(explicit, dtype=np.float64)

    return np.where(present_N, factors_N * counts_N / max(int(counts_N.sum()), 1), 0.0)


def term_coefficients(scales_N: np.ndarray, units_M: np.ndarray, task_of_term: Sequence[int]) -> np.ndarray:
    """w_t / U_m of each term, (M,) float64; 0 for a term without units in the step."""
    scales_M = scales_N[np.asarray(task_of_term)]
    return np.where(units_M > 0, scales_M / np.maximum(units_M, 1), 0.0)


def micro_batch_loss(sums: LossSum, coefficients_M: Tensor) -> Tensor:
    """A micro-batch's share of the objective, a scalar: all shares of a step, of every rank, add up to L."""
    return (sums.total * coefficients_M).sum()


def step_loss(totals_M: np.ndarray, coefficients_M: np.ndarray) -> float:
    """L itself, from every term's loss sum over the whole step."""
    return float((totals_M * coefficients_M).sum())


def task_means(
    totals_M: np.ndarray, units_M: np.ndarray, task_of_term: Sequence[int], num_tasks: int
) -> np.ndarray:
    """(N,) float64: the sum of each task's term means; NaN for a task without units in the step."""
    means_N = np.full(num_tasks, np.nan)
    for task, total, units in zip(task_of_term, totals_M, units_M, strict=True):
        if units > 0:
            means_N[task] = np.nan_to_num(means_N[task]) + total / units
    return means_N
