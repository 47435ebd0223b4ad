"""Adaptive loss scales on three tasks and three steps:
numbers worked out by hand, and torch's own Adam and autograd.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pages import rows_under
from helpers.worked_numbers import numbers

from mtdnn_ds.config.choices import LOSS_SCALES
from mtdnn_ds.losses.adaptive import AdaptiveScales, adaptive_scales

EVERY = np.array([True, True, True])
LOSSES = [[1.0, 2.0, 4.0], [0.5, 2.0, 8.0], [0.75, 1.0, 2.0]]
NAN = math.nan
ADAPTIVE = [name for name, facts in LOSS_SCALES.items() if facts.is_adaptive]


def scales_of(name: Any, **changes: Any) -> AdaptiveScales:
    """Three tasks, the last one a regression."""
    return adaptive_scales(
        name,
        **{**dict(is_regression=[False, False, True], seed=3, lr=None, window=1, temperature=2.0), **changes},
    )


def run(scales: AdaptiveScales, losses: Sequence[Sequence[float]], first: int = 1) -> list[list[float]]:
    """Weights of each step, and of the one after the last."""
    found = []
    for step, of_step in enumerate(losses, start=first):
        found.append(scales.weights(~np.isnan(of_step), step).tolist())
        scales.observe(np.array(of_step))
    return [*found, scales.weights(EVERY, first + len(losses)).tolist()]


def test_uncertainty_by_hand() -> None:
    """Adam's first step is lr times the sign.

    Slopes 1/2 - 1, 1/2 - 2 and, of the regression, 1/2 - 4/2: all s rise by 0.01.
    """
    first, second = run(scales_of("uncertainty"), LOSSES[:1])
    assert first == pytest.approx([1 / 3, 1 / 3, 1 / 6])
    assert second == pytest.approx([0.33001661, 0.33001661, 0.16500831], abs=1e-8)  # exp(-0.01) / 3, / 3, / 6


def test_uncertainty_stands_still_where_the_variance_fits() -> None:
    """exp(-s) l = 1/2 of a classification, exp(-s) l = 1 of a regression."""
    assert run(scales_of("uncertainty"), [[0.5, 0.5, 1.0]] * 3)[-1] == pytest.approx([1 / 3, 1 / 3, 1 / 6])


def test_uncertainty_equals_torch() -> None:
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer, share = torch.optim.Adam([s], lr=0.05), torch.tensor([1.0, 1.0, 0.5])
    expected = []
    for losses in [*LOSSES, LOSSES[0]]:
        expected.append((share * torch.exp(-s) / 3).tolist())
        optimizer.zero_grad()
        (share * torch.exp(-s) * torch.tensor(losses) + s / 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(run(scales_of("uncertainty", lr=0.05), LOSSES), expected, rtol=1e-9)


def test_dwa_by_hand() -> None:
    """Ratios 1/2, 1, 2 after two steps, 3/2, 1/2, 1/4 after three; softmax of half of them."""
    first, second, third, fourth = run(scales_of("dwa"), LOSSES)
    assert first == second == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert third == pytest.approx([0.2272198, 0.2917560, 0.4810242], abs=1e-7)
    assert fourth == pytest.approx([0.4668987, 0.2831884, 0.2499129], abs=1e-6)


def test_dwa_compares_means_over_windows() -> None:
    """Windows of two steps: means (1, 2, 4) and (1/2, 2, 8), whatever the single steps are."""
    losses = [[0.5, 2.0, 5.0], [1.5, 2.0, 3.0], [0.25, 3.0, 8.0], [0.75, 1.0, 8.0]]
    found = run(scales_of("dwa", window=2), losses)
    assert found[:4] == [pytest.approx([1 / 3, 1 / 3, 1 / 3])] * 4
    assert found[4] == pytest.approx([0.2272198, 0.2917560, 0.4810242], abs=1e-7)


def test_dwa_is_more_equal_at_a_higher_temperature() -> None:
    assert run(scales_of("dwa", temperature=1e6), LOSSES)[-1] == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3], abs=1e-5
    )


def test_famo_by_hand() -> None:
    """Step 1: equal. Step 2: in proportion to 1, 1/2, 1/4.
    Then two losses have halved and the third has doubled. Means of 14 parts of the first, 15 of the second:
    (14 + 15/2) / 29 = 0.7414, (28 + 15) / 29 = 1.4828 and (56 + 120) / 29 = 6.0690. Two have improved and one
    has not: Adam moves xi by -0.025, -0.025 and 0.025, and the weights are in proportion to
    exp(-0.025) / 0.7414, exp(-0.025) / 1.4828, exp(0.025) / 6.0690."""
    first, second, third = run(scales_of("famo"), [[1.0, 2.0, 4.0], [0.5, 1.0, 8.0]])
    assert first == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert second == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=1e-7)
    assert third == pytest.approx([0.6140916, 0.3070458, 0.0788625], abs=1e-6)


def test_famo_equals_torch() -> None:
    """The authors' update with means of successive steps, each step worth 14/15 of the one after it:
    gradient of softmax(xi) . (log m_before - log m_now), Adam with decay.
    """
    xi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([xi], lr=0.1, weight_decay=0.01)
    expected, losses = [], [[1.0, 2.0, 4.0], [0.5, 1.5, 8.0], [0.75, 1.0, 2.0], [0.5, 1.5, 1.0]]

    def mean(of_steps: list[list[float]]) -> torch.Tensor:
        ages = torch.arange(len(of_steps), dtype=torch.float64).flip(0)
        factors = (14 / 15) ** ages
        return factors @ torch.tensor(of_steps, dtype=torch.float64) / factors.sum() + 1e-8

    for number, of_step in enumerate([*losses, losses[0]]):
        before = mean(losses[:number]) if number else torch.ones(3, dtype=torch.float64)
        raw = torch.softmax(xi, 0).detach() / before
        expected.append((raw / raw.sum()).tolist())
        if number:
            optimizer.zero_grad()
            now = mean([*losses[:number], of_step])
            (torch.softmax(xi, 0) @ (before.log() - now.log())).backward()
            optimizer.step()
    np.testing.assert_allclose(run(scales_of("famo", lr=0.1), losses), expected, rtol=1e-6)


def test_the_worked_example_of_the_page_is_true() -> None:
    table = rows_under("docs/mixing.md", "Three tasks, the last a regression")
    losses = [[float(number) for number in row[0].split(": ")[1].split(", ")] for row in table]
    for column, name in enumerate(("uncertainty", "dwa", "famo"), start=1):
        for row, weights in zip(table, run(scales_of(name), losses), strict=False):
            assert numbers(row[column]) == pytest.approx(weights, abs=5.01e-5)


def test_random_weights_depend_on_seed_and_step_alone() -> None:
    found = np.array(run(scales_of("random"), [LOSSES[0]] * 2000))
    np.testing.assert_allclose(found.sum(1), 1.0)
    np.testing.assert_allclose(found.mean(0), 1 / 3, atol=0.02)
    assert found.min() > 0 and len(np.unique(found[:, 0])) == 2001
    assert scales_of("random").weights(EVERY, 7).tolist() == found[6].tolist()
    assert scales_of("random", seed=4).weights(EVERY, 7).tolist() != found[6].tolist()
    logs = np.log(found)  # of a softmax: differences of the draws, of variance 2
    assert float((logs[:, 0] - logs[:, 1]).var()) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_task_that_is_not_in_a_step_has_no_weight_and_keeps_its_state(name: str) -> None:
    scales = scales_of(name)
    run(scales, LOSSES)
    before = scales.weights(EVERY, 9)
    for step in (10, 11):
        some = scales.weights(np.array([True, False, True]), step)
        assert some[1] == 0.0
        if name != "uncertainty":
            assert some.sum() == pytest.approx(1.0)
        scales.observe(np.array([1.0, NAN, 1.0]))
    after = scales.weights(np.array([False, True, False]), 9)
    assert after[1] == pytest.approx(1.0 if name != "uncertainty" else 3 * before[1])
    assert scales.weights(np.zeros(3, dtype=bool), 12).tolist() == [0.0, 0.0, 0.0]


def test_famo_lets_no_single_loss_fill_a_step() -> None:
    """A learnt task with noisy losses around 0.02 beside two of 0.03 and 0.04. By their means its share is
    50 / (50 + 33 + 25) = 0.46, which xi lowers a little. One loss of 1e-4 takes a fifteenth off its mean and
    adds 0.02 to its share; the inverse of that loss alone would make it 0.993."""
    noise = np.random.default_rng(0).uniform(0.25, 1.75, size=200)
    scales, shares = scales_of("famo"), []
    for step, factor in enumerate(noise):
        own = 1e-4 if step == 150 else 0.02 * factor
        shares.append(scales.weights(EVERY, step)[0])
        scales.observe(np.array([own, 0.03, 0.04]))
    before, after = shares[150:152]
    assert 0 < after - before < 0.03
    assert max(shares[20:]) < 0.5
    assert np.std(shares[50:]) < 0.02


def test_famo_means_count_a_tasks_own_steps() -> None:
    """Steps without the task leave its mean as it is: (14 + 15 * 3) / 29 of losses 1 and 3, whenever."""
    scales = scales_of("famo", lr=1e-12)
    for own in (1.0, NAN, NAN, 3.0):
        scales.observe(np.array([own, 1.0, 1.0]))
    shares = scales.weights(EVERY, 5)
    assert shares[1] / shares[0] == pytest.approx(59 / 29)


def test_famo_reads_a_checkpoint_that_kept_last_losses(caplog: pytest.LogCaptureFixture) -> None:
    """Of 0.4: its one loss of each task becomes the mean of one step."""
    old = {"values": [0.0] * 3, "first": [0.0] * 3, "second": [0.0] * 3, "steps": [1.0] * 3}
    scales = scales_of("famo")
    with caplog.at_level("INFO"):
        scales.load_state_dict({**old, "losses": [0.5, None, 0.25]})
    assert scales.weights(EVERY, 2) == pytest.approx([2 / 9, 3 / 9, 4 / 9])
    assert caplog.messages == [
        "loss.scale=famo: this checkpoint has the last loss of each task; its mean begins with it"
    ]
    assert set(scales.state_dict()) == {*old, "loss_sums", "loss_steps"}


def test_famo_counts_a_task_without_a_loss_yet_like_the_mean_of_the_others() -> None:
    scales = scales_of("famo")
    scales.observe(np.array([0.5, NAN, 0.25]))
    assert scales.weights(EVERY, 2) == pytest.approx([2 / 9, 3 / 9, 4 / 9])


@pytest.mark.parametrize("name", ADAPTIVE)
def test_losses_of_zero_stay_finite(name: str) -> None:
    assert all(
        math.isfinite(weight)
        for weights in run(scales_of(name), [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
        for weight in weights
    )


@pytest.mark.parametrize("name", ADAPTIVE)
def test_state_survives_json_exactly(name: str) -> None:
    changes = {"window": 2, "lr": 0.1} if name == "dwa" else {"lr": 0.1}
    losses = [*LOSSES, [0.3, NAN, 0.7], [NAN, 1.1, 0.9], [0.1, 0.2, 0.3]]
    straight, first, second = (scales_of(name, **changes) for _ in range(3))
    expected = run(straight, losses)
    for step, of_step in enumerate(losses[:3], start=1):
        first.weights(EVERY, step)
        first.observe(np.array(of_step))
    text = json.dumps(first.state_dict(), allow_nan=False)
    second.load_state_dict(json.loads(text))
    assert run(second, losses[3:], first=4) == expected[3:]
