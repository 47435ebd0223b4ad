"""StratifiedUnits: how many units of each task lie in each step, laid out evenly. Not which rows they are.

A unit is an example, or a whole step for mixing=per_step. Rates are constant over segments of the run, of
which there is one unless they are annealed: then 50, of whole cycles of 10 steps. Inside a segment
apportion.py lays out the units, and its promise for windows of 10 steps holds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtdnn_ds.data.plan.apportion import CYCLE, Apportionment, quantise
from mtdnn_ds.data.plan.rates import Mixture, annealed_alpha, task_rates

_ANNEAL_SEGMENTS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class _Segment:
    """A stretch of the run with constant rates."""

    first_step: int  # 0-based, a multiple of CYCLE
    apportionment: Apportionment
    units_before_N: np.ndarray  # (N,) int64


class StratifiedUnits:
    """Units of the tasks of `sizes` in any step; each step holds `units_per_step`.

    `total_steps` shapes annealed rates only.
    """

    def __init__(
        self, mixture: Mixture, sizes: Mapping[str, int], *, units_per_step: int, total_steps: int
    ) -> None:
        num_segments, cycles_per_segment = 1, 0
        if mixture.rates == "annealed":
            num_cycles = -(-total_steps // CYCLE)
            cycles_per_segment = -(-num_cycles // _ANNEAL_SEGMENTS)
            num_segments = -(-num_cycles // cycles_per_segment)

        self._segments: list[_Segment] = []
        units_before_N = np.zeros(len(sizes), dtype=np.int64)
        for segment in range(num_segments):
            alpha = annealed_alpha(segment, num_segments, mixture.anneal_to)
            rates_N = task_rates(
                mixture.rates, sizes, temperature=mixture.temperature, cap=mixture.cap, alpha=alpha
            )
            apportionment = Apportionment(share_N=quantise(rates_N), units_per_step=units_per_step)

            first_cycle = segment * cycles_per_segment
            self._segments.append(
                _Segment(
                    first_step=first_cycle * CYCLE, apportionment=apportionment, units_before_N=units_before_N
                )
            )
            units_before_N = units_before_N + apportionment.drawn(first_cycle, cycles_per_segment * CYCLE)

    @property
    def shares(self) -> list[tuple[int, list[int]]]:
        """(first step, quantised rates) of each segment."""
        return [(segment.first_step, segment.apportionment.share_N.tolist()) for segment in self._segments]

    def drawn(self, k: int) -> np.ndarray:
        """(N,) int64: units of each task in steps 1..k together. O(N log k)."""
        segment = self._segments[bisect_right(self._segments, k, key=lambda segment: segment.first_step) - 1]
        units_N = segment.apportionment.drawn(segment.first_step // CYCLE, k - segment.first_step)
        return segment.units_before_N + units_N

    def counts_of(self, task: int, begin: int, end: int) -> np.ndarray:
        """(end - begin,) int64: units of one task in each of the steps begin+1 .. end."""
        starts = [segment.first_step for segment in self._segments]
        parts = [np.zeros(0, dtype=np.int64)]
        for segment, next_start in zip(self._segments, [*starts[1:], end], strict=True):
            first, last = max(begin, segment.first_step), min(end, next_start)
            if first >= last:
                continue

            first_cycle, end_cycle = first // CYCLE, -(-last // CYCLE)
            counts = segment.apportionment.counts_of(task, first_cycle, end_cycle - first_cycle)
            parts.append(counts[first - first_cycle * CYCLE : last - first_cycle * CYCLE])
        return np.concatenate(parts)
