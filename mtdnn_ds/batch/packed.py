"""PackedBatch: one micro-batch of one rank, without padding. Records and moves; not how examples are chosen
or gathered.

Shape legend: T packed tokens, S sequences, B examples, K supervised rows, G examples of one form, L longest
sequence of a group, M terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
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
class Targets:
    """What all terms of one form (tasks/layout.py) are to predict. K may be 0.

    Rows of one example are neighbours. Example: two multiple-choice examples of 2 and 3 choices have rows of
    5 sequences, groups [0, 0, 1, 1, 1], labels [0, 1, 1, 0, 0] and examples [their two places in the
    micro-batch].
    """

    rows: Tensor  # (K,) int64, index into S or into T, as the form's head reads
    term_ids: Tensor  # (K,) int64, index into the run's terms
    labels: Tensor  # (K,) float32, what it means is the form's business; NaN where unknown (prediction)
    groups: Tensor  # (K,) int64, from 0, never falling: which of the form's examples a row belongs to
    examples: np.ndarray  # (G,) int64 on the host, index into B
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # (K, ...) each, for forms that need more
    # On the host: rows of each of the run's terms, up to the last that has any. Counted where they are not
    # given, which must be on the host; `to` and `pin_memory` hand them on.
    term_counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not len(self.term_counts) and self.num_rows:
            object.__setattr__(self, "term_counts", np.bincount(self.term_ids.numpy()))

    @property
    def num_rows(self) -> int:
        return int(self.rows.numel())


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """One micro-batch. Every rank's batch runs every head, with K = 0 rows if need be.

    A rank that has no examples left for a micro-batch gets one filler sequence that no target refers to, so
    that every parameter stays in every graph; `num_tokens` counts real tokens only. Where tasks have copies
    of the encoder, the sequences of each copy lie next to each other, a copy without sequences has a filler,
    and `parts` are what the copies read.
    """

    input_ids: Tensor  # (T,) int64
    token_type_ids: Tensor  # (T,) int64
    position_ids: Tensor  # (T,) int64, from 0 in each sequence
    cu_seqlens: Tensor  # (S+1,) int32
    max_seqlen: int
    attention_groups: tuple[
        AttentionGroup, ...
    ]  # in packed order, cover every sequence once; none where there are parts
    packed_to_padded: (
        Tensor  # (T,) int64, index into the groups' padded rows laid end to end; (0,) where there are parts
    )
    targets: Mapping[str, Targets]  # form -> targets; every form of the run, in HeadLayout's order
    unit_counts: np.ndarray  # (M,) float64 on the host: supervised units of each term
    # (B,) int64 on the host, index into the run's tasks (evaluation: into the splits)
    example_tasks: np.ndarray
    example_rows: np.ndarray  # (B,) int64 on the host, example of the split
    sequence_examples: np.ndarray  # (S,) int64 on the host, index into B; -1 for a filler
    num_tokens: int  # real tokens, without fillers
    parts: tuple[
        PackedBatch, ...
    ] = ()  # soft sharing: each copy's sequences, without targets; end to end they are this batch's
    sequence_groups: Tensor | None = (
        None  # low-rank sharing: (S,) int64, group of tasks that each sequence belongs to
    )
    sequence_keys: Tensor | None = (
        None  # (S,) int64: a random number of each sequence, of its example's task, row and epoch alone
    )
    step: int = 0  # of the run, from 1; 0 outside training

    @property
    def num_sequences(self) -> int:
        return int(self.cu_seqlens.numel()) - 1

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on `device`; asynchronous where the source is pinned."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory (CUDA only)."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())


def _map_tensors(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_map_tensors(item, function) for item in value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, (PackedBatch, AttentionGroup, Targets)):
        return replace(
            value, **{each.name: _map_tensors(getattr(value, each.name), function) for each in fields(value)}
        )
    return value
