"""Adaptive loss scales: w_t of each task from the losses of the steps before, or drawn. Not the objective.

Pure NumPy; equal on every rank for equal losses. With n tasks in the step and l_t task t's mean loss in it
(over all ranks), the objective is L = sum_t w_t l_t as in losses/objective.py:

    uncertainty  w_t = exp(-s_t) / n, of a regression exp(-s_t) / 2n. s_t = log sigma_t^2 descends the task's
                 own exp(-s_t) l_t + s_t / 2, of a regression exp(-s_t) l_t / 2 + s_t / 2
                 (Kendall et al. 2018, arXiv:1705.07115, eqs. 5, 10)
    dwa          w = softmax(r / T), r_t = mean of l_t over the last window of steps / over the one before;
                 1 until there are two (Liu et al. 2019, arXiv:1803.10704, eq. 7)
    random       w = softmax of a draw from N(0, 1) for each task
                 (Lin et al. 2022, arXiv:2111.10603, section 3)
    famo         w_t ~ z_t / m_t, z = softmax(xi), both of the step before; m_t is the running mean of l_t.
                 xi descends sum_t z_t (log m_t before - log m_t now)
                 (Liu et al. 2023, arXiv:2306.03792, algorithm 1, with l_t for m_t)

Those of dwa, random and famo sum to 1 in every step, as task_mean's 1 / n do; uncertainty's are task_mean's
while s_t = 0 (half of them for a regression). A task that is not in a step has no weight in it, has no part
in the softmax, and keeps its state.

FAMO measures how much a step improved each loss by a second forward pass on the same examples; here the
running means of successive steps take its place, which costs nothing and lags. They are exponential, over the
task's own steps, and corrected for their start as Adam's are: m_t after k of them is
(1 - b) (l_k + b l_{k-1} + ... + b^{k-1} l_1) / (1 - b^k). The loss of one step is of other examples than the
one before, and w_t is its inverse: a learnt task whose loss happens to be tiny would fill the next step.

Shape legend: N tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mtdnn_ds.config.choices import LOSS_SCALES

# Added to losses that are divided by or whose logarithm is taken; and the L2 decay of xi (gamma). Both as in
# https://github.com/Cranial-XIX/FAMO/blob/250873e/famo.py
TINY = 1e-8
FAMO_DECAY = 0.01
# b: means over about 15 of a task's steps. Noise of single steps falls to sqrt((1 - b) / (1 + b)) = 0.19 of
# it, and a loss of 0 takes a fifteenth off the mean; longer means would lag behind losses that fall fast.
FAMO_MEMORY = 1 - 1 / 15
PURPOSE = 0x726C77  # of random's stream

log = logging.getLogger(__name__)


class AdaptiveScales(Protocol):
    """The state of one choice. Floats all the way: state_dict is JSON, and its round trip is exact."""

    def weights(self, is_present_N: np.ndarray, step: int) -> np.ndarray:
        """w_t of the step about to be done, (N,) float64; 0 for a task that has no example in it."""
        ...

    def observe(self, losses_N: np.ndarray) -> None:
        """Learn from the step's mean losses, NaN for tasks that were not in it."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def adaptive_scales(
    name: str, *, is_regression: Sequence[bool], seed: int, lr: float | None, window: int, temperature: float
) -> AdaptiveScales:
    """The scales of a run.

    `is_regression`: for each task, whether its loss is a squared error. `lr` None: the default of the choice.
    """
    num_tasks = len(is_regression)
    if lr is None:
        lr = LOSS_SCALES[name].default_lr or 0.0

    if name == "uncertainty":
        return UncertaintyScales(np.array(is_regression), lr=lr)
    if name == "dwa":
        return WindowScales(num_tasks, window=window, temperature=temperature)
    if name == "random":
        return RandomScales(num_tasks, seed=seed)
    assert name == "famo", name
    return FamoScales(num_tasks, lr=lr)


class UncertaintyScales:
    """Kendall et al.'s log variances."""

    def __init__(self, is_regression_N: np.ndarray, *, lr: float) -> None:
        self._share_N = np.where(is_regression_N, 0.5, 1.0)
        self._log_variances = _Adam(len(is_regression_N), lr=lr)

    def weights(self, is_present_N: np.ndarray, step: int) -> np.ndarray:
        return np.where(is_present_N, self._factors(), 0.0) / max(int(is_present_N.sum()), 1)

    def observe(self, losses_N: np.ndarray) -> None:
        # d/ds (share exp(-s) l + s / 2); each task's own term, whatever else is in the step.
        self._log_variances.descend(0.5 - self._factors() * losses_N)

    def _factors(self) -> np.ndarray:
        return self._share_N * np.exp(-self._log_variances.values_N)

    def state_dict(self) -> dict[str, Any]:
        return self._log_variances.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._log_variances.load_state_dict(state)


class WindowScales:
    """Dynamic weight average over windows of steps."""

    def __init__(self, num_tasks: int, *, window: int, temperature: float) -> None:
        self._window, self._temperature = window, temperature
        self._num_steps = 0  # of the window that is not yet full
        self._sums_N, self._counts_N = np.zeros(num_tasks), np.zeros(num_tasks)
        self._last_N, self._before_N = np.full(num_tasks, np.nan), np.full(num_tasks, np.nan)

    def weights(self, is_present_N: np.ndarray, step: int) -> np.ndarray:
        ratio_N = (self._last_N + TINY) / (self._before_N + TINY)
        return _softmax(np.where(np.isnan(ratio_N), 1.0, ratio_N) / self._temperature, is_present_N)

    def observe(self, losses_N: np.ndarray) -> None:
        self._sums_N += np.nan_to_num(losses_N, nan=0.0)
        self._counts_N += ~np.isnan(losses_N)
        self._num_steps += 1
        if self._num_steps < self._window:
            return

        # The window is full: its means become the last ones. A task without a step in it keeps those it has.
        is_present_N = self._counts_N > 0
        self._before_N = np.where(is_present_N, self._last_N, self._before_N)
        self._last_N = np.where(is_present_N, self._sums_N / np.maximum(self._counts_N, 1), self._last_N)

        self._num_steps = 0
        self._sums_N, self._counts_N = np.zeros_like(self._sums_N), np.zeros_like(self._counts_N)

    def state_dict(self) -> dict[str, Any]:
        arrays = {
            "sums": self._sums_N,
            "counts": self._counts_N,
            "last": self._last_N,
            "before": self._before_N,
        }
        return {"num_steps": self._num_steps, **{name: _plain(values) for name, values in arrays.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._num_steps = state["num_steps"]
        self._sums_N = _array(state["sums"])
        self._counts_N = _array(state["counts"])
        self._last_N = _array(state["last"])
        self._before_N = _array(state["before"])


class RandomScales:
    """Random loss weighting, from (seed, step) alone: it has no state."""

    def __init__(self, num_tasks: int, *, seed: int) -> None:
        self._num_tasks, self._seed = num_tasks, seed

    def weights(self, is_present_N: np.ndarray, step: int) -> np.ndarray:
        generator = np.random.default_rng([self._seed, PURPOSE, step])
        return _softmax(generator.standard_normal(self._num_tasks), is_present_N)

    def observe(self, losses_N: np.ndarray) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class FamoScales:
    """Fast adaptive multitask optimization, with running means of the losses of successive steps."""

    def __init__(self, num_tasks: int, *, lr: float) -> None:
        self._logits = _Adam(num_tasks, lr=lr, decay=FAMO_DECAY)
        self._sums_N = np.zeros(num_tasks)  # (1 - b) sum_i b^(k-i) l_i over each task's own steps
        self._steps_N = np.zeros(num_tasks)  # k

    def weights(self, is_present_N: np.ndarray, step: int) -> np.ndarray:
        inverse_N = 1.0 / (self._means() + TINY)
        known_N = is_present_N & ~np.isnan(inverse_N)

        # A task without a loss yet counts as the mean of those that have one; without any, all are equal.
        substitute = inverse_N[known_N].mean() if known_N.any() else 1.0
        inverse_N = np.where(np.isnan(inverse_N), substitute, inverse_N)

        raw_N = _softmax(self._logits.values_N, is_present_N) * inverse_N
        return raw_N / max(raw_N.sum(), np.finfo(np.float64).tiny)

    def observe(self, losses_N: np.ndarray) -> None:
        is_present_N = ~np.isnan(losses_N)
        before_N = self._means()
        sums_N = FAMO_MEMORY * self._sums_N + (1 - FAMO_MEMORY) * losses_N
        self._sums_N = np.where(is_present_N, sums_N, self._sums_N)
        self._steps_N += is_present_N

        # Only of a task that was in this step and in one before.
        improved_N = np.log(before_N + TINY) - np.log(self._means() + TINY)
        improved_N = np.where(is_present_N, improved_N, np.nan)
        shares_N = _softmax(self._logits.values_N, ~np.isnan(improved_N))

        # d/dxi_t of sum_u softmax(xi)_u improved_u = z_t (improved_t - sum_u z_u improved_u)
        self._logits.descend(shares_N * (improved_N - shares_N @ np.nan_to_num(improved_N, nan=0.0)))

    def _means(self) -> np.ndarray:
        """m_t, NaN for a task that has not been in a step."""
        weights_N = np.where(self._steps_N > 0, 1 - FAMO_MEMORY**self._steps_N, np.nan)
        return self._sums_N / weights_N

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._logits.state_dict(),
            "loss_sums": _plain(self._sums_N),
            "loss_steps": _plain(self._steps_N),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._logits.load_state_dict(state)
        if "losses" in state:  # of a version that kept each task's last loss alone
            log.info(
                "loss.scale=famo: this checkpoint has the last loss of each task; its mean begins with it"
            )
            last_N = _array(state["losses"])
            self._steps_N = (~np.isnan(last_N)).astype(np.float64)
            self._sums_N = (1 - FAMO_MEMORY) * np.nan_to_num(last_N, nan=0.0)
            return
        self._sums_N = _array(state["loss_sums"])
        self._steps_N = _array(state["loss_steps"])


class _Adam:
    """torch.optim.Adam for one number of each task, 0 at first; a NaN gradient leaves it as it is."""

    def __init__(self, num_tasks: int, *, lr: float, decay: float = 0.0) -> None:
        self._lr, self._decay = lr, decay
        self.values_N = np.zeros(num_tasks)
        self._first_N = np.zeros(num_tasks)
        self._second_N = np.zeros(num_tasks)
        self._steps_N = np.zeros(num_tasks)

    def descend(self, gradient_N: np.ndarray) -> None:
        moves_N = ~np.isnan(gradient_N)
        gradient_N = np.nan_to_num(gradient_N, nan=0.0) + self._decay * self.values_N

        steps_N = self._steps_N + 1
        first_N = 0.9 * self._first_N + 0.1 * gradient_N
        second_N = 0.999 * self._second_N + 0.001 * gradient_N**2
        mean_N, square_N = first_N / (1 - 0.9**steps_N), second_N / (1 - 0.999**steps_N)
        change_N = self._lr * mean_N / (np.sqrt(square_N) + 1e-8)

        self.values_N = np.where(moves_N, self.values_N - change_N, self.values_N)
        self._first_N = np.where(moves_N, first_N, self._first_N)
        self._second_N = np.where(moves_N, second_N, self._second_N)
        self._steps_N = np.where(moves_N, steps_N, self._steps_N)

    def state_dict(self) -> dict[str, Any]:
        arrays = {
            "values": self.values_N,
            "first": self._first_N,
            "second": self._second_N,
            "steps": self._steps_N,
        }
        return {name: _plain(values) for name, values in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values_N = _array(state["values"])
        self._first_N = _array(state["first"])
        self._second_N = _array(state["second"])
        self._steps_N = _array(state["steps"])


def _softmax(values_N: np.ndarray, members_N: np.ndarray) -> np.ndarray:
    """Softmax over the members, 0 elsewhere."""
    if not members_N.any():
        return np.zeros(len(values_N))
    exponentials_N = np.exp(np.where(members_N, values_N - values_N[members_N].max(), -np.inf))
    return exponentials_N / exponentials_N.sum()


def _plain(values_N: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values_N]


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
