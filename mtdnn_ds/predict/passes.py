"""Passes of the encoder: all views' sequences in micro-batches, outputs of every term. Makes no answers.

The sequences are sorted by length and cut where the token budget is full, so that attention pads next to
nothing; every head then reads the same hidden states. An example that is longer than the budget has a
micro-batch of its own.

Shape legend: B examples of all sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.batch.groups import GroupCosts
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.examples import TermOutputs
from mtdnn_ds.predict.sets import SetOfView
from mtdnn_ds.runs.evaluate import RowsOfTerms, add_rows, by_example
from mtdnn_ds.runs.readback import Readback, waiting_bytes
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.sharing import Sharing


def lanes_of(num_tasks: int, sharing: Sharing) -> tuple[int, ...]:
    """Which encoder each task's sequences run through: its copy, or its group's low-rank change."""
    return sharing.group_of_task or (0,) * num_tasks


def lane_layout(layout: HeadLayout, lanes: Sequence[int]) -> HeadLayout:
    """The same terms, owned by lanes instead of tasks: a sequence may have rows of several tasks' terms."""
    names = tuple(f"lane {lane}" for lane in range(max(lanes) + 1))
    terms = tuple(replace(term, task=lanes[term.task]) for term in layout.terms)
    return HeadLayout(task_names=names, terms=terms)


def lane_sharing(sharing: Sharing) -> Sharing:
    """Each lane is its own group."""
    if sharing.mode == "hard":
        return sharing
    return replace(sharing, group_of_task=tuple(range(len(sharing.groups))))


def micro_batches(
    sets: Sequence[SetOfView],
    layout: HeadLayout,
    lanes: Sequence[int],
    sharing: Sharing,
    *,
    filler_ids: np.ndarray,
    max_tokens: int,
    group_costs: GroupCosts,
) -> Iterator[PackedBatch]:
    """Every example of every set once; in a batch, `example_tasks` holds the number of the set."""
    sizes = [part.num_examples for part in sets]
    index_B = np.repeat(np.arange(len(sets)), sizes)
    examples_B = np.concatenate([np.arange(size) for size in sizes])
    lengths_B = np.concatenate([part.lengths for part in sets]).astype(np.int64)

    order = np.argsort(lengths_B, kind="stable")
    own_layout, own_sharing = lane_layout(layout, lanes), lane_sharing(sharing)
    for members in _cut(order, lengths_B, max_tokens):
        yield collate(
            index_B[members],
            examples_B[members],
            np.zeros(len(members), dtype=np.int64),
            ExampleSets(
                examples=sets,
                tasks=[part.view.lane for part in sets],
                layout=own_layout,
                filler_ids=filler_ids,
                sharing=own_sharing,
                group_costs=group_costs,
            ),
        )


def _cut(order: np.ndarray, lengths_B: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """`order` in stretches of at most `max_tokens` tokens: of 10, lengths 2, 3, 4, 5 give [0, 1, 2], [3]."""
    ends = np.cumsum(lengths_B[order])
    first = done = 0
    while first < len(order):
        end = max(int(np.searchsorted(ends, done + max_tokens, side="right")), first + 1)
        yield order[first:end]
        first, done = end, int(ends[end - 1])


def run_passes(
    model: Any,
    batches: Iterator[PackedBatch],
    sets: Sequence[SetOfView],
    layout: HeadLayout,
    device: torch.device,
) -> dict[tuple[int, int], TermOutputs]:
    """The outputs of every term of every set: (set, term id) -> rows by example.

    They come to the host together, after the last micro-batch, or earlier where they are many
    (runs/readback.py). `model` is in evaluation mode.
    """
    found: RowsOfTerms = {}
    readback = Readback(most_bytes=waiting_bytes(device))
    with torch.inference_mode():
        for batch in batches:
            add_rows(found, batch, model(batch.to(device)), layout, readback)
        readback.read()

    return {
        (index, term_id): by_example(
            found.get((index, term_id), []), layout.terms[term_id], part.num_examples
        )
        for index, part in enumerate(sets)
        for task in part.view.tasks
        for term_id in layout.terms_of(task)
    }
