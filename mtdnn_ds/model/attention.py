"""Attention over packed tokens: four back ends behind one signature. Not the encoder, and no parameters.

Every back end computes softmax(q k^T * scaling) v within each sequence and nothing between sequences; where
these lie is told by an AttentionLayout (attention_layout.py). They differ in speed and in where they run:

    grouped  pure PyTorch: sequences of similar length are re-padded together, in attention only; CPU and GPU
    padded   the reference: all sequences padded to the longest; CPU and GPU
    varlen   torch's own flash kernel (varlen_attention.py); CUDA, half precision
    flash    flash-attn 2's; CUDA, half precision

attention_choice.py chooses among them. A new back end is a line in config/choices.py and a function in
`ATTEND`.

Shape legend: T packed tokens, S sequences, N heads, H head dim, D = N * H, L longest sequence of a group,
P padded rows (all groups end to end).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from mtdnn_ds.model.attention_layout import AttentionLayout, Backend, pad, unpad
from mtdnn_ds.model.dropout.counter_dropout import next_stream
from mtdnn_ds.model.dropout.counter_masks import attention_dropout
from mtdnn_ds.model.dropout.word_dropout import word_dropout
from mtdnn_ds.model.varlen_attention import HAS_FLASH_OP, varlen_attention

# The name under which transformers finds `packed_attention`. It must not contain "flash": transformers would
# then ask for its own flash-attn integration.
HF_ATTENTION_NAME = "mtdnn_packed"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Dropout:
    """Dropout of attention probabilities: with `keys` its masks come from counters, else from a generator."""

    probability: float  # in effect: 0 outside training
    keys: Tensor | None  # (P,), or of one group (S, L), int64
    stream: int  # of the counters


def attend(
    query_TNH: Tensor,
    key_TNH: Tensor,
    value_TNH: Tensor,
    layout: AttentionLayout,
    *,
    dropout: float,
    scaling: float,
    stream: int = 0,
) -> Tensor:
    """Attention within each sequence, (T, N, H), by the layout's back end.

    `dropout` is the probability in effect: 0 outside training; `stream`: of its counters.
    """
    masks = _Dropout(probability=dropout, keys=layout.dropout_keys, stream=stream)
    return ATTEND[layout.backend](query_TNH, key_TNH, value_TNH, layout, scaling, masks)


def _attend_flash(
    query_TNH: Tensor,
    key_TNH: Tensor,
    value_TNH: Tensor,
    layout: AttentionLayout,
    scaling: float,
    dropout: _Dropout,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query_TNH,
        key_TNH,
        value_TNH,
        layout.cu_seqlens,
        layout.cu_seqlens,
        layout.max_seqlen,
        layout.max_seqlen,
        dropout_p=dropout.probability,
        softmax_scale=scaling,
        deterministic=True,
    )


def _attend_varlen(
    query_TNH: Tensor,
    key_TNH: Tensor,
    value_TNH: Tensor,
    layout: AttentionLayout,
    scaling: float,
    dropout: _Dropout,
) -> Tensor:
    probability = dropout.probability
    if not HAS_FLASH_OP:
        probability = 0.0  # the public kernel has none, and `dropout_notes` says so at start
    return varlen_attention(
        query_TNH,
        key_TNH,
        value_TNH,
        layout.cu_seqlens,
        layout.max_seqlen,
        dropout=probability,
        scaling=scaling,
    )


def _attend_groups(
    query_TNH: Tensor,
    key_TNH: Tensor,
    value_TNH: Tensor,
    layout: AttentionLayout,
    scaling: float,
    dropout: _Dropout,
) -> Tensor:
    """Group by group of sequences padded to one length: grouped and padded differ in their groups alone."""
    shapes = [group.padded_to_packed.shape for group in layout.groups]
    sizes = [shape.numel() for shape in shapes]
    queries, keys, values = (pad(rows, layout).split(sizes) for rows in (query_TNH, key_TNH, value_TNH))
    masks = _split_dropout(dropout, shapes)

    outputs = []
    for index, (group, shape) in enumerate(zip(layout.groups, shapes, strict=True)):
        # (S L, N, H) -> (S, N, L, H), where scaled_dot_product_attention wants the heads
        query_SNLH, key_SNLH, value_SNLH = (
            part[index].view(*shape, *query_TNH.shape[1:]).transpose(1, 2) for part in (queries, keys, values)
        )
        out_SNLH = _attend_padded(query_SNLH, key_SNLH, value_SNLH, group.key_mask, scaling, masks[index])
        outputs.append(out_SNLH.transpose(1, 2).reshape(-1, *query_TNH.shape[1:]))

    out_PNH = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return unpad(out_PNH, layout)


def _split_dropout(dropout: _Dropout, shapes: list[torch.Size]) -> list[_Dropout]:
    """Each group's part of the keys."""
    if dropout.keys is None:
        return [dropout] * len(shapes)
    parts = dropout.keys.split([shape.numel() for shape in shapes])
    return [replace(dropout, keys=part.view(shape)) for part, shape in zip(parts, shapes, strict=True)]


def _attend_padded(
    query_SNLH: Tensor,
    key_SNLH: Tensor,
    value_SNLH: Tensor,
    key_mask: Tensor | None,
    scaling: float,
    dropout: _Dropout,
) -> Tensor:
    # No fused kernel takes a mask for dropout, and with dropout the CPU has no fused kernel at all:
    # scaled_dot_product_attention would take the steps below itself, with a slow mask.
    has_kernel = query_SNLH.device.type != "cpu" and dropout.keys is None
    if dropout.probability == 0 or has_kernel:
        return functional.scaled_dot_product_attention(
            query_SNLH,
            key_SNLH,
            value_SNLH,
            attn_mask=key_mask,
            dropout_p=dropout.probability,
            scale=scaling,
        )

    scores_SNLL = torch.matmul(query_SNLH * scaling, key_SNLH.transpose(2, 3))
    if key_mask is not None:
        bias = torch.zeros_like(key_mask, dtype=scores_SNLL.dtype).masked_fill_(~key_mask, float("-inf"))
        scores_SNLL = scores_SNLL + bias

    weights_SNLL = scores_SNLL.softmax(-1)
    if dropout.keys is None:
        weights_SNLL = word_dropout(weights_SNLL, dropout.probability)
    else:
        weights_SNLL = attention_dropout(weights_SNLL, dropout.probability, dropout.keys, dropout.stream)
    return torch.matmul(weights_SNLL, value_SNLH)


ATTEND: Mapping[Backend, Callable[[Tensor, Tensor, Tensor, AttentionLayout, float, _Dropout], Tensor]] = {
    "grouped": _attend_groups,
    "varlen": _attend_varlen,
    "flash": _attend_flash,
    "padded": _attend_groups,
}
"""What computes each of config/choices.py's back ends."""


# transformers


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: AttentionLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[Tensor, None]:
    """`attend` with the signature of transformers' AttentionInterface: (1, N, T, H) in, (1, T, N, H) out."""
    if scaling is None:
        scaling = query.shape[-1] ** -0.5

    stream = 0
    if dropout > 0 and packed_layout.running is not None:
        stream = next_stream(module, packed_layout.running)

    # squeeze, not [0]: the gradient of an index is a zeroed tensor and a copy
    query_TNH, key_TNH, value_TNH = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    out_TNH = attend(
        query_TNH, key_TNH, value_TNH, packed_layout, dropout=dropout, scaling=scaling, stream=stream
    )
    return out_TNH.unsqueeze(0), None


def register_packed_attention() -> None:
    """Makes `packed_attention` known to transformers.

    No mask is built: the layout says which tokens belong together.
    """
    AttentionInterface.register(HF_ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(HF_ATTENTION_NAME, lambda *args, **kwargs: None)
