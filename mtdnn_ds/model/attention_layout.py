"""Where the sequences of a packed micro-batch lie, and the way to padded rows and back. Not the attention.

Shape legend: T packed tokens, S sequences, L longest sequence of a group, P padded rows (all groups end to
end).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mtdnn_ds.batch.packed import AttentionGroup, PackedBatch
from mtdnn_ds.config.choices import ATTENTION_BACKENDS
from mtdnn_ds.model.dropout.counter_masks import DropoutKeys
from mtdnn_ds.model.dropout.replayed import Replayed

Backend = str
"""One of config/choices.py's back ends of attention, which attention.py has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionLayout:
    """Where the sequences of one packed micro-batch lie; built once per forward, read by every layer."""

    backend: Backend
    cu_seqlens: Tensor  # (S+1,) int32
    max_seqlen: int
    groups: tuple[AttentionGroup, ...]  # read by grouped and padded only, as is what follows
    padded_to_packed: Tensor  # (P,) int64; T stands for a zero row
    packed_to_padded: Tensor  # (T,) int64, its inverse
    token_groups: Tensor | None  # (T,) int64, low-rank sharing: each token's group of tasks
    running: Replayed | None = None  # counter dropout: counts a module's runs
    dropout_keys: Tensor | None = None  # (P,) int64, counter dropout: keys of the padded rows


def attention_layout(
    batch: PackedBatch, backend: Backend, keys: DropoutKeys | None = None, running: Replayed | None = None
) -> AttentionLayout:
    """The layout of `batch`; never waits for the device. `keys` and `running` are for counter dropout."""
    groups, packed_to_padded = batch.attention_groups, batch.packed_to_padded
    if backend == "padded":
        group, packed_to_padded = padded_group(batch)
        groups = (group,)

    padded_to_packed = batch.packed_to_padded.new_empty(0)  # kernels read no padded rows
    if not ATTENTION_BACKENDS[backend].is_kernel:
        padded_to_packed = torch.cat([group.padded_to_packed.flatten() for group in groups])

    token_groups = None
    if batch.sequence_groups is not None:
        # The output's size is told, because a GPU would have to be waited for to count it.
        lengths_S, num_tokens = batch.cu_seqlens.diff(), batch.input_ids.numel()
        token_groups = batch.sequence_groups.repeat_interleave(lengths_S, output_size=num_tokens)

    layout = AttentionLayout(
        backend=backend,
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        groups=groups,
        padded_to_packed=padded_to_packed,
        packed_to_padded=packed_to_padded,
        token_groups=token_groups,
    )
    if keys is None or not padded_to_packed.numel():
        return layout
    return replace(layout, running=running, dropout_keys=_pad_rows(keys.of_token_T, padded_to_packed))


def padded_group(batch: PackedBatch) -> tuple[AttentionGroup, Tensor]:
    """One group of all sequences padded to the longest, and its packed_to_padded (T,). Never waits."""
    num_tokens = batch.input_ids.numel()
    starts_S, lengths_S = batch.cu_seqlens[:-1].long(), batch.cu_seqlens.diff()

    # Lengths (1, 2): rows ((0, T), (1, 2)), T the zero row; tokens stand in places (0, 2, 3) of the four.
    positions_L = torch.arange(batch.max_seqlen, device=starts_S.device)
    is_token_SL = positions_L < lengths_S[:, None]
    padded_to_packed = torch.where(is_token_SL, starts_S[:, None] + positions_L, num_tokens)
    sequence_T = torch.repeat_interleave(lengths_S, output_size=num_tokens)
    packed_to_padded = sequence_T * batch.max_seqlen + batch.position_ids

    has_padding = num_tokens < is_token_SL.numel()
    key_mask = is_token_SL[:, None, None, :] if has_padding else None
    return AttentionGroup(padded_to_packed=padded_to_packed, key_mask=key_mask), packed_to_padded


def pad(rows: Tensor, layout: AttentionLayout) -> Tensor:
    """(T, ...) -> (P, ...).

    Where nothing is padded both indices are the identity: groups follow the packed order.
    """
    if layout.padded_to_packed.numel() == len(rows):
        return rows
    return _Pad.apply(rows, layout.padded_to_packed, layout.packed_to_padded)


def unpad(rows: Tensor, layout: AttentionLayout) -> Tensor:
    """(P, ...) -> (T, ...)."""
    if layout.packed_to_padded.numel() == len(rows):
        return rows
    return _Unpad.apply(rows, layout.padded_to_packed, layout.packed_to_padded)


def unpad_group(rows: Tensor, group: AttentionGroup, packed_to_padded: Tensor) -> Tensor:
    """(S, L, ...) -> (T, ...): the real tokens of a padded tensor; padding gets a zero gradient."""
    return _Unpad.apply(rows.flatten(0, 1), group.padded_to_packed.flatten(), packed_to_padded)


def _pad_rows(rows: Tensor, padded_to_packed: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]).index_select(0, padded_to_packed)


class _Pad(torch.autograd.Function):
    """(T, ...) -> (P, ...). A token appears once, so the backward pass is the inverse gather: no atomics."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, padded_to_packed: Tensor, packed_to_padded: Tensor) -> Tensor:
        ctx.save_for_backward(packed_to_padded)
        return _pad_rows(rows, padded_to_packed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (packed_to_padded,) = ctx.saved_tensors
        return gradients[0].index_select(0, packed_to_padded), None, None


class _Unpad(torch.autograd.Function):
    """(P, ...) -> (T, ...), the inverse of _Pad; padded rows get the zero gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, padded_to_packed: Tensor, packed_to_padded: Tensor) -> Tensor:
        ctx.save_for_backward(padded_to_packed)
        return rows.index_select(0, packed_to_padded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (padded_to_packed,) = ctx.saved_tensors
        return _pad_rows(gradients[0], padded_to_packed), None, None
