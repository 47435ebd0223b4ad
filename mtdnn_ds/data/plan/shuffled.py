"""ShuffledSteps: whole steps of the tasks in random order, for mixing=per_step. Not which rows they hold.

Algorithm 1 of MT-DNN (Liu et al. 2019) shuffles the mini-batches of all tasks in each epoch. Here the run is
cut into blocks of as many steps as an epoch over all tasks has. A block holds exactly the steps of each task
that stratified.py draws in it, and permutation.py, keyed by the seed and the block's number, says their
order. So after each block the shares are as exact as those of the stratified order, and which task a step is
of can be said at any time from its number alone: nothing is saved.

The last block ends with the run, so that the run's totals are exact too. Had it its full length, a run of
less than an epoch would draw its steps from it like lots, and a task of a hundredth of the steps could have
twice its share. The price is that steps of the last block depend on `total_steps`.
"""

from __future__ import annotations

import numpy as np

from mtdnn_ds.counter_hash import stream_of
from mtdnn_ds.data.plan.apportion import CYCLE
from mtdnn_ds.data.plan.permutation import permute
from mtdnn_ds.data.plan.stratified import StratifiedUnits

MAX_BLOCK_STEPS = 65_536  # memory: 4 bytes a step of one block
_STREAM = stream_of("mixture.order")  # no task's: a task's name has no dot


class ShuffledSteps:
    """The steps of `stratified`, whose units are steps, in random order in blocks of `epoch_steps` steps, at
    least CYCLE and at most MAX_BLOCK_STEPS.

    The last block that was asked for is kept.
    """

    def __init__(
        self, stratified: StratifiedUnits, *, num_tasks: int, epoch_steps: int, seed: int, total_steps: int
    ) -> None:
        self.block_steps = min(max(epoch_steps, CYCLE), MAX_BLOCK_STEPS)
        self._stratified = stratified
        self._num_tasks = num_tasks
        self._seed = seed
        self._total_steps = total_steps
        self._kept: tuple[int, np.ndarray] | None = None  # one attribute: threads may ask together

    def drawn(self, k: int) -> np.ndarray:
        """(N,) int64: steps of each task among the steps 1..k."""
        assert k <= self._total_steps, f"step {k} of a shuffled plan of {self._total_steps} steps"
        block, place = divmod(k, self.block_steps)
        if place == 0 or k == self._total_steps:
            return self._stratified.drawn(k)

        tasks = self._tasks_of(block)[:place]
        return self._stratified.drawn(k - place) + np.bincount(tasks, minlength=self._num_tasks)

    def counts_of(self, task: int, begin: int, end: int) -> np.ndarray:
        """(end - begin,) int64: 1 where a step is the task's, of the steps begin+1 .. end."""
        parts = [np.zeros(0, dtype=np.int64)]
        for block in range(begin // self.block_steps, -(-end // self.block_steps)):
            before = block * self.block_steps
            tasks = self._tasks_of(block)[max(begin - before, 0) : end - before]
            parts.append((tasks == task).astype(np.int64))
        return np.concatenate(parts)

    def _tasks_of(self, block: int) -> np.ndarray:
        """(steps of the block,) int32: whose each step is."""
        kept = self._kept
        if kept is not None and kept[0] == block:
            return kept[1]

        begin = block * self.block_steps
        end = min(begin + self.block_steps, self._total_steps)
        stratified = np.empty(end - begin, dtype=np.int32)
        for task in range(self._num_tasks):
            stratified[self._stratified.counts_of(task, begin, end) > 0] = task

        places = np.arange(end - begin)
        order = permute(places, size=end - begin, seed=self._seed, epoch=block, stream=_STREAM)
        tasks = stratified[order]
        self._kept = (block, tasks)
        return tasks
