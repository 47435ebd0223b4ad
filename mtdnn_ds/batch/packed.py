"""PackedBatch: one micro-batch of one rank, without padding. Records and moves; not how examples are chosen or gathered.

Shape legend: T packed tokens, S sequences, K supervised rows, L longest sequence of a group, N number of tasks of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionGroup:
    """Sequences of similar length that attention re-pads together.

    Example: tokens 0..4 hold sequences [0,1] and [2,3,4]; one group of both with L=3 has
    padded_to_packed = [[0, 1, 5], [2, 3, 4]] (5 = T, a zero row) and key_mask = [[T, T, F], [T, T, T]].
    """

    padded_to_packed: Tensor  # (S_g, L) int64, index into T, or T where padded
    key_mask: Tensor | None  # (S_g, 1, 1, L) bool, True = real token; None where nothing is padded


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceTargets:
    """What the sequence-level heads are to predict. K may be 0; K <= S."""

    rows: Tensor  # (K,) int64, index into S
    task_ids: Tensor  # (K,) int64, index into the run's tasks
    labels: Tensor  # (K,) float32, class id or score; NaN where unknown (prediction)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """One micro-batch. Every rank's batch runs every head, with K = 0 rows if need be.

    A rank that has no examples left for a micro-batch gets one filler sequence that no target refers to, so that
    every parameter stays in every graph; `num_tokens` counts real tokens only.
    """

    input_ids: Tensor  # (T,) int64
    token_type_ids: Tensor  # (T,) int64
    position_ids: Tensor  # (T,) int64, from 0 in each sequence
    cu_seqlens: Tensor  # (S+1,) int32
    max_seqlen: int
    attention_groups: tuple[AttentionGroup, ...]  # in packed order of their sequences; cover every sequence once
    packed_to_padded: Tensor  # (T,) int64, index into the groups' padded rows laid end to end
    sequence: SequenceTargets
    loss_coefficients: Tensor  # (N,) float32, w_t / N_t of this step for each task; 0 for tasks not in the step
    example_tasks: np.ndarray  # (S,) int64 on the host, -1 for a filler
    example_rows: np.ndarray  # (S,) int64 on the host, row of the prepared split
    num_tokens: int  # real tokens, without fillers

    @property
    def num_sequences(self) -> int:
        return int(self.cu_seqlens.numel()) - 1

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on `device`; asynchronous where the source is pinned."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def with_task_ids(self, task_of: np.ndarray) -> PackedBatch:
        """The same batch with every supervised row's task id t replaced by `task_of[t]`."""
        task_ids = torch.from_numpy(task_of)[self.sequence.task_ids]
        return replace(self, sequence=replace(self.sequence, task_ids=task_ids))

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory (CUDA only)."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())


def _map_tensors(record: Any, function: Any) -> Any:
    changed: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, (AttentionGroup, SequenceTargets)):
            changed[field.name] = _map_tensors(value, function)
        elif isinstance(value, tuple):
            changed[field.name] = tuple(_map_tensors(item, function) for item in value)
    return replace(record, **changed)
