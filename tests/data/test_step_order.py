"""The random order of mixing=per_step: like a shuffle of all mini-batches, with exact totals in every block
and at the end, and any step at any time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data.test_plan import GLUE, plan_of

from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.data.plan.shuffled import ShuffledSteps
from mtdnn_ds.data.plan.step_plan import StepPlan

SMALL = {"a": 1000, "b": 300, "c": 50}  # 1,350 rows: blocks of 85 steps of 16


def per_step(sizes: dict[str, int] = GLUE, **changes: Any) -> StepPlan:
    return plan_of(sizes, **{"mixing": "per_step", **changes})


def tasks_of(plan: StepPlan, num_steps: int) -> np.ndarray:
    """(num_steps,) whose each step is, from the plan's own steps; each step must be one task's."""
    found = []
    for k in range(1, num_steps + 1):
        task_ids = plan.step(k).task_ids
        assert (task_ids == task_ids[0]).all() and task_ids.size == plan.examples_per_step
        found.append(task_ids[0])
    return np.array(found)


def same_at_lag(tasks: np.ndarray, lag: int) -> float:
    return float((tasks[lag:] == tasks[:-lag]).mean())


def test_the_task_of_a_step_says_nothing_of_the_tenth_after_it() -> None:
    """In a shuffle two steps are the same task's with the sum of squared rates, 0.335 on GLUE's sizes.

    The stratified order repeats itself every ten steps instead: it alone fails this.
    """
    random = tasks_of(per_step(examples_per_step=32, total_steps=6000), 6000)
    for lag in (1, 7, 10, 20):
        assert same_at_lag(random, lag) == pytest.approx(0.335, abs=0.03)

    stratified = tasks_of(per_step(order="stratified", total_steps=2000), 2000)
    assert same_at_lag(stratified, 10) == pytest.approx(0.92, abs=0.02)


@pytest.mark.parametrize("rates", ["proportional", "annealed"])
def test_every_block_and_the_run_hold_what_the_stratified_order_draws(rates: str) -> None:
    settings: dict[str, Any] = dict(rates=rates, examples_per_step=16, total_steps=301)
    counts = np.eye(3, dtype=int)[tasks_of(per_step(SMALL, **settings), 301)]
    stratified = per_step(SMALL, order="stratified", **settings)
    in_order = np.eye(3, dtype=int)[tasks_of(stratified, 301)]

    for begin, end in ((0, 85), (85, 170), (170, 255), (255, 301)):  # the last is cut where the run ends
        np.testing.assert_array_equal(counts[begin:end].sum(axis=0), in_order[begin:end].sum(axis=0))
        assert (counts[begin:end] != in_order[begin:end]).any()
    if rates == "proportional":  # 301 steps of 16: 223.0, 66.9 and 11.1 of them
        assert np.abs(counts.sum(axis=0) - np.array([223.0, 66.9, 11.1])).max() < 1.5


def test_blocks_and_seeds_have_orders_of_their_own() -> None:
    first = tasks_of(per_step(SMALL, examples_per_step=16, total_steps=170), 170)
    other = tasks_of(per_step(SMALL, examples_per_step=16, total_steps=170, seed=8), 170)
    again = tasks_of(per_step(SMALL, examples_per_step=16, total_steps=170), 170)
    np.testing.assert_array_equal(first, again)
    assert (first[:85] != first[85:]).any() and (first[:85] != other[:85]).any()


def test_a_jump_is_the_walk() -> None:
    """A fresh plan asked for one step, or for what is drawn up to it, agrees with one that walked there."""
    settings: dict[str, Any] = dict(examples_per_step=16, total_steps=301, rates="annealed")
    walked = per_step(SMALL, **settings)
    drawn = np.cumsum([walked.task_counts(k) for k in range(1, 302)], axis=0)
    for k in (301, 1, 84, 85, 86, 170, 255, 256, 300):
        jumped = per_step(SMALL, **settings)
        np.testing.assert_array_equal(jumped.drawn(k), drawn[k - 1])
        np.testing.assert_array_equal(per_step(SMALL, **settings).step(k).rows, walked.step(k).rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixing": "per_example"},
        {"mixing": "per_example", "rates": "annealed"},
        {"order": "stratified"},
        {"rates": "annealed"},
        {"rates": {"a": 1, "b": 2, "c": 2}},
    ],
)
def test_one_tasks_counts_are_those_of_each_step(changes: dict[str, Any]) -> None:
    plan = per_step(SMALL, **{"examples_per_step": 16, "total_steps": 301, **changes})
    each = np.array([plan.task_counts(k) for k in range(1, 302)])
    for task in range(3):
        for begin, end in ((0, 301), (0, 1), (83, 171), (7, 7), (300, 301)):
            np.testing.assert_array_equal(plan.counts_of(task, begin, end), each[begin:end, task])


def test_blocks_are_an_epoch_within_limits() -> None:
    def block_steps(rows: int) -> int:
        units = per_step({"a": rows, "b": 1}, examples_per_step=1, total_steps=10)._units
        assert isinstance(units, ShuffledSteps)
        return units.block_steps

    assert [block_steps(rows) for rows in (1, 9, 999, 10**9)] == [10, 10, 1000, 65_536]


def test_a_run_of_version_0_4_goes_on_in_the_stratified_order() -> None:
    """The fingerprint is what version 0.4 wrote for these arguments."""
    fingerprint = "79e8ed474edabbe598a7884bf324adbaf032856711f976c70afb8f8bb507fb7e"
    state = {"step": 41, "seed": 7, "examples_per_step": 32, "fingerprint": fingerprint}
    assert per_step(order="stratified").step_of_state(state) == 41
    with pytest.raises(CheckpointError, match=r"begun with mixture\.order=stratified(.|\n)*resume with it"):
        per_step().step_of_state(state)

    own = per_step().state_dict(41)
    assert per_step().step_of_state(own) == 41
    with pytest.raises(CheckpointError, match="hold other examples"):
        per_step(order="stratified").step_of_state(own)
    with pytest.raises(CheckpointError, match="hold other examples"):
        per_step(total_steps=1001).step_of_state(own)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mixture\.order=sorted: must be one of random, stratified"):
        per_step(order="sorted")
