"""Curves made readable: means of neighbours, fewer points, values between points. Knows no run."""

from __future__ import annotations

import math
from collections.abc import Sequence

SMOOTHED_FROM = 20  # values


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value with its neighbours: on either side a sixtieth of all points, at least two
    (fewer at the ends, equally many on both sides). Fewer than 20 values stay as they are.

    NaN stays where it is, and counts not.
    """
    if len(values) < SMOOTHED_FROM:
        return list(values)

    # totals[i] and counts[i]: of the finite ones among the first i values.
    totals, counts = [0.0], [0]
    for value in values:
        is_finite = math.isfinite(value)
        counts.append(counts[-1] + is_finite)
        totals.append(totals[-1])
        if is_finite:
            totals[-1] += value

    reach = max(len(values) // 60, 2)
    means = []
    for index, value in enumerate(values):
        if not math.isfinite(value):
            means.append(math.nan)
            continue
        side = min(reach, index, len(values) - 1 - index)
        first, last = index - side, index + side + 1
        means.append((totals[last] - totals[first]) / (counts[last] - counts[first]))
    return means


def thinned(xs: Sequence[float], ys: Sequence[float], most: int = 700) -> tuple[list[float], list[float]]:
    """At most `most` points: means of neighbours, equally many in each."""
    if len(xs) <= most:
        return list(xs), list(ys)

    size = -(-len(xs) // most)
    parts = [slice(begin, begin + size) for begin in range(0, len(xs), size)]
    return [_mean(xs[part]) for part in parts], [_mean(ys[part]) for part in parts]


def _mean(values: Sequence[float]) -> float:
    """Of the finite ones; NaN if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return math.nan
    return sum(finite) / len(finite)


def interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The value at `x` of straight lines through the points, whose `xs` rise."""
    for index in range(1, len(xs)):
        if x <= xs[index]:
            share = (x - xs[index - 1]) / (xs[index] - xs[index - 1])
            return ys[index - 1] + share * (ys[index] - ys[index - 1])
    return float(ys[-1])
