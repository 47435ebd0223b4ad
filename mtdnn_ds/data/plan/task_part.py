"""TaskPart: one task's part of a plan, the steps that draw it with its examples alone. For
mixture.only_task.

It is the fair "alone" beside the whole plan's "together": the task has as many updates, with exactly the same
examples in each and in the same order; only the other tasks' examples are left out, and the steps that would
be empty without them. Those are found once, 4 bytes each; all else follows from the whole plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.data.plan.step_plan import StepExamples, StepPlan, step_of_state

_STEPS_AT_ONCE = 65_536


class TaskPart:
    """What StepPlan says of itself, of the part of `whole` that is `task`'s; not of a sequence.

    Step j is the j-th step of `whole` that draws the task. Raises ConfigError if none does.
    """

    def __init__(self, whole: StepPlan, task: str) -> None:
        self._whole = whole
        self._task = whole.task_names.index(task)
        self._step_of = _steps_that_draw(whole, self._task)
        if not len(self._step_of):
            raise ConfigError(
                f"mixture.only_task={task}: the plan draws no example of it in {whole.total_steps:,} steps; "
                "raise its rate, or train longer"
            )

        self.task_names = whole.task_names
        self.trained_tasks = (task,)
        self.mixing, self.order = whole.mixing, whole.order
        self.examples_per_step = whole.examples_per_step  # of the whole plan; the part's are fewer
        self.seed = whole.seed
        self.total_steps = len(self._step_of)
        content = {"whole": whole.fingerprint, "only_task": task}
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def length(self) -> str:
        """How long it is, in words."""
        return (
            f"{self.total_steps:,} steps, those of {self._whole.length} that draw {self.trained_tasks[0]}, "
            "with its examples alone"
        )

    def drawn(self, k: int) -> np.ndarray:
        """(N,) int64: examples of each task in steps 1..k together; 0 of all other tasks."""
        drawn_N = np.zeros(len(self.task_names), dtype=np.int64)
        if k:
            drawn_N[self._task] = self._whole.drawn(self._whole_step(k))[self._task]
        return drawn_N

    def task_counts(self, k: int) -> np.ndarray:
        """(N,) int64: examples of each task in step k."""
        assert k >= 1, "steps count from 1"
        return self.drawn(k) - self.drawn(k - 1)

    def epochs(self, k: int) -> np.ndarray:
        """(N,) float64: how often each task's data has been gone through after step k."""
        return self.drawn(k) / self._whole.size_N

    def step(self, k: int) -> StepExamples:
        """The examples of step k: those of the task in a step of the whole plan, at least one."""
        examples = self._whole.step(self._whole_step(k))
        own = examples.task_ids == self._task
        return StepExamples(
            task_ids=examples.task_ids[own], rows=examples.rows[own], epochs=examples.epochs[own]
        )

    def state_dict(self, k: int) -> dict[str, int | str]:
        """What a checkpoint keeps after step k."""
        return {**self._whole.state_dict(k), "fingerprint": self.fingerprint}

    def step_of_state(self, state: Mapping[str, Any]) -> int:
        """The step a `state_dict` was taken after. Raises CheckpointError if another plan wrote it."""
        return step_of_state(state, self.state_dict(int(state["step"])))

    def _whole_step(self, k: int) -> int:
        return int(self._step_of[k - 1]) + 1


Plan = StepPlan | TaskPart
"""What a run trains on."""


def part_of(whole: StepPlan, task: str | None) -> Plan:
    """The task's part of a plan; None: all of it."""
    if task is None:
        return whole
    return TaskPart(whole, task)


def _steps_that_draw(plan: StepPlan, task: int) -> np.ndarray:
    """The steps of the plan with an example of the task, counted from 0, uint32."""
    found = [np.zeros(0, dtype=np.uint32)]
    for begin in range(0, plan.total_steps, _STEPS_AT_ONCE):
        end = min(begin + _STEPS_AT_ONCE, plan.total_steps)
        steps = begin + np.flatnonzero(plan.counts_of(task, begin, end))
        found.append(steps.astype(np.uint32))
    return np.concatenate(found)
