"""mixture.only_task: the steps of a plan that draw the task, with exactly its examples, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data.test_plan import GLUE, plan_of

from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.data.plan.task_part import TaskPart

SMALL = {"a": 1000, "b": 300, "c": 50}
PLANS: list[dict[str, Any]] = [
    {"mixing": "per_example"},
    {"mixing": "per_micro_batch", "rates": "annealed"},
    {"mixing": "per_step"},
    {"mixing": "per_step", "rates": "annealed"},
    {"mixing": "per_step", "order": "stratified"},
]


def part_of(task: str, **changes: Any) -> TaskPart:
    return TaskPart(plan_of(SMALL, **{"examples_per_step": 16, "total_steps": 301, **changes}), task)


@pytest.mark.parametrize("changes", PLANS)
@pytest.mark.parametrize("task", ["a", "b", "c"])
def test_the_part_has_the_tasks_updates_with_the_same_rows(task: str, changes: dict[str, Any]) -> None:
    whole = plan_of(SMALL, **{"examples_per_step": 16, "total_steps": 301, **changes})
    index = list(SMALL).index(task)
    together = []
    for k in range(1, 302):
        examples = whole.step(k)
        own = examples.task_ids == index
        if own.any():
            together.append((examples.rows[own], examples.epochs[own]))

    part = TaskPart(whole, task)
    assert part.total_steps == len(together)
    for j, (rows, epochs) in enumerate(together, 1):
        alone = part.step(j)
        assert (alone.task_ids == index).all()
        np.testing.assert_array_equal(alone.rows, rows)
        np.testing.assert_array_equal(alone.epochs, epochs)
        assert part.task_counts(j)[index] == part.task_counts(j).sum() == len(rows)

    np.testing.assert_array_equal(part.drawn(part.total_steps), np.eye(3)[index] * whole.drawn(301))
    assert part.epochs(part.total_steps)[index] == whole.epochs(301)[index]
    assert part.drawn(0).tolist() == [0, 0, 0]


def test_a_part_may_hold_a_few_examples_a_step() -> None:
    """c has 16 * 50 / 1350 = 0.59 examples a step: 178.4 in 301 steps, never more than one."""
    part = part_of("c")
    assert part.drawn(part.total_steps)[2] == part.total_steps == 178
    assert {len(part.step(j).rows) for j in range(1, 179)} == {1}


def test_any_step_at_any_time() -> None:
    walked = part_of("b", mixing="per_step")
    for k in (60, 1, 33):
        np.testing.assert_array_equal(part_of("b", mixing="per_step").step(k).rows, walked.step(k).rows)


def test_long_plans_are_cut_into_pieces_for_the_search() -> None:
    """200,000 steps of GLUE in random order: STS-B's rate is 5,749 / 949,733, of 200,000 steps 1,210.7."""
    part = TaskPart(plan_of(GLUE, mixing="per_step", total_steps=200_000), "stsb")
    assert part.total_steps == pytest.approx(1210.7, abs=4)
    counts = [part.task_counts(j)[3] for j in range(1, part.total_steps + 1, 97)]
    assert set(counts) == {32}


def test_fingerprint_and_state_name_the_task_and_the_whole_plan() -> None:
    part = part_of("b")
    others = [part_of("a"), part_of("b", seed=8), part_of("b", mixing="per_step")]
    whole = plan_of(SMALL, examples_per_step=16, total_steps=301)
    prints = {plan.fingerprint for plan in (part, whole, *others)}
    assert len(prints) == 5 and part_of("b").fingerprint == part.fingerprint

    state = part.state_dict(7)
    assert state == {"step": 7, "seed": 7, "examples_per_step": 16, "fingerprint": part.fingerprint}
    assert part_of("b").step_of_state(state) == 7
    for other in (part_of("a"), whole):
        with pytest.raises(CheckpointError, match="hold other examples"):
            other.step_of_state(state)


def test_a_task_that_is_never_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"only_task=wnli: the plan draws no example of it in 20 steps"):
        TaskPart(plan_of(GLUE, total_steps=20, mixing="per_step", order="stratified"), "wnli")
