"""The step plan: each example once per epoch,
shares kept in every window of ten steps, any step at any time, bounded memory.
"""

from __future__ import annotations

import itertools
import time
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.data.plan.permutation import permute
from mtdnn_ds.data.plan.rates import Mixture, annealed_alpha, check_explicit_rates, task_rates
from mtdnn_ds.data.plan.step_plan import StepPlan, steps_for_epochs

# Training rows of CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI in official GLUE.
GLUE = dict(
    zip(
        ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"),
        (8551, 67349, 3668, 5749, 363846, 392702, 104743, 2490, 635),
        strict=True,
    )
)
EXPLICIT = {
    "cola": 1.0,
    "sst2": 2.0,
    "mrpc": 3.0,
    "stsb": 0.5,
    "qqp": 10.0,
    "mnli": 7.0,
    "qnli": 2.5,
    "rte": 1e-4,
    "wnli": 0.7,
}
_SIZES = np.array(list(GLUE.values()), dtype=np.float64)
# Written out here from the papers' formulas, not taken from the code under test.
GLUE_WEIGHTS: dict[str, np.ndarray] = {
    "proportional": _SIZES,
    "temperature": np.sqrt(_SIZES),
    "cap": np.minimum(_SIZES, 131072.0),
    "uniform": np.ones(9),
    "explicit": np.array(list(EXPLICIT.values())),
}


def plan_of(sizes: dict[str, int] = GLUE, **changes: Any) -> StepPlan:
    mixture: dict[str, Any] = dict(
        rates="proportional", temperature=2.0, cap=131072, anneal_to=0.2, mixing="per_example", order="random"
    )
    mixture |= {name: changes.pop(name) for name in mixture if name in changes}
    settings: dict[str, Any] = dict(examples_per_step=32, seed=7, total_steps=1000, data_fingerprint="")
    return StepPlan(sizes=sizes, mixture=Mixture(**mixture), **{**settings, **changes})


def window_errors(plan: StepPlan, first_step: int, num_steps: int, expected_N: np.ndarray) -> np.ndarray:
    """(N,) largest |count - expected| of each task over every window of ten consecutive steps;
    counts from the plan's steps.
    """
    counts = np.array(
        [
            np.bincount(plan.step(k).task_ids, minlength=expected_N.size)
            for k in range(first_step, first_step + num_steps)
        ]
    )
    assert (counts.sum(1) == plan.examples_per_step).all()
    total = np.concatenate((np.zeros((1, expected_N.size)), np.cumsum(counts, axis=0)))
    return np.asarray(np.abs(total[10:] - total[:-10] - expected_N).max(axis=0))


@pytest.mark.parametrize("mode", GLUE_WEIGHTS)
@pytest.mark.parametrize("examples_per_step", [8, 32, 256])
@pytest.mark.parametrize("first_step", [1, 99_900])
def test_ten_steps_hold_each_share_to_within_one_example(
    mode: str, examples_per_step: int, first_step: int
) -> None:
    weights = GLUE_WEIGHTS[mode]
    plan = plan_of(rates=EXPLICIT if mode == "explicit" else mode, examples_per_step=examples_per_step)
    errors = window_errors(plan, first_step, 300, 10 * examples_per_step * weights / weights.sum())
    assert errors.max() <= 1 + 1e-6  # rates are integers over 2^40


def test_annealed_shares_fall_from_proportional_to_a_fifth_of_the_exponent() -> None:
    plan = plan_of(rates="annealed", total_steps=20_000)  # 50 segments of 400 steps
    for first_step, alpha in ((1, 1.0), (401, 1 - 0.8 / 49), (19_601, 0.2)):
        weights = _SIZES**alpha
        assert window_errors(plan, first_step, 400, 320 * weights / weights.sum()).max() <= 1 + 1e-6
    exact = sum(
        400 * 32 * _SIZES ** (1 - 0.8 * s / 49) / (_SIZES ** (1 - 0.8 * s / 49)).sum() for s in range(50)
    )
    np.testing.assert_allclose(plan.drawn(20_000), exact, atol=8)


def test_random_mixtures_keep_windows_and_long_run_shares() -> None:
    """Also with more tasks than examples per step,
    where a task of fraction above 1/2 may be off by up to 1.5.
    """
    rng = np.random.default_rng(0)
    for trial in range(40):
        num_tasks, examples_per_step = int(rng.integers(1, 60)), int(rng.integers(1, 40))
        weights = rng.dirichlet(np.full(num_tasks, rng.choice([0.3, 3.0, 100.0]))) + 1e-6
        rates = weights / weights.sum()
        names = [f"t{i}" for i in range(num_tasks)]
        sizes = {name: int(rng.integers(1, 500)) for name in names}
        plan = plan_of(
            sizes,
            rates=dict(zip(names, weights.tolist(), strict=True)),
            examples_per_step=examples_per_step,
            seed=trial,
        )
        expected = 10 * examples_per_step * rates
        errors = window_errors(plan, int(rng.integers(1, 10**6)), 40, expected)
        fraction = expected - np.floor(expected)
        more_extras_than_places = fraction.sum() > examples_per_step + 0.5
        assert (errors <= np.where(more_extras_than_places & (fraction > 0.5), 1.5, 1) + 1e-6).all()
        k = int(rng.integers(10**5, 10**6))
        assert plan.drawn(k).sum() == k * examples_per_step
        assert np.abs(plan.drawn(k) - k * examples_per_step * rates).max() <= 25


@pytest.mark.parametrize("mixing", ["per_example", "per_step", "sequential"])
def test_each_example_once_per_epoch(mixing: str) -> None:
    sizes = {"one": 1, "small": 7, "middle": 60, "large": 500}
    plan = plan_of(sizes, rates="temperature", examples_per_step=24, mixing=mixing, total_steps=200)
    steps = [plan.step(k) for k in range(1, 201)]
    tasks = np.concatenate([step.task_ids for step in steps])
    rows = np.concatenate([step.rows for step in steps])
    epochs = np.concatenate([step.epochs for step in steps])
    for task, size in enumerate(sizes.values()):
        of_task = tasks == task
        whole = of_task & (epochs < epochs[of_task].max())
        seen = np.bincount(epochs[whole] * size + rows[whole], minlength=1)
        assert (seen == 1).all() and seen.size == size * epochs[of_task].max()
        last = rows[of_task & ~whole]
        assert np.unique(last).size == last.size and last.max() < size
        assert plan.drawn(200)[task] == of_task.sum()
        assert plan.epochs(200)[task] == of_task.sum() / size


def test_steps_do_not_depend_on_who_asks_or_in_which_order() -> None:
    for changes in (
        {},
        {"mixing": "per_step"},
        {"mixing": "per_step", "order": "stratified"},
        {"mixing": "sequential"},
        {"rates": "annealed"},
    ):
        forwards = [plan.step(k) for plan in [plan_of(**changes)] for k in range(1, 1001, 37)]
        other = plan_of(**changes)
        for k, ours in reversed(list(zip(range(1, 1001, 37), forwards, strict=True))):
            theirs = other.step(k)
            for field in ("task_ids", "rows", "epochs"):
                np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
            assert (np.diff(ours.task_ids) >= 0).all()


def simulate(weights: list[int], units_per_step: int, num_steps: int) -> np.ndarray:
    """(num_steps, N) units by the definition in data/plan/apportion.py, one unit at a time in fractions;
    weights sum to 2^10, F <= units_per_step.
    """
    owed = [Fraction(10 * units_per_step * weight, 1024) for weight in weights]
    base = [int(y) for y in owed]
    ends = [sum((y % 1 for y in owed[: t + 1]), Fraction(0)) for t in range(len(owed))]
    line = sorted((Fraction(2 * i + 1, 2 * n), t) for t, n in enumerate(base) for i in range(n))
    steps = np.zeros((num_steps, len(weights)), dtype=np.int64)
    for cycle in range(num_steps // 10):
        offset = Fraction(int(f"{cycle:040b}"[::-1], 2), 2**40)
        tasks = [next(t for t, end in enumerate(ends) if j + offset < end) for j in range(int(ends[-1]))] + [
            t for _, t in line
        ]
        for place, task in enumerate(tasks):  # extras first, in the first step of the cycle
            steps[10 * cycle + place // units_per_step, task] += 1
    return steps


@pytest.mark.parametrize(
    ("weights", "examples_per_step"),
    [([300, 17, 700, 7], 5), ([1, 2, 3, 500, 518], 32), ([1024], 3), ([333, 333, 358], 7)],
)
def test_closed_form_equals_a_simulation_by_definition(weights: list[int], examples_per_step: int) -> None:
    names = [f"t{i}" for i in range(len(weights))]
    plan = plan_of(
        {name: 50 for name in names},
        rates=dict(zip(names, map(float, weights), strict=True)),
        examples_per_step=examples_per_step,
    )
    expected = np.cumsum(simulate(weights, examples_per_step, 400), axis=0)
    np.testing.assert_array_equal(np.array([plan.drawn(k) for k in range(1, 401)]), expected)


def test_per_step_gives_each_step_to_one_task_in_its_share() -> None:
    plan = plan_of(mixing="per_step", order="stratified", examples_per_step=16)
    counts = np.array([plan.task_counts(k) for k in range(1, 601)]) // 16
    assert (counts.max(axis=1) == 1).all() and (counts.sum(axis=1) == 1).all()
    windows = np.lib.stride_tricks.sliding_window_view(counts, 10, axis=0).sum(axis=-1)
    assert np.abs(windows - 10 * _SIZES / _SIZES.sum()).max() <= 1 + 1e-6


def test_tasks_astride_two_steps_are_the_rarely_drawn_ones() -> None:
    """Extras of these tasks fill all ten steps of a cycle;
    laid on the line in recipe order, some windows are off by 1.25.
    """
    weights = np.array([8, 3, 2, 9, 2, 5, 3, 8])
    names = [f"t{i}" for i in range(8)]
    rates = dict(zip(names, weights.astype(float).tolist(), strict=True))
    plan = plan_of(
        {name: 50 for name in names}, rates=rates, mixing="per_step", order="stratified", examples_per_step=1
    )
    assert window_errors(plan, 1, 400, 10 * weights / 40).max() <= 1 + 1e-6


def test_sequential_runs_the_tasks_in_recipe_order() -> None:
    plan = plan_of(
        {"a": 10, "b": 30, "c": 3},
        rates={"a": 1, "b": 2, "c": 2},
        mixing="sequential",
        examples_per_step=4,
        total_steps=4,
    )
    # 16 examples split 1:2:2 are 3.2, 6.4, 6.4:
    # floors 3, 6, 6, and the largest remainder, b's (the earlier one), gets the last
    assert [plan.task_counts(k).tolist() for k in range(1, 5)] == [[3, 1, 0], [0, 4, 0], [0, 2, 2], [0, 0, 4]]


def test_fingerprint_changes_with_everything_that_steps_depend_on() -> None:
    plans = [
        plan_of(),
        plan_of({**GLUE, "rte": 2491}),
        plan_of({"mnli": 10}),
        plan_of({"mnlj": 10}),
        plan_of(dict(reversed(GLUE.items()))),
        plan_of(rates="uniform"),
        plan_of(rates="temperature"),
        plan_of(rates="temperature", temperature=3.0),
        plan_of(rates="cap"),
        plan_of(rates="cap", cap=1000),
        plan_of(rates="annealed"),
        plan_of(rates="annealed", anneal_to=0.3),
        plan_of(rates="annealed", total_steps=2000),
        plan_of(rates=EXPLICIT),
        plan_of(rates={**EXPLICIT, "rte": 2e-4}),
        plan_of(mixing="per_step"),
        plan_of(mixing="per_step", total_steps=1001),  # where the last block ends
        plan_of(mixing="per_step", order="stratified"),
        plan_of(mixing="per_micro_batch"),
        plan_of(mixing="sequential"),
        plan_of(mixing="sequential", total_steps=1001),
        plan_of(examples_per_step=33),
        plan_of(seed=8),
        plan_of(data_fingerprint="x"),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    assert plan_of().fingerprint == plan_of().fingerprint
    assert (
        plan_of(total_steps=2000).fingerprint == plan_of().fingerprint
    )  # such a run may be resumed for longer


def test_state_is_four_values_and_refuses_another_plan() -> None:
    plan = plan_of()
    state = plan.state_dict(41)
    assert state == {"step": 41, "seed": 7, "examples_per_step": 32, "fingerprint": plan.fingerprint}
    assert plan.step_of_state(state) == 41
    with pytest.raises(
        CheckpointError, match=r"plan.seed: checkpoint 7, this run 8(.|\n)*hold other examples"
    ):
        plan_of(seed=8).step_of_state(state)


def test_a_thousand_tasks_and_a_billion_rows_fit_in_little_time_and_memory() -> None:
    sizes = {
        f"task{i}": size
        for i, size in enumerate(
            (np.random.default_rng(0).dirichlet(np.full(1000, 0.5)) * 1e9).astype(int) + 1
        )
    }
    plan = plan_of(sizes, rates="temperature", examples_per_step=65_536)
    tracemalloc.start()
    start = time.process_time()
    examples = plan.step(12_345)
    step_seconds = time.process_time() - start
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    fresh = plan_of(sizes, rates="temperature", examples_per_step=65_536)
    start = time.process_time()
    fresh.drawn(1_000_003)
    jump_seconds = time.process_time() - start
    print(f"step {step_seconds:.3f} s, {peak_bytes / 2**20:.0f} MiB; jump {jump_seconds * 1000:.1f} ms")
    assert examples.rows.size == 65_536 and peak_bytes < 500 * 2**20
    assert step_seconds < 3 * 0.5 and jump_seconds < 3 * 0.1


def test_every_order_of_three_rows_is_equally_frequent() -> None:
    epochs = np.arange(6000)
    orders = permute(np.arange(3)[None, :], size=3, seed=1, epoch=epochs[:, None], stream=5)
    counts = [int((orders == order).all(axis=1).sum()) for order in itertools.permutations(range(3))]
    assert sum(counts) == 6000
    assert (
        sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5
    )  # chi-square with 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 10, 17, 100, 1000, 4097, 70_000])
def test_permutations_are_bijections_that_look_shuffled(size: int) -> None:
    positions = np.arange(size)
    orders = [
        permute(positions, size=size, seed=seed, epoch=epoch, stream=stream)
        for seed in (0, 1)
        for epoch in (0, 1)
        for stream in (0, 1)
    ]
    for order in orders:
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), positions)
    if size >= 100:
        for first, second in itertools.combinations([positions, *orders], 2):
            assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(size)  # five standard deviations
            assert (first == second).sum() <= 9  # expected 1, Poisson
        for order in orders:
            assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(size)


def test_permute_takes_many_tasks_at_once() -> None:
    size, epoch, stream = np.array([5, 5, 900, 2]), np.array([0, 3, 1, 9]), np.array([1, 1, 2, 3])
    together = permute(np.array([4, 0, 17, 1]), size=size, seed=3, epoch=epoch, stream=stream)
    alone = [
        int(permute(np.array([p]), size=int(n), seed=3, epoch=int(e), stream=int(s))[0])
        for p, n, e, s in zip([4, 0, 17, 1], size, epoch, stream, strict=True)
    ]
    assert together.tolist() == alone


def test_steps_for_epochs_rounds_up_and_reads_decimals() -> None:
    assert steps_for_epochs(1.0, {"a": 100, "b": 1}, 10) == 11
    assert steps_for_epochs(0.1, {"a": 100}, 10) == 1  # the binary 0.1 is above 1/10 and would give 2
    assert steps_for_epochs(3.0, GLUE, 32) == 89_038  # 3 * 949733 / 32 = 89037.5


def test_rates_are_the_papers_formulas() -> None:
    sizes = {"a": 100, "b": 10_000}
    for mode, expected in (
        ("proportional", [1 / 101, 100 / 101]),
        ("temperature", [1 / 11, 10 / 11]),
        ("cap", [1 / 3, 2 / 3]),
        ("uniform", [0.5, 0.5]),
        ("annealed", [1 / 11, 10 / 11]),
        ({"b": 3, "a": 1}, [0.25, 0.75]),
        ({"b": 1e308, "a": 1e308}, [0.5, 0.5]),
    ):
        np.testing.assert_allclose(
            task_rates(mode, sizes, temperature=2.0, cap=200, alpha=0.5), expected, rtol=1e-12
        )
    assert [round(annealed_alpha(e - 1, 5, 0.2), 12) for e in range(1, 6)] == [1.0, 0.8, 0.6, 0.4, 0.2]


def test_errors_name_every_problem() -> None:
    assert check_explicit_rates({"mnli": 1.0, "rte": 2.0}, ["rte", "mnli"]) == []
    unknown, negative, missing = check_explicit_rates({"mnil": 1.0, "rte": -1.0}, ["rte", "mnli"])
    assert unknown == "mixture.rates.mnil: no such task in this run; did you mean 'mnli'? (known: mnli, rte)"
    assert (
        negative
        == "mixture.rates.rte=-1.0: a rate must be a number > 0; remove the task from 'tasks' to skip it."
    )
    assert missing.startswith("mixture.rates: no rate for task 'mnli'; give it one")
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        plan_of(rates="unifrom")
    with pytest.raises(
        ConfigError,
        match=r"'a' has no training examples(.|\n)*mixing=mixed(.|\n)*examples_per_step=0(.|\n)*steps=0",
    ):
        plan_of({"a": 0}, mixing="mixed", examples_per_step=0, total_steps=0)
    with pytest.raises(ConfigError, match=r"annealed has no effect with mixture\.mixing=sequential"):
        plan_of(rates="annealed", mixing="sequential")
