"""Low-discrepancy apportionment: how many units of each task fall into each step. Not which rows they are.

A unit is an example, or a whole step for mixing=per_step. Every step holds exactly U units. Integers only. An
error below one unit in windows of every length is impossible for general rates with exact step sizes, so the
promise is made for windows of CYCLE = 10 steps:

1. Rates become integers R_t with sum ONE = 2^40. A cycle of 10 steps owes task t
   y_t = 10 U R_t / ONE = base_t + f_t / ONE units. The fractions sum to a whole number F of "extras" per
   cycle.
2. Cycle m draws base_t units of each task, and one extra for F of the tasks by systematic rounding with a
   rotating offset: task t owns [A_t, A_t + f_t) of a line, A_t = sum of the f before it; points lie at
   j ONE + u(m), j = 0 .. F-1; a task whose interval holds a point gets an extra. u(m), the van der Corput
   sequence (m's 40 bits reversed), makes the extras of cycles 0 .. m-1 countable in closed form, within
   O(log m) of m f_t / ONE.
3. Where units lie within a cycle never changes: point j lies in step floor(j / U), base units fill what is
   left, ordered by their ideal times (i + 1/2) / base_t.

Window of 10 steps: it covers each place of the cycle once, so it holds exactly base_t base units of task t.
If F <= U all extras lie in one step, the window sees one cycle's extras, and its count is base_t or
base_t + 1: within 1 of y_t.

If F > U the extras take several steps and a task astride a cut j ONE, j = U, 2U, .. moves between two steps:
it uses the later one if u(m) < b and the earlier one if u(m) >= 1 - (f - b), with 0 < b < f the part past the
cut and ONE = 1. A window could catch both only if u(m) < b and u(m+1) >= 1 - (f - b). If f <= 1/2,
u(m) < 1/2 means u(m+1) = u(m) + 1/2, so u(m) >= 1/2 - f + b >= b: impossible. So tasks with small f are laid
astride the cuts. Where none is left, a task with f > 1/2 may hold base_t + 2: off by 2 - f < 1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

CYCLE = 10  # steps; the window for which the promise holds
_BITS = 40  # resolution of rates: a rate below 2^-40 is raised to 2^-40
ONE = 1 << _BITS
MAX_UNITS_PER_STEP = 1 << 20  # CYCLE * 2^20 * ONE still fits 64 unsigned bits


def largest_remainder(total: int, shares: Sequence[int]) -> np.ndarray:
    """`total` split in proportion to integer `shares`, exactly; (N,) int64 with that sum.

    Ties go to the earlier task.
    """
    denominator = sum(shares)
    quotas = [divmod(total * share, denominator) for share in shares]
    parts = np.array([floor for floor, _ in quotas], dtype=np.int64)

    by_remainder = sorted(range(len(shares)), key=lambda task: -quotas[task][1])
    parts[by_remainder[: total - int(parts.sum())]] += 1
    return parts


def quantise(rates_N: np.ndarray) -> np.ndarray:
    """Rates > 0 with sum 1 as int64 with sum ONE, none below 1.

    They are off by less than 2^-40 except where raised to 1.
    """
    exact_N = rates_N * ONE
    share_N = np.maximum(np.floor(exact_N).astype(np.int64), 1)
    missing = ONE - int(share_N.sum())
    if missing >= 0:
        share_N[np.argsort(share_N - exact_N, kind="stable")[:missing]] += 1
    # What raising to 1 took, or float error in the rates' sum.
    share_N[np.argmax(share_N)] += ONE - int(share_N.sum())
    return share_N


@dataclass(frozen=True, kw_only=True)
class Apportionment:
    """Constant rates: `share_N` (N,) int64 with sum ONE, and `units_per_step` = U.

    U is at most MAX_UNITS_PER_STEP.
    """

    share_N: np.ndarray
    units_per_step: int

    def drawn(self, first_cycle: int, num_steps: int) -> np.ndarray:
        """(N,) int64 units of each task in the `num_steps` steps from the start of a cycle.

        O(N log cycles).
        """
        num_cycles, rest = divmod(num_steps, CYCLE)
        end = first_cycle + num_cycles
        whole_N = self._base_N * num_cycles + self._extras_before(end) - self._extras_before(first_cycle)
        return whole_N + self._first_steps(end, rest) if rest else whole_N

    def counts_of(self, task: int, first_cycle: int, num_cycles: int) -> np.ndarray:
        """(num_cycles * CYCLE,) int64: units of one task in each step of these cycles."""
        count_CP = np.tile(np.diff(self._base_up_to_step[:, task]), (num_cycles, 1))

        # As in _first_steps, for one task and many cycles.
        start_N, end_N = self._interval_N
        offset_C = _van_der_corput_of(np.arange(first_cycle, first_cycle + num_cycles))
        first_point_C = (start_N[task] - offset_C + ONE - 1) >> _BITS
        past_point_C = (end_N[task] - offset_C + ONE - 1) >> _BITS
        with_extra = np.flatnonzero(past_point_C > first_point_C)
        count_CP[with_extra, first_point_C[with_extra] // self.units_per_step] += 1
        return count_CP.reshape(-1)

    @cached_property
    def _owed_N(self) -> np.ndarray:
        return np.uint64(CYCLE * self.units_per_step) * self.share_N.astype(np.uint64)  # below 2^64

    @cached_property
    def _base_N(self) -> np.ndarray:
        return (self._owed_N >> np.uint64(_BITS)).astype(np.int64)

    @cached_property
    def _interval_N(self) -> tuple[np.ndarray, np.ndarray]:
        """[start, end) of each task on the line, int64 in units of 1/ONE."""
        fraction_N = (self._owed_N & np.uint64(ONE - 1)).astype(np.int64)
        order = _line_order(fraction_N, self.units_per_step)
        start_N = np.empty_like(fraction_N)
        start_N[order] = np.cumsum(fraction_N[order]) - fraction_N[order]
        return start_N, start_N + fraction_N

    @cached_property
    def _base_up_to_step(self) -> np.ndarray:
        """(CYCLE + 1, N) int64: base units in the first 0 .. CYCLE steps of any cycle.

        Built once: it sorts CYCLE * U units.
        """
        base_N = self._base_N
        num_extras = CYCLE * self.units_per_step - int(base_N.sum())
        # U = 4, F = 6: extras take 4, 2, 0, 0, ... places of the steps, base units the other 0, 2, 4, 4, ...
        taken = np.minimum(np.arange(CYCLE + 1) * self.units_per_step, num_extras)
        cuts = np.arange(CYCLE + 1) * self.units_per_step - taken

        task_of_unit = np.repeat(np.arange(base_N.size), base_N)
        number_in_task = np.arange(task_of_unit.size) - np.repeat(np.cumsum(base_N) - base_N, base_N)
        # Time, rounded down to 2^-38, and task in one integer: with 655,360 units this halves the time of a
        # stable argsort.
        time_of_unit = ((number_in_task + 0.5) / base_N[task_of_unit] * 2.0**38).astype(np.int64)
        by_time = np.sort(time_of_unit * base_N.size + task_of_unit) % base_N.size

        per_step = [np.bincount(by_time[cuts[i] : cuts[i + 1]], minlength=base_N.size) for i in range(CYCLE)]
        return np.concatenate((np.zeros((1, base_N.size), np.int64), np.cumsum(per_step, axis=0)))

    def _first_steps(self, cycle: int, num_steps: int) -> np.ndarray:
        """(N,) units in the first `num_steps` < CYCLE steps of `cycle`."""
        offset = _van_der_corput(cycle)
        # Points below x: ceil((x - offset) / ONE). A task's interval is shorter than ONE, so it holds one
        # point or none.
        first_point_N, past_point_N = ((edge_N - offset + ONE - 1) >> _BITS for edge_N in self._interval_N)
        has_extra_N = (past_point_N > first_point_N) & (first_point_N < num_steps * self.units_per_step)
        return self._base_up_to_step[num_steps] + has_extra_N

    def _extras_before(self, cycle: int) -> np.ndarray:
        """(N,) int64 extras of each task in cycles 0 .. cycle-1."""
        start_N, end_N = self._interval_N
        return _points_below(end_N, cycle) - _points_below(start_N, cycle)


def _van_der_corput(index: int) -> int:
    """The 40 bits of `index` in reverse order: 0, 1/2, 1/4, 3/4, 1/8, ... of ONE."""
    assert index < ONE
    return int(f"{index:0{_BITS}b}"[::-1], 2)


def _van_der_corput_of(index_C: np.ndarray) -> np.ndarray:
    """The same of many indices, (C,) int64."""
    value_C = np.zeros_like(index_C)
    for bit in range(_BITS):
        value_C |= (index_C >> bit & 1) << (_BITS - 1 - bit)
    return value_C


def _points_below(edge_N: np.ndarray, num_cycles: int) -> np.ndarray:
    """How many points (j, m), m < num_cycles, j >= 0, lie below each edge: j ONE + u(m) < edge. (N,) int64.

    The j with (j + 1) ONE <= edge count for every cycle. The rest is #{m < num_cycles: u(m) < z}, z = edge
    mod ONE, taken one binary digit of num_cycles at a time: 6 = 0b110 is cycles 0..3 and 4..5, and in an
    aligned block of 2^i cycles u takes the values r + q ONE / 2^i, q = 0 .. 2^i - 1, with r = u(first cycle
    of the block); ceil((z - r) 2^i / ONE) of them lie below z.
    """
    z_N = edge_N & (ONE - 1)
    count_N = (edge_N >> _BITS) * num_cycles
    for digit in range(num_cycles.bit_length()):
        if num_cycles >> digit & 1:
            first_cycle = num_cycles >> (digit + 1) << (digit + 1)
            spacing = ONE >> digit
            count_N = count_N + ((z_N - _van_der_corput(first_cycle) + spacing - 1) >> (_BITS - digit))
    return count_N


def _line_order(fraction_N: np.ndarray, units_per_step: int) -> np.ndarray:
    """Order of the tasks on the line: that of the recipe if F <= U.

    Else it lays tasks with f <= 1/2 astride the cuts. Towards each cut go the largest tasks with f > 1/2 that
    still end before it, then, largest first so that few are used up, tasks with f <= 1/2 until one reaches or
    crosses it; without any left, the smallest task with f > 1/2 crosses.
    """
    cut = step = units_per_step * ONE
    if int(fraction_N.sum()) <= step:
        return np.arange(fraction_N.size)

    ascending = np.argsort(fraction_N, kind="stable").tolist()
    fraction = fraction_N.tolist()
    small = [task for task in ascending if fraction[task] <= ONE // 2]
    large = [task for task in ascending if fraction[task] > ONE // 2]

    order: list[int] = []
    end = 0
    while small or large:
        gap = cut - end
        fitting = _count_at_most(large, fraction, gap)
        if fitting:
            task = large.pop(fitting - 1)
        elif small:
            task = small.pop()
        else:
            task = large.pop(0)

        order.append(task)
        end += fraction[task]
        if end >= cut:
            cut += step
    return np.array(order)


def _count_at_most(ascending: list[int], fraction: list[int], limit: int) -> int:
    """How many tasks of `ascending` (by fraction) have a fraction <= limit; by bisection."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if fraction[ascending[middle]] <= limit:
            low = middle + 1
        else:
            high = middle
    return low
