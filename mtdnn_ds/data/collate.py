"""Examples -> PackedBatch: gathers tokens from the prepared splits and lays sequences end to end, shortest first. Chooses nothing.

Worked example: rows of lengths 5, 3, 4 are laid out as lengths 3, 4, 5 with cu_seqlens [0, 3, 7, 12] and
position_ids 0 1 2 | 0 1 2 3 | 0 1 2 3 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mtdnn_ds.batch import PackedBatch, SequenceTargets
from mtdnn_ds.batch.groups import attention_groups
from mtdnn_ds.data.cache import PreparedSplit

FILLER_TASK = -1


def collate(
    task_ids_S: np.ndarray,
    rows_S: np.ndarray,
    splits: Sequence[PreparedSplit],
    *,
    max_length: int,
    coefficients_N: np.ndarray,
    filler_ids: np.ndarray,
) -> PackedBatch:
    """One micro-batch of the given examples.

    `task_ids_S` index `splits` (the run's tasks), `rows_S` their prepared rows; both may be empty, which gives one filler
    sequence of `filler_ids` that no target refers to. Deterministic.
    """
    if len(task_ids_S) == 0:
        return _pack(
            filler_ids,
            np.zeros_like(filler_ids),
            np.array([len(filler_ids)]),
            np.array([FILLER_TASK]),
            np.array([-1]),
            np.zeros(1, dtype=np.float32),
            coefficients_N,
        )
    tokens, types, lengths, labels, order = [], [], [], [], []
    for task_id in np.unique(task_ids_S):
        members = np.flatnonzero(task_ids_S == task_id)
        split = splits[task_id]
        input_ids, token_type_ids, lengths_of_task = split.gather(rows_S[members], max_length)
        tokens.append(input_ids)
        types.append(token_type_ids)
        lengths.append(lengths_of_task)
        labels.append(split.labels[rows_S[members]])
        order.append(members)
    members_S = np.concatenate(order)
    lengths_S = np.concatenate(lengths).astype(np.int64)
    # Shortest first, so that sequences of similar length are neighbours; ties keep the step's own order.
    shortest_first = np.lexsort((members_S, lengths_S))
    index_T = ragged_index(lengths_S, shortest_first)
    members_S = members_S[shortest_first]
    return _pack(
        np.concatenate(tokens)[index_T],
        np.concatenate(types)[index_T],
        lengths_S[shortest_first],
        task_ids_S[members_S],
        rows_S[members_S],
        np.concatenate(labels)[shortest_first],
        coefficients_N,
    )


def ragged_index(lengths_S: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Index that reorders sequences laid end to end: lengths (2, 3) in order (1, 0) give [2, 3, 4, 0, 1]."""
    starts_S = np.concatenate(([0], np.cumsum(lengths_S)[:-1]))
    new_lengths_S = lengths_S[order]
    new_starts_S = np.concatenate(([0], np.cumsum(new_lengths_S)[:-1]))
    return np.arange(new_lengths_S.sum()) + np.repeat(starts_S[order] - new_starts_S, new_lengths_S)


def _pack(
    input_ids_T: np.ndarray,
    token_type_ids_T: np.ndarray,
    lengths_S: np.ndarray,
    task_ids_S: np.ndarray,
    rows_S: np.ndarray,
    labels_S: np.ndarray,
    coefficients_N: np.ndarray,
) -> PackedBatch:
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths_S)))
    groups, packed_to_padded = attention_groups(lengths_S)
    supervised = np.flatnonzero(task_ids_S != FILLER_TASK)
    return PackedBatch(
        input_ids=torch.from_numpy(np.ascontiguousarray(input_ids_T, dtype=np.int64)),
        token_type_ids=torch.from_numpy(np.ascontiguousarray(token_type_ids_T, dtype=np.int64)),
        position_ids=torch.from_numpy(np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths_S)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths_S.max()),
        attention_groups=groups,
        packed_to_padded=packed_to_padded,
        sequence=SequenceTargets(
            rows=torch.from_numpy(supervised),
            task_ids=torch.from_numpy(task_ids_S[supervised].astype(np.int64)),
            labels=torch.from_numpy(labels_S[supervised].astype(np.float32)),
        ),
        loss_coefficients=torch.from_numpy(np.asarray(coefficients_N, dtype=np.float32)),
        example_tasks=task_ids_S.astype(np.int64),
        example_rows=rows_S.astype(np.int64),
        num_tokens=int(lengths_S[supervised].sum()),
    )
