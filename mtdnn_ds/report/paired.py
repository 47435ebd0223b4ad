"""Two ways of training compared seed by seed: the differences' mean, spread and 95 % t-interval. Runs
nothing.

With n seeds, d the differences, m their mean and s their sample standard deviation, the interval is m +-
t(0.975, n - 1) s / sqrt(n): that of a paired t-test. Seeds share first weights and order, which the
difference of each pair leaves out of the spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Of one way from the other. One pair has neither deviation nor interval."""

    num_pairs: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None  # of CONFIDENCE

    @property
    def holds_zero(self) -> bool | None:
        """Whether the interval holds 0; None without an interval."""
        if self.interval is None:
            return None
        low, high = self.interval
        return low <= 0 <= high

    @property
    def verdict(self) -> str:
        """What may be said of it, in words."""
        if self.holds_zero is None:
            return "one seed: no spread"
        if self.holds_zero:
            return "no difference seen"
        if self.mean > 0:
            return "higher"
        return "lower"

    @property
    def interval_text(self) -> str:
        """`[-0.0011, +0.0251]`, or a dash."""
        if self.interval is None:
            return "-"
        low, high = self.interval
        return f"[{low:+.4f}, {high:+.4f}]"

    @property
    def mean_text(self) -> str:
        """`+0.0120 +- 0.0053`: mean and sample standard deviation of the differences."""
        if self.deviation is None:
            return f"{self.mean:+.4f}"
        return f"{self.mean:+.4f} +- {self.deviation:.4f}"


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> PairedDifference:
    """Of `ours` from `theirs`, scores of the same seeds in the same order."""
    assert len(ours) == len(theirs) >= 1, "scores come in pairs"
    differences = np.array(ours, dtype=np.float64) - np.array(theirs, dtype=np.float64)
    mean, num_pairs = float(differences.mean()), len(differences)
    if num_pairs == 1:
        return PairedDifference(num_pairs=1, mean=mean, deviation=None, interval=None)

    from scipy.stats import t

    deviation = float(differences.std(ddof=1))
    reach = float(t.ppf((1 + CONFIDENCE) / 2, num_pairs - 1)) * deviation / math.sqrt(num_pairs)
    return PairedDifference(
        num_pairs=num_pairs, mean=mean, deviation=deviation, interval=(mean - reach, mean + reach)
    )
