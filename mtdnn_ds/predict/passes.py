"""Passes of the encoder: the sequences of all views in micro-batches of similar length, the outputs of every asked term by set. No answers.

The sequences are sorted by length and cut where the token budget is full, so that attention pads next to nothing; every head then reads
the same hidden states. An example that is longer than the budget has a micro-batch of its own.

Shape legend: B examples of all sets, K rows of a term, C its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.data.batches.collate import collate
from mtdnn_ds.data.examples import TermOutputs
from mtdnn_ds.losses.forms import read_out
from mtdnn_ds.predict.sets import SetOfView
from mtdnn_ds.tasks.layout import HeadLayout, Term
from mtdnn_ds.tasks.sharing import Sharing


def lanes_of(num_tasks: int, sharing: Sharing) -> tuple[int, ...]:
    """Which encoder each task's sequences run through: its copy, or its group's low-rank change."""
    return sharing.group_of_task or (0,) * num_tasks


def lane_layout(layout: HeadLayout, lanes: Sequence[int]) -> HeadLayout:
    """The same terms, owned by lanes instead of tasks: a sequence then may have rows of the terms of several tasks."""
    terms = tuple(replace(term, task=lanes[term.task]) for term in layout.terms)
    return HeadLayout(task_names=tuple(f"lane {lane}" for lane in range(max(lanes) + 1)), terms=terms)


def lane_sharing(sharing: Sharing) -> Sharing:
    """Each lane is its own group."""
    return (
        replace(sharing, group_of_task=tuple(range(len(sharing.groups))))
        if sharing.mode != "hard"
        else sharing
    )


def micro_batches(
    sets: Sequence[SetOfView],
    layout: HeadLayout,
    lanes: Sequence[int],
    sharing: Sharing,
    *,
    filler_ids: np.ndarray,
    max_tokens: int,
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
            sets,
            layout=own_layout,
            tasks=[part.view.lane for part in sets],
            filler_ids=filler_ids,
            sharing=own_sharing,
        )


def _cut(order: np.ndarray, lengths_B: np.ndarray, max_tokens: int) -> Iterator[np.ndarray]:
    """`order` in stretches of at most `max_tokens` tokens: lengths 2, 3, 4 and 5 tokens give [0, 1], [2]."""
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
    """The outputs of every term of every set: (set, term id) -> rows by example. `model` is in evaluation mode."""
    found: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    with torch.inference_mode():
        for batch in batches:
            outputs = model(batch.to(device))
            for form, targets in batch.targets.items():
                if not targets.num_rows:
                    continue
                values = read_out(form, outputs[form]).float().cpu().numpy()
                term_ids = targets.term_ids.numpy()
                places_K = targets.examples[targets.groups.numpy()]
                sets_K, examples_K = batch.example_tasks[places_K], batch.example_rows[places_K]
                for term_id in np.unique(term_ids).tolist():
                    columns = _columns(layout.terms[term_id])
                    for index in np.unique(sets_K[term_ids == term_id]).tolist():
                        own = (term_ids == term_id) & (sets_K == index)
                        found.setdefault((index, term_id), []).append((values[own, columns], examples_K[own]))
    return {
        (index, term_id): _by_example(
            found.get((index, term_id), []), part.num_examples, layout.terms[term_id]
        )
        for index, part in enumerate(sets)
        for task in part.view.tasks
        for term_id in layout.terms_of(task)
    }


def _columns(term: Term) -> slice:
    return slice(term.first_column, term.first_column + term.num_outputs) if term.num_outputs else slice(None)


def _by_example(parts: Sequence[tuple[np.ndarray, np.ndarray]], num_examples: int, term: Term) -> TermOutputs:
    examples_K = np.concatenate([np.zeros(0, dtype=np.int64), *(examples for _, examples in parts)])
    values = (
        np.concatenate([of_part for of_part, _ in parts])
        if parts
        else np.zeros((0, max(term.num_outputs, 1)), dtype=np.float32)
    )
    counts = np.bincount(examples_K, minlength=num_examples)
    return TermOutputs(
        values=values[np.argsort(examples_K, kind="stable")],
        labels=np.full(len(values), np.nan, dtype=np.float32),
        offsets=np.concatenate(([0], np.cumsum(counts))),
    )
