"""StepPlan: which examples make up each optimizer step. Pure: no tokenizer, no torch, no topology.

Letters: N tasks, B examples per step, k = number of the optimizer step, from 1.

Task t's examples are one endless line: position p is row permute(p mod size) of epoch p // size. Before step
k, drawn(k-1)[t] of them are used up, and step k takes the next task_counts(k)[t]. As drawn() has a closed
form (apportion.py), any step can be asked for at any time, and nothing but k need be saved. Each example is
drawn exactly once per epoch of its task.

Mixing. per_example, per_micro_batch: every step holds each task's share; in any 10 consecutive steps a task's
count is within one example of 10 B rate (apportion.py says when exactly; both have the same steps, packing
differs). per_step: each step is one task's (Algorithm 1 of MT-DNN, Liu et al. 2019), and in any 10 steps the
number of a task's steps is within 1 of 10 rate (1.5 for the rare task astride a cut, see there). sequential:
one task after the other in recipe order, each with its share of the run.

Annealed rates are constant over segments of whole cycles of 10 steps, 50 of them in a run; the window promise
holds inside a segment (a window across a border joins parts of two different cycles: off by up to 2.2
examples on GLUE's sizes).
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.counter_hash import stream_of
from mtdnn_ds.data.plan.apportion import CYCLE, MAX_UNITS_PER_STEP, Apportionment, largest_remainder, quantise
from mtdnn_ds.data.plan.permutation import permute
from mtdnn_ds.data.plan.rates import Mixture, annealed_alpha, task_rates

MIXINGS = ("per_example", "per_micro_batch", "per_step", "sequential")
_VERSION = 1  # part of the fingerprint; raise it when the same arguments begin to give other steps
MAX_STEPS = 2**32  # with MAX_UNITS_PER_STEP examples each, positions still fit 64 bits
_ANNEAL_SEGMENTS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class StepExamples:
    """The examples of one step in canonical order: task id ascending, then position in the task's line."""

    task_ids: np.ndarray  # (B,) int32, index into the run's tasks
    rows: np.ndarray  # (B,) int64, row of the task's training split
    epochs: np.ndarray  # (B,) int32, how many times the task's data had been gone through before


@dataclass(frozen=True, kw_only=True, slots=True)
class _Segment:
    """A stretch of the run with constant rates."""

    first_step: int  # 0-based, a multiple of CYCLE
    apportionment: Apportionment
    units_before_N: np.ndarray  # (N,) int64


def steps_for_epochs(epochs: float, sizes: Mapping[str, int], examples_per_step: int) -> int:
    """Steps that draw `epochs` times the sum of all sizes, rounded up.

    `epochs` counts as the decimal it is written as (0.1 is 1/10).
    """
    return math.ceil(Fraction(str(epochs)) * sum(sizes.values()) / examples_per_step)


class StepPlan:
    """The plan of a run. `sizes` (task -> training rows) gives the tasks and their order; ids count from 0.

    `total_steps` shapes the plan for mixing=sequential and rates=annealed only (any number of steps can be
    asked for otherwise). `data_fingerprint` names the contents of the data sets. Raises ConfigError with
    every problem of the arguments.
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
        self.task_names = tuple(sizes)
        self.mixing = mixture.mixing
        self.examples_per_step = examples_per_step
        self.seed = seed
        self.total_steps = total_steps
        self._size_N = np.array(list(sizes.values()), dtype=np.int64)
        self._stream_N = np.array([stream_of(name) for name in sizes], dtype=np.uint64)
        self._examples_per_unit = examples_per_step if self.mixing == "per_step" else 1

        self._segments = self._cut_segments(mixture, sizes)
        first_shares = self._segments[0].apportionment.share_N.tolist()
        self._block_end_N = np.cumsum(largest_remainder(total_steps * examples_per_step, first_shares))
        self.fingerprint = self._fingerprint(data_fingerprint)

    def _cut_segments(self, mixture: Mixture, sizes: Mapping[str, int]) -> list[_Segment]:
        num_segments, cycles_per_segment = 1, 0
        if mixture.rates == "annealed":
            num_cycles = -(-self.total_steps // CYCLE)
            cycles_per_segment = -(-num_cycles // _ANNEAL_SEGMENTS)
            num_segments = -(-num_cycles // cycles_per_segment)

        segments: list[_Segment] = []
        units_before_N = np.zeros(len(sizes), dtype=np.int64)
        for segment in range(num_segments):
            alpha = annealed_alpha(segment, num_segments, mixture.anneal_to)
            rates_N = task_rates(
                mixture.rates, sizes, temperature=mixture.temperature, cap=mixture.cap, alpha=alpha
            )
            apportionment = Apportionment(
                share_N=quantise(rates_N), units_per_step=self.examples_per_step // self._examples_per_unit
            )

            first_cycle = segment * cycles_per_segment
            segments.append(
                _Segment(
                    first_step=first_cycle * CYCLE, apportionment=apportionment, units_before_N=units_before_N
                )
            )
            units_before_N = units_before_N + apportionment.drawn(first_cycle, cycles_per_segment * CYCLE)
        return segments

    def drawn(self, k: int) -> np.ndarray:
        """(N,) int64: examples of each task in steps 1..k together; drawn(0) is 0. O(N log k)."""
        assert k >= 0
        if self.mixing == "sequential":
            assert k <= self.total_steps, f"step {k} of a sequential plan of {self.total_steps} steps"
            return np.diff(np.minimum(self._block_end_N, k * self.examples_per_step), prepend=0)

        segment = self._segments[bisect_right(self._segments, k, key=lambda segment: segment.first_step) - 1]
        units_N = segment.apportionment.drawn(segment.first_step // CYCLE, k - segment.first_step)
        return (segment.units_before_N + units_N) * self._examples_per_unit

    def task_counts(self, k: int) -> np.ndarray:
        """(N,) int64: examples of each task in step k; sums to examples_per_step."""
        assert k >= 1, "steps count from 1"
        return self.drawn(k) - self.drawn(k - 1)

    def epochs(self, k: int) -> np.ndarray:
        """(N,) float64: how often each task's data has been gone through after step k."""
        return self.drawn(k) / self._size_N

    def step(self, k: int) -> StepExamples:
        """The examples of step k; exactly examples_per_step of them."""
        cursor_N, count_N = self.drawn(k - 1), self.task_counts(k)
        task_B = np.repeat(np.arange(count_N.size), count_N)

        # counts 2, 3 and cursors 7, 20 give positions 7, 8, 20, 21, 22
        position_B = np.arange(task_B.size) + np.repeat(cursor_N - (np.cumsum(count_N) - count_N), count_N)

        epoch_B, within_B = np.divmod(position_B, self._size_N[task_B])
        row_B = permute(
            within_B, size=self._size_N[task_B], seed=self.seed, epoch=epoch_B, stream=self._stream_N[task_B]
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
        ours = self.state_dict(int(state["step"]))
        differing = [
            f"plan.{key}: checkpoint {state.get(key)!r}, this run {value!r}"
            for key, value in ours.items()
            if state.get(key) != value
        ]
        if differing:
            advice = (
                "The checkpoint's steps hold other examples; "
                "resume with its tasks, data, mixture, seed and examples_per_step."
            )
            raise CheckpointError([*differing, advice])
        return int(state["step"])

    def _fingerprint(self, data_fingerprint: str) -> str:
        # Quantised rates stand for every rate setting: what does not change them does not change a step.
        # total_steps counts only where steps depend on it, the other steps are the same for runs of every
        # length.
        content = {
            "version": _VERSION,
            "tasks": self.task_names,
            "sizes": self._size_N.tolist(),
            "shares": [
                [segment.first_step, segment.apportionment.share_N.tolist()] for segment in self._segments
            ],
            "mixing": self.mixing,
            "examples_per_step": self.examples_per_step,
            "seed": self.seed,
            "total_steps": self.total_steps if self.mixing == "sequential" else None,
            "data": data_fingerprint,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
