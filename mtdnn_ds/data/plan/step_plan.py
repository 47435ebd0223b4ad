"""StepPlan: which examples make up each optimizer step. Pure: no tokenizer, no torch, no topology.

Letters: N tasks, B examples per step, k = number of the optimizer step, from 1.

Task t's examples are one endless line: position p is row permute(p mod size) of epoch p // size. Before step
k, drawn(k-1)[t] of them are used up, and step k takes the next task_counts(k)[t]. drawn() can be computed for
any k (stratified.py, shuffled.py), so any step can be asked for at any time, and nothing but k need be saved.
Each example is drawn exactly once per epoch of its task.

Mixing. per_example, per_micro_batch: every step holds each task's share; in any 10 consecutive steps a task's
count is within one example of 10 B rate (apportion.py says when exactly; both have the same steps, packing
differs). per_step: each step is one task's. In random order (Algorithm 1 of MT-DNN, Liu et al. 2019) blocks
of an epoch's steps hold each task's share, and say nothing of shorter windows; in stratified order in any 10
steps the number of a task's steps is within 1 of 10 rate (1.5 for the rare task astride a cut, see
apportion.py), and where a task's steps lie hardly changes from one ten to the next. sequential: one task
after the other in recipe order, each with its share of the run.

Annealed rates are constant over segments of whole cycles of 10 steps, 50 of them in a run; the window promise
holds inside a segment (a window across a border joins parts of two different cycles: off by up to 2.2
examples on GLUE's sizes).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.counter_hash import stream_of
from mtdnn_ds.data.plan.apportion import MAX_UNITS_PER_STEP, largest_remainder
from mtdnn_ds.data.plan.permutation import permute
from mtdnn_ds.data.plan.rates import Mixture
from mtdnn_ds.data.plan.shuffled import ShuffledSteps
from mtdnn_ds.data.plan.stratified import StratifiedUnits

MIXINGS = ("per_example", "per_micro_batch", "per_step", "sequential")
ORDERS = ("random", "stratified")  # of the steps of per_step
_VERSION = 1  # part of the fingerprint; raise it when the same arguments begin to give other steps
MAX_STEPS = 2**32  # with MAX_UNITS_PER_STEP examples each, positions still fit 64 bits


@dataclass(frozen=True, kw_only=True, slots=True)
class StepExamples:
    """The examples of one step in canonical order: task id ascending, then position in the task's line."""

    task_ids: np.ndarray  # (B,) int32, index into the run's tasks
    rows: np.ndarray  # (B,) int64, row of the task's training split
    epochs: np.ndarray  # (B,) int32, how many times the task's data had been gone through before


def steps_for_epochs(epochs: float, sizes: Mapping[str, int], examples_per_step: int) -> int:
    """Steps that draw `epochs` times the sum of all sizes, rounded up.

    `epochs` counts as the decimal it is written as (0.1 is 1/10).
    """
    return math.ceil(Fraction(str(epochs)) * sum(sizes.values()) / examples_per_step)


class StepPlan:
    """The plan of a run. `sizes` (task -> training rows) gives the tasks and their order; ids count from 0.

    `total_steps` shapes the plan for mixing=sequential, order=random and rates=annealed only (any number of
    steps can be asked for otherwise). `data_fingerprint` names the contents of the data sets. Raises
    ConfigError with every problem of the arguments.
    """

    def __init__(
        self,
        *,
        sizes: Mapping[str, int],
        mixture: Mixture,
        examples_per_step: int,
        seed: int,
        total_steps: int,
        data_fingerprint: str,
    ) -> None:
        _check(sizes, mixture, examples_per_step, total_steps)
        self.task_names = self.trained_tasks = tuple(sizes)
        self.mixing = mixture.mixing
        self.order = mixture.order if self.mixing == "per_step" else None
        self.examples_per_step = examples_per_step
        self.seed = seed
        self.total_steps = total_steps
        self.size_N = np.array(list(sizes.values()), dtype=np.int64)
        self._stream_N = np.array([stream_of(name) for name in sizes], dtype=np.uint64)
        self._examples_per_unit = examples_per_step if self.mixing == "per_step" else 1

        self._stratified = StratifiedUnits(
            mixture,
            sizes,
            units_per_step=examples_per_step // self._examples_per_unit,
            total_steps=total_steps,
        )
        self._units: StratifiedUnits | ShuffledSteps = self._stratified
        if self.order == "random":
            self._units = ShuffledSteps(
                self._stratified,
                num_tasks=len(sizes),
                epoch_steps=steps_for_epochs(1, sizes, examples_per_step),
                seed=seed,
                total_steps=total_steps,
            )

        first_shares = self._stratified.shares[0][1]
        self._block_end_N = np.cumsum(largest_remainder(total_steps * examples_per_step, first_shares))
        self._data_fingerprint = data_fingerprint
        self.fingerprint = self._fingerprint(self.order)

    @property
    def length(self) -> str:
        """How long it is, in words."""
        return f"{self.total_steps:,} steps of {self.examples_per_step:,} examples"

    def drawn(self, k: int) -> np.ndarray:
        """(N,) int64: examples of each task in steps 1..k together; drawn(0) is 0.

        O(N log k), and in random order O(steps of a block).
        """
        assert k >= 0
        if self.mixing == "sequential":
            assert k <= self.total_steps, f"step {k} of a sequential plan of {self.total_steps} steps"
            return np.diff(np.minimum(self._block_end_N, k * self.examples_per_step), prepend=0)
        return self._units.drawn(k) * self._examples_per_unit

    def counts_of(self, task: int, begin: int, end: int) -> np.ndarray:
        """(end - begin,) int64: examples of one task in each of the steps begin+1 .. end; not of a sequence.

        Much faster than asking for each step.
        """
        assert self.mixing != "sequential"
        return self._units.counts_of(task, begin, end) * self._examples_per_unit

    def task_counts(self, k: int) -> np.ndarray:
        """(N,) int64: examples of each task in step k; sums to examples_per_step."""
        assert k >= 1, "steps count from 1"
        return self.drawn(k) - self.drawn(k - 1)

    def epochs(self, k: int) -> np.ndarray:
        """(N,) float64: how often each task's data has been gone through after step k."""
        return self.drawn(k) / self.size_N

    def step(self, k: int) -> StepExamples:
        """The examples of step k; exactly examples_per_step of them."""
        cursor_N, count_N = self.drawn(k - 1), self.task_counts(k)
        task_B = np.repeat(np.arange(count_N.size), count_N)

        # counts 2, 3 and cursors 7, 20 give positions 7, 8, 20, 21, 22
        position_B = np.arange(task_B.size) + np.repeat(cursor_N - (np.cumsum(count_N) - count_N), count_N)

        epoch_B, within_B = np.divmod(position_B, self.size_N[task_B])
        row_B = permute(
            within_B, size=self.size_N[task_B], seed=self.seed, epoch=epoch_B, stream=self._stream_N[task_B]
        )
        return StepExamples(task_ids=task_B.astype(np.int32), rows=row_B, epochs=epoch_B.astype(np.int32))

    def state_dict(self, k: int) -> dict[str, int | str]:
        """What a checkpoint keeps after step k."""
        return {
            "step": k,
            "seed": self.seed,
            "examples_per_step": self.examples_per_step,
            "fingerprint": self.fingerprint,
        }

    def step_of_state(self, state: Mapping[str, Any]) -> int:
        """The step a `state_dict` was taken after.

        Raises CheckpointError if another plan wrote it: the examples would differ.
        """
        advice = ""
        if self.order == "random" and state.get("fingerprint") == self._fingerprint("stratified"):
            advice = (
                "The run was begun with mixture.order=stratified, the only order of version 0.4; "
                "resume with it."
            )
        return step_of_state(state, self.state_dict(int(state["step"])), advice)

    def _fingerprint(self, order: str | None) -> str:
        # Quantised rates stand for every rate setting: what does not change them does not change a step.
        # total_steps counts only where steps depend on it, the other steps are the same for runs of every
        # length. The stratified order is not named: plans of version 0.4 had no other, and are the same.
        content: dict[str, Any] = {
            "version": _VERSION,
            "tasks": self.task_names,
            "sizes": self.size_N.tolist(),
            "shares": self._stratified.shares,
            "mixing": self.mixing,
            "examples_per_step": self.examples_per_step,
            "seed": self.seed,
            "total_steps": self.total_steps if self.mixing == "sequential" else None,
            "data": self._data_fingerprint,
        }
        if order == "random":
            content |= {"order": order, "total_steps": self.total_steps}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def step_of_state(state: Mapping[str, Any], ours: Mapping[str, Any], advice: str = "") -> int:
    """The step of a checkpoint's `state`. Raises CheckpointError, with `advice`, where `ours` differs."""
    differing = [
        f"plan.{key}: checkpoint {state.get(key)!r}, this run {value!r}"
        for key, value in ours.items()
        if state.get(key) != value
    ]
    if differing:
        advice = advice or (
            "The checkpoint's steps hold other examples; "
            "resume with its tasks, data, mixture, seed and examples_per_step."
        )
        raise CheckpointError([*differing, advice])
    return int(state["step"])


def _check(sizes: Mapping[str, int], mixture: Mixture, examples_per_step: int, total_steps: int) -> None:
    problems = [
        f"task '{name}' has no training examples; remove it from 'tasks'."
        for name, size in sizes.items()
        if size < 1
    ]
    if not sizes:
        problems.append("tasks: a run needs at least one task.")

    if mixture.mixing not in MIXINGS:
        problems.append(f"mixture.mixing={mixture.mixing}: must be one of {', '.join(MIXINGS)}.")
    if mixture.order not in ORDERS:
        problems.append(f"mixture.order={mixture.order}: must be one of {', '.join(ORDERS)}.")
    if not 1 <= examples_per_step <= MAX_UNITS_PER_STEP:
        problems.append(f"batch.examples_per_step={examples_per_step}: must lie in 1..{MAX_UNITS_PER_STEP}.")
    if total_steps < 1:
        problems.append(f"train.steps={total_steps}: must be at least 1.")
    if total_steps > MAX_STEPS:
        problems.append(
            f"train.steps or train.epochs: a run of more than {MAX_STEPS:,} steps; make it shorter."
        )
    if mixture.mixing == "sequential" and mixture.rates == "annealed":
        problems.append(
            "mixture.rates=annealed has no effect with mixture.mixing=sequential, "
            "where a task has one block of the run; choose other rates or another mixing."
        )
    if problems:
        raise ConfigError(problems)
