"""Paired differences against scipy's paired t-test and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from mtdnn_ds.report.paired import paired_difference


def test_worked_by_hand() -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1; t(0.975, 2) = 4.3027, so 0.2 +- 0.24842."""
    found = paired_difference([0.6, 0.7, 0.8], [0.5, 0.5, 0.5])
    assert (found.num_pairs, found.mean, found.deviation) == (3, pytest.approx(0.2), pytest.approx(0.1))
    assert found.interval == pytest.approx((-0.04842, 0.44842), abs=1e-5)
    assert (found.mean_text, found.interval_text) == ("+0.2000 +- 0.1000", "[-0.0484, +0.4484]")
    assert found.verdict == "no difference seen"


@pytest.mark.parametrize("num_pairs", [2, 3, 5, 20])
def test_the_interval_is_scipys(num_pairs: int) -> None:
    rng = np.random.default_rng(num_pairs)
    ours, theirs = rng.normal(0.80, 0.02, num_pairs), rng.normal(0.78, 0.02, num_pairs)
    found = paired_difference(ours.tolist(), theirs.tolist())
    test = ttest_rel(ours, theirs)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.holds_zero == (test.pvalue >= 0.05)


def test_the_words() -> None:
    assert paired_difference([0.9, 0.92, 0.91], [0.5, 0.51, 0.52]).verdict == "higher"
    assert paired_difference([0.5, 0.51, 0.52], [0.9, 0.92, 0.91]).verdict == "lower"
    assert paired_difference([0.5, 0.7], [0.5, 0.7]).verdict == "no difference seen"


def test_one_seed_has_no_spread() -> None:
    found = paired_difference([0.75], [0.5])
    assert (found.mean, found.deviation, found.interval) == (0.25, None, None)
    assert (found.mean_text, found.interval_text, found.verdict) == ("+0.2500", "-", "one seed: no spread")
