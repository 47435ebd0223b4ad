"""Loaders: this rank's packed micro-batches of a step (training) or of whole splits (evaluation).

Those of training are made ahead in a background thread (prefetch.py), those of an evaluation if it runs on a
GPU. Steps come from the plan, cuts from packing, tensors from collate; nothing here is random and nothing is
kept but the step number, so a loader can start at any step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.batch.groups import CPU_COSTS, GroupCosts
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.batches.fillers import num_filler_tokens
from mtdnn_ds.data.batches.packing import Packing, pack
from mtdnn_ds.data.batches.prefetch import Prefetch
from mtdnn_ds.data.examples import Examples
from mtdnn_ds.data.plan.task_part import Plan
from mtdnn_ds.data.ragged import places_within
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.sharing import HARD, Sharing

PREFETCHED_STEPS = 2
PREFETCHED_BATCHES = 2  # of an evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatches:
    """Everything one rank needs for one optimizer step."""

    step: int  # 1-based
    micro_batches: tuple[PackedBatch, ...]  # equal number on every rank
    task_counts: np.ndarray  # (N,) examples of each task in the whole step, all ranks
    unit_counts: np.ndarray  # (M,) float64, supervised units of each term in this rank's micro-batches
    tokens: int  # real tokens, all ranks
    sum_squared_lengths: int  # of all examples, all ranks: what attention costs, at most
    # Real tokens / tokens that token-wise layers see, all ranks; below 1 only through fillers.
    padding_efficiency: float
    rank_imbalance: float  # largest rank's cost / mean cost


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSettings:
    """How examples become this rank's micro-batches."""

    rank: int
    world_size: int
    max_tokens_per_micro_batch: int
    hidden_size: int  # of the encoder, for the cost of attention
    filler_ids: np.ndarray  # a shortest valid sequence, for an encoder without examples
    sharing: Sharing = HARD
    one_task_per_micro_batch: bool = False
    pad_tokens_to: int = 1  # fillers make a micro-batch's tokens a multiple of this
    group_costs: GroupCosts = CPU_COSTS
    pin_memory: bool = False


class TrainLoader:
    """Steps first_step .. last_step of a plan; iterating waits for each.

    `take_wait_seconds` tells how long its user has waited for data. Must be closed (it is a context manager),
    which ends its thread.
    """

    def __init__(
        self,
        plan: Plan,
        sets: Sequence[Examples],
        layout: HeadLayout,
        settings: LoaderSettings,
        *,
        first_step: int,
        last_step: int,
    ) -> None:
        self._plan, self._settings = plan, settings
        self._sets = _example_sets(sets, range(len(sets)), layout, settings)
        self._lengths = [examples.lengths for examples in sets]

        steps = (self._batches(step) for step in range(first_step, last_step + 1))
        self._ahead = Prefetch(steps, num_ahead=PREFETCHED_STEPS, name="mtdnn_ds-loader")

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __iter__(self) -> Iterator[StepBatches]:
        return iter(self._ahead)

    def take_wait_seconds(self) -> float:
        """Seconds its user has waited for data since the last call."""
        waited, self._ahead.wait_seconds = self._ahead.wait_seconds, 0.0
        return waited

    def close(self) -> None:
        """End the thread; safe to call twice."""
        self._ahead.close()

    def _batches(self, step: int) -> StepBatches:
        examples = self._plan.step(step)
        settings = self._settings
        lengths_B = example_lengths(examples.task_ids, examples.rows, self._lengths)
        packing = pack_examples(lengths_B, examples.task_ids, settings)

        micro_batches = []
        for members in packing.micro_batches[settings.rank]:
            batch = collate(
                examples.task_ids[members],
                examples.rows[members],
                examples.epochs[members],
                self._sets,
                step=step,
            )
            if settings.pin_memory:
                batch = batch.pin_memory()
            micro_batches.append(batch)

        return StepBatches(
            step=step,
            micro_batches=tuple(micro_batches),
            task_counts=np.bincount(examples.task_ids, minlength=len(self._lengths)),
            unit_counts=np.sum([batch.unit_counts for batch in micro_batches], axis=0),
            tokens=packing.tokens,
            sum_squared_lengths=int((lengths_B**2).sum()),
            padding_efficiency=padding_efficiency(packing, lengths_B, examples.task_ids, settings),
            rank_imbalance=packing.rank_imbalance,
        )


def _example_sets(
    examples: Sequence[Examples], tasks: Sequence[int], layout: HeadLayout, settings: LoaderSettings
) -> ExampleSets:
    return ExampleSets(
        examples=examples,
        tasks=tasks,
        layout=layout,
        filler_ids=settings.filler_ids,
        sharing=settings.sharing,
        pad_tokens_to=settings.pad_tokens_to,
        group_costs=settings.group_costs,
    )


def example_lengths(task_ids_B: np.ndarray, rows_B: np.ndarray, lengths: Sequence[np.ndarray]) -> np.ndarray:
    """Tokens of each example, (B,) int64; `lengths[t]` are those of task t's."""
    lengths_B = np.empty(len(task_ids_B), dtype=np.int64)
    for task_id in np.unique(task_ids_B):
        members = task_ids_B == task_id
        lengths_B[members] = lengths[task_id][rows_B[members]]
    return lengths_B


def pack_examples(lengths_B: np.ndarray, task_ids_B: np.ndarray, settings: LoaderSettings) -> Packing:
    """The cut of some examples into ranks and micro-batches, equal on every rank."""
    return pack(
        lengths_B,
        task_ids_B,
        world_size=settings.world_size,
        max_tokens=settings.max_tokens_per_micro_batch,
        hidden_size=settings.hidden_size,
        one_task_per_micro_batch=settings.one_task_per_micro_batch,
    )


def padding_efficiency(
    packing: Packing, lengths_B: np.ndarray, task_ids_B: np.ndarray, settings: LoaderSettings
) -> float:
    """Real tokens of a step / tokens that token-wise layers see, on all ranks; below 1 through fillers."""
    fillers = num_filler_tokens(
        packing,
        lengths_B,
        task_ids_B,
        settings.sharing,
        filler_size=len(settings.filler_ids),
        pad_tokens_to=settings.pad_tokens_to,
    )
    return packing.tokens / (packing.tokens + fillers)


def evaluation_batches(
    tasks: Sequence[int], sets: Sequence[Examples], layout: HeadLayout, settings: LoaderSettings
) -> Generator[PackedBatch]:
    """Every example of every set exactly once over all ranks, as this rank's micro-batches.

    Their number is equal on all ranks. `sets[i]` belongs to task `tasks[i]`. In a batch, `example_tasks`
    holds i (not the task), so that two splits of one task stay apart. For a GPU they are pinned, and made
    ahead in a thread: whoever may leave before the last one must close the generator, which ends it.
    """
    sizes = np.array([examples.num_examples for examples in sets], dtype=np.int64)
    index_B = np.repeat(np.arange(len(sets), dtype=np.int32), sizes)
    examples_B = places_within(sizes)
    lengths_B = example_lengths(index_B, examples_B, [examples.lengths for examples in sets])

    example_sets = _example_sets(sets, tasks, layout, settings)
    packing = pack_examples(lengths_B, index_B, settings)

    def collated(members: np.ndarray) -> PackedBatch:
        epochs = np.zeros(len(members), dtype=np.int64)
        return collate(index_B[members], examples_B[members], epochs, example_sets)

    batches = map(collated, packing.micro_batches[settings.rank])
    if not settings.pin_memory:
        # The model runs on the CPU: a thread beside it would take the cores, and the interpreter, from it.
        yield from batches
        return

    pinned = (batch.pin_memory() for batch in batches)
    with Prefetch(pinned, num_ahead=PREFETCHED_BATCHES, name="mtdnn_ds-evaluation") as ahead:
        yield from ahead
