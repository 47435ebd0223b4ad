"""Soft sharing's view of a micro-batch: what each copy of the encoder reads. Gathers and orders nothing.

Worked example: two copies, sequences of lengths 3, 5 (copy 0) and 4 (copy 1) end to end: copy 0 reads tokens
0..7 with cu_seqlens [0, 3, 8], copy 1 tokens 8..11 with [0, 4].

Shape legend: S sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.batch.groups import GroupCosts, attention_groups


def parts_of_copies(batch: PackedBatch, copy_S: np.ndarray, costs: GroupCosts) -> tuple[PackedBatch, ...]:
    """The sequences of each copy as a micro-batch without targets.

    `copy_S` rises from 0 and leaves no copy out.
    """
    cu_seqlens = batch.cu_seqlens.numpy()
    firsts = np.flatnonzero(np.diff(copy_S, prepend=-1))

    parts = []
    for first, end in zip(firsts, [*firsts[1:], len(copy_S)], strict=True):
        tokens = slice(int(cu_seqlens[first]), int(cu_seqlens[end]))
        lengths = np.diff(cu_seqlens[first : end + 1])
        groups, packed_to_padded = attention_groups(lengths, costs)
        own = batch.sequence_examples[first:end]

        parts.append(
            replace(
                batch,
                input_ids=batch.input_ids[tokens],
                token_type_ids=batch.token_type_ids[tokens],
                position_ids=batch.position_ids[tokens],
                cu_seqlens=batch.cu_seqlens[first : end + 1] - batch.cu_seqlens[first],
                max_seqlen=int(lengths.max()),
                attention_groups=groups,
                packed_to_padded=packed_to_padded,
                targets={},
                unit_counts=np.zeros_like(batch.unit_counts),
                sequence_examples=own,
                sequence_keys=None,  # the whole batch's are read
                num_tokens=int(lengths[own >= 0].sum()),
            )
        )
    return tuple(parts)
