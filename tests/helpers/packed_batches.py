"""A packed micro-batch of random tokens in given lengths. Not a test file."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from mtdnn_ds.batch.groups import CPU_COSTS, GroupCosts, attention_groups
from mtdnn_ds.batch.packed import PackedBatch, Targets


def packed_batch(
    lengths: list[int], *, one_group_each: bool = False, vocabulary: int = 50, rows: list[int] | None = None
) -> PackedBatch:
    """Random tokens (never id 0 or 1) in ascending lengths;
    with `one_group_each`, every distinct length is a group.

    Of the sequences in `rows` (all of them),
    even ones are classified by term 0 and odd ones scored by term 1.
    """
    lengths_S = np.array(lengths)
    groups, packed_to_padded = attention_groups(
        lengths_S, GroupCosts(token_pairs=64, overhead_pairs=0) if one_group_each else CPU_COSTS
    )
    ids = torch.randint(2, vocabulary, (sum(lengths),), generator=torch.Generator().manual_seed(len(lengths)))
    rows = list(range(len(lengths))) if rows is None else rows

    def targets_of(own: list[int], term: int) -> Targets:
        every = torch.arange(len(own))
        return Targets(
            rows=torch.tensor(own, dtype=torch.int64),
            term_ids=torch.full((len(own),), term),
            labels=torch.zeros(len(own)),
            groups=every,
            examples=np.array(own, dtype=np.int64),
        )

    return PackedBatch(
        input_ids=ids,
        token_type_ids=ids % 2,
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        max_seqlen=max(lengths),
        attention_groups=groups,
        packed_to_padded=packed_to_padded,
        targets={
            "class": targets_of([row for row in rows if row % 2 == 0], 0),
            "score": targets_of([row for row in rows if row % 2], 1),
        },
        unit_counts=np.zeros(2),
        example_tasks=np.zeros(len(lengths), dtype=np.int64),
        example_rows=np.arange(len(lengths)),
        sequence_examples=np.arange(len(lengths)),
        num_tokens=sum(lengths),
    )
