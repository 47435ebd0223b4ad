"""Examples -> PackedBatch: gathers their sequences and lays them end to end, shortest first. Chooses nothing.

Worked example: sequences of lengths 5, 3, 4 are laid out as lengths 3, 4, 5 with cu_seqlens [0, 3, 7, 12] and
position_ids 0 1 2 | 0 1 2 3 | 0 1 2 3 4; a target that pointed to token 6 (the second of length 3's) then points to token 1.

Shape legend: B examples, S sequences, T tokens, K supervised rows, M terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mtdnn_ds.batch import PackedBatch, Targets
from mtdnn_ds.batch.groups import attention_groups
from mtdnn_ds.counter_hash import sequence_keys, stream_of
from mtdnn_ds.data.batches.sharing_parts import parts_of_copies
from mtdnn_ds.data.examples import Examples, Gathered
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.sharing import HARD, Sharing


def collate(
    index_B: np.ndarray,
    examples_B: np.ndarray,
    epochs_B: np.ndarray,
    sets: Sequence[Examples],
    *,
    layout: HeadLayout,
    tasks: Sequence[int],
    filler_ids: np.ndarray,
    sharing: Sharing = HARD,
    step: int = 0,
) -> PackedBatch:
    """One micro-batch of the given examples: number `examples_B[b]` of `sets[index_B[b]]`.

    `tasks[i]` is the task that set i belongs to (evaluation has several sets of one task). An encoder without examples (each
    copy, with soft `sharing`) gets one filler sequence of `filler_ids` that no target refers to. Deterministic.
    """
    members_of = {int(index): np.flatnonzero(index_B == index) for index in np.unique(index_B)}
    gathered = {
        index: sets[index].gather(examples_B[members], epochs_B[members])
        for index, members in members_of.items()
    }
    copy_of = {index: sharing.copy_of(tasks[index]) for index in gathered}
    for copy in set(range(sharing.num_copies)) - set(copy_of.values()):
        gathered[-1 - copy], copy_of[-1 - copy] = _filler(filler_ids), copy
    parts = list(gathered.values())
    lengths_S = np.concatenate([part.lengths for part in parts]).astype(np.int64)
    owner_S = np.concatenate(
        [
            members_of[index][part.examples] if index >= 0 else part.examples
            for index, part in gathered.items()
        ]
    )
    index_S = np.repeat(list(gathered), [len(part.lengths) for part in parts])
    copy_S = np.array([copy_of[index] for index in index_S.tolist()])
    # Shortest first, so that sequences of similar length are neighbours; ties keep the step's own order.
    order = np.lexsort((np.arange(len(lengths_S)), owner_S, lengths_S, copy_S))
    index_T = ragged_index(lengths_S, order)
    new_lengths_S = lengths_S[order]
    cu_seqlens = np.concatenate(([0], np.cumsum(new_lengths_S)))
    streams_N = np.array([stream_of(layout.task_names[task]) for task in tasks], dtype=np.uint64)
    targets, unit_counts = _targets(gathered, members_of, tasks, layout, order, index_T)
    groups, packed_to_padded = attention_groups(new_lengths_S) if sharing.mode != "soft" else ((), _int64(()))
    batch = PackedBatch(
        input_ids=_int64(np.concatenate([part.input_ids for part in parts])[index_T]),
        token_type_ids=_int64(np.concatenate([part.token_type_ids for part in parts])[index_T]),
        position_ids=_int64(np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], new_lengths_S)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(new_lengths_S.max()),
        attention_groups=groups,
        packed_to_padded=packed_to_padded,
        targets=targets,
        unit_counts=unit_counts,
        example_tasks=index_B.astype(np.int64),
        example_rows=examples_B.astype(np.int64),
        sequence_examples=owner_S[order],
        num_tokens=int(lengths_S[owner_S >= 0].sum()),
        sequence_groups=_groups(index_S[order], tasks, sharing) if sharing.mode == "low_rank" else None,
        sequence_keys=torch.from_numpy(
            sequence_keys(owner_S[order], streams_N[index_B], examples_B, epochs_B).view(np.int64)
        ),
        step=step,
    )
    return replace(batch, parts=parts_of_copies(batch, copy_S[order])) if sharing.mode == "soft" else batch


def _groups(index_S: np.ndarray, tasks: Sequence[int], sharing: Sharing) -> torch.Tensor:
    """Group of tasks of each sequence; a filler's is the first."""
    return _int64([sharing.group_of_task[tasks[index]] if index >= 0 else 0 for index in index_S.tolist()])


def ragged_index(lengths_S: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Index that reorders sequences laid end to end: lengths (2, 3) in order (1, 0) give [2, 3, 4, 0, 1]."""
    starts_S = np.concatenate(([0], np.cumsum(lengths_S)[:-1]))
    new_lengths_S = lengths_S[order]
    new_starts_S = np.concatenate(([0], np.cumsum(new_lengths_S)[:-1]))
    return np.arange(new_lengths_S.sum()) + np.repeat(starts_S[order] - new_starts_S, new_lengths_S)


def _filler(filler_ids: np.ndarray) -> Gathered:
    return Gathered(
        input_ids=filler_ids,
        token_type_ids=np.zeros_like(filler_ids),
        lengths=np.array([len(filler_ids)]),
        examples=np.array([-1]),
        targets=[],
    )


def _targets(
    gathered: dict[int, Gathered],
    members_of: dict[int, np.ndarray],
    tasks: Sequence[int],
    layout: HeadLayout,
    order: np.ndarray,
    index_T: np.ndarray,
) -> tuple[dict[str, Targets], np.ndarray]:
    """Targets of every form, their rows pointing into the reordered sequences and tokens; and the units of each term."""
    new_sequence, new_token = np.empty_like(order), np.empty_like(index_T)
    new_sequence[order], new_token[index_T] = np.arange(len(order)), np.arange(len(index_T))
    rows: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]] = {
        form: [] for form in layout.forms
    }
    extras: dict[str, list[dict[str, np.ndarray]]] = {form: [] for form in layout.forms}
    unit_counts = np.zeros(len(layout.terms))
    sequences_before = tokens_before = 0
    for index, part in gathered.items():
        for term_id, own in zip(
            layout.terms_of(tasks[index]) if index >= 0 else (), part.targets, strict=True
        ):
            term = layout.terms[term_id]
            moved = (
                new_sequence[own.rows + sequences_before]
                if term.reads == "sequence"
                else new_token[own.rows + tokens_before]
            )
            examples = members_of[index][own.examples]
            rows[term.form].append((moved, np.full(len(moved), term_id), own.labels, examples))
            extras[term.form].append(dict(own.extra))
            unit_counts[term_id] += len(np.unique(examples)) if term.unit == "example" else len(moved)
        sequences_before += len(part.lengths)
        tokens_before += len(part.input_ids)
    return {form: _joined(rows[form], extras[form]) for form in layout.forms}, unit_counts


def _joined(
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]], extras: list[dict[str, np.ndarray]]
) -> Targets:
    """One form's targets of all terms, in the order of the tasks."""
    nothing = np.zeros(0, dtype=np.int64)
    rows, term_ids, labels, examples = (
        np.concatenate([nothing, *columns]) for columns in (zip(*parts, strict=True) if parts else [()] * 4)
    )
    # A group is a run of rows of one term and one example.
    starts = np.flatnonzero((np.diff(term_ids, prepend=-1) != 0) | (np.diff(examples, prepend=-1) != 0))
    groups = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(rows))))
    return Targets(
        rows=_int64(rows),
        term_ids=_int64(term_ids),
        labels=torch.from_numpy(labels.astype(np.float32)),
        groups=_int64(groups),
        examples=examples[starts].astype(np.int64),
        extra={
            name: torch.from_numpy(
                _joined_extra([extra.get(name) for extra in extras], [len(part[0]) for part in parts])
            )
            for name in sorted({name for extra in extras for name in extra})
        },
    )


def _joined_extra(columns: list[np.ndarray | None], num_rows: list[int]) -> np.ndarray:
    """One further column of all terms. What some lack (soft targets of a task without a teacher, of fewer classes) is NaN."""
    given = [column for column in columns if column is not None]
    shape = np.max([column.shape[1:] for column in given], axis=0).astype(int).tolist()
    if len(given) == len(columns) and all(list(column.shape[1:]) == shape for column in given):
        return np.concatenate(given)
    joined = np.full((sum(num_rows), *shape), np.nan, dtype=given[0].dtype)
    ends = np.cumsum(num_rows)
    for column, end in zip(columns, ends, strict=True):
        if column is not None:
            joined[(slice(end - len(column), end), *(slice(0, size) for size in column.shape[1:]))] = column
    return joined


def _int64(values: np.ndarray | Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
