"""Mixture rates: the share of each task among a run's examples. Not which step gets which (step_plan.py).

| mode         | rate of a task with n examples, before normalisation to sum 1                             |
| proportional | n                                                                                         |
| temperature  | n^(1/T)                                (multilingual BERT; Raffel et al. 2020, 3.5.2)     |
| cap          | min(n, K)                              (examples-proportional, Raffel et al. 2020, 3.5.2) |
| uniform      | 1                                                                                         |
| annealed     | n^alpha, alpha falling from 1          (Stickland and Murray 2019, arXiv:1902.02671, 4.1) |
| a mapping    | the number given for the task                                                             |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtdnn_ds.config.errors import ConfigError, did_you_mean

RATE_MODES = ("proportional", "temperature", "cap", "uniform", "annealed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """How often each task is drawn, and how tasks share a step."""

    rates: str | Mapping[str, float]  # one of RATE_MODES, or task -> rate
    temperature: float
    cap: int
    anneal_to: float
    mixing: str  # one of step_plan.py's MIXINGS
    order: str = "random"  # of the steps of per_step: one of step_plan.py's ORDERS


def check_explicit_rates(mapping: Mapping[str, float], task_names: Sequence[str]) -> list[str]:
    """Everything wrong with an explicit `mixture.rates`; needs no data.

    Empty if it names exactly the run's tasks, each > 0.
    """
    problems = []
    for name, rate in mapping.items():
        if name not in task_names:
            problems.append(f"mixture.rates.{name}: no such task in this run{did_you_mean(name, task_names)}")
        elif not (math.isfinite(rate) and rate > 0):
            problems.append(
                f"mixture.rates.{name}={rate}: a rate must be a number > 0; "
                "remove the task from 'tasks' to skip it."
            )

    for name in task_names:
        if name not in mapping:
            problems.append(
                f"mixture.rates: no rate for task '{name}'; "
                "give it one, or remove the task from 'tasks' to skip it."
            )
    return problems


def task_rates(
    mode_or_mapping: str | Mapping[str, float],
    sizes: Mapping[str, int],
    *,
    temperature: float,
    cap: int,
    alpha: float,
) -> np.ndarray:
    """(N,) float64 summing to 1, in the order of `sizes` (task -> number of training examples, each >= 1).

    `temperature` >= 1, `cap` >= 1 and `alpha` in [0, 1] are read by the modes of the same name only (`alpha`:
    annealed). Raises ConfigError for an unknown mode, and for a mapping that `check_explicit_rates` objects
    to.
    """
    size_N = np.array(list(sizes.values()), dtype=np.float64)
    if isinstance(mode_or_mapping, Mapping):
        problems = check_explicit_rates(mode_or_mapping, tuple(sizes))
        if problems:
            raise ConfigError(problems)
        weight_N = np.array([mode_or_mapping[name] for name in sizes], dtype=np.float64)
    elif mode_or_mapping == "proportional":
        weight_N = size_N
    elif mode_or_mapping == "temperature":
        weight_N = size_N ** (1.0 / temperature)
    elif mode_or_mapping == "cap":
        weight_N = np.minimum(size_N, cap)
    elif mode_or_mapping == "uniform":
        weight_N = np.ones_like(size_N)
    elif mode_or_mapping == "annealed":
        weight_N = size_N**alpha
    else:
        raise ConfigError(
            f"mixture.rates={mode_or_mapping}: no such mode{did_you_mean(mode_or_mapping, RATE_MODES)}"
        )

    weight_N = weight_N / weight_N.max()  # explicit numbers may be so large that their sum overflows
    return weight_N / weight_N.sum()


def annealed_alpha(segment: int, num_segments: int, anneal_to: float) -> float:
    """alpha in segment 0 .. num_segments-1 of a run: 1 in the first, `anneal_to` in the last, linear between.

    Stickland and Murray 2019, section 4.1: alpha = 1 - 0.8 (e - 1) / (E - 1) in epoch e of E; here segments
    take the place of epochs and 1 - anneal_to that of 0.8. A run of one segment gets the mean of both ends.
    """
    if num_segments == 1:
        return (1.0 + anneal_to) / 2
    return 1.0 - (1.0 - anneal_to) * segment / (num_segments - 1)
