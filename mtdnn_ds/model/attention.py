"""Attention over packed tokens: four back ends behind one signature. Not the encoder, and no parameters.

Every back end computes softmax(q k^T * scaling) v within each sequence and nothing between sequences; where
these lie is told by an AttentionLayout (attention_layout.py). They differ in speed and in where they run:

    grouped  pure PyTorch: sequences of similar length are re-padded together, in attention only; CPU and GPU
    padded   the reference: all sequences padded to the longest; CPU and GPU
    flash    flash-attn's varlen kernel; CUDA, half precision
    varlen   torch.nn.attention.varlen; CUDA, half precision, no attention dropout

A new back end is a line in config/choices.py and a function in `ATTEND`.

Shape legend: T packed tokens, S sequences, N heads, H head dim, D = N * H, L longest sequence of a group,
P padded rows (all groups end to end).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from mtdnn_ds.config.choices import ATTENTION_BACKENDS
from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.model.attention_layout import AttentionLayout, Backend, pad, unpad
from mtdnn_ds.model.dropout.counter_dropout import next_stream
from mtdnn_ds.model.dropout.counter_masks import attention_dropout
from mtdnn_ds.model.dropout.word_dropout import word_dropout

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
    )


def _attend_varlen(
    query_TNH: Tensor,
    key_TNH: Tensor,
    value_TNH: Tensor,
    layout: AttentionLayout,
    scaling: float,
    dropout: _Dropout,
) -> Tensor:
    """Without dropout, of which the kernel has none; load_encoder says so at start."""
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = layout.cu_seqlens, layout.max_seqlen
    out_TNH = varlen_attn(query_TNH, key_TNH, value_TNH, starts, starts, longest, longest, scale=scaling)
    assert isinstance(out_TNH, Tensor)  # a pair only where return_aux is asked for
    return out_TNH


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


# The choice of a back end


def resolve_backend(requested: str, device_type: str, dtype: torch.dtype) -> tuple[Backend, str]:
    """The back end to use on this device for attention in `dtype`, and the reason in one sentence.

    `auto` takes flash where it runs, else grouped. Raises ConfigError when a back end is asked for by name
    and cannot run.
    """
    if requested == "auto":
        obstacles = _obstacles("flash", device_type, dtype)
        if obstacles:
            return "grouped", f"attention back end grouped (flash: {obstacles[0]})"
        return "flash", (
            "attention back end flash: flash-attn is installed and attention runs in half precision on CUDA"
        )

    if requested not in ATTENTION_BACKENDS:
        hint = did_you_mean(requested, ("auto", *ATTENTION_BACKENDS))
        raise ConfigError(f"encoder.attention={requested}: unknown back end{hint}")
    obstacles = _obstacles(requested, device_type, dtype)
    if obstacles:
        raise ConfigError(
            f"encoder.attention={requested} cannot run here: {' and '.join(obstacles)}; "
            "use 'auto' or 'grouped'"
        )
    return requested, f"attention back end {requested}: asked for by encoder.attention"


def _obstacles(backend: Backend, device_type: str, dtype: torch.dtype) -> list[str]:
    """Why a back end cannot run on such a device, in such a format."""
    facts = ATTENTION_BACKENDS[backend]
    found = []
    if facts.is_kernel:
        if device_type != "cuda":
            found.append(f"it needs CUDA and this run is on {device_type}")
        elif torch.cuda.get_device_capability() < (8, 0):
            found.append("it needs a GPU of compute capability 8.0 (Ampere) or newer")
        if dtype not in (torch.float16, torch.bfloat16):
            found.append(f"it needs fp16 or bf16 and attention runs in {str(dtype).removeprefix('torch.')}")

    if facts.package is not None:
        module, name = facts.package
        if importlib.util.find_spec(module) is None:
            found.append(f"the Python package {name} is not installed")
    return found


def counter_backend(
    requested: str, backend: Backend, reason: str, attention_dropout: float
) -> tuple[Backend, str]:
    """The resolved back end and its reason, or, with train.dropout=counter, one that takes its masks.

    Raises ConfigError where a kernel that cannot take them is asked for by name.
    """
    if not ATTENTION_BACKENDS[backend].is_kernel or attention_dropout == 0:
        return backend, reason
    if requested == "auto":
        return "grouped", (
            f"attention back end grouped ({backend} cannot take the attention dropout masks of "
            "train.dropout=counter)"
        )
    raise ConfigError(
        f"encoder.attention={requested}: it cannot take the masks of train.dropout=counter, and the "
        f"encoder's attention dropout is {attention_dropout}; use 'auto' or 'grouped', or train.dropout=model"
    )


def cpu_backend(backend: Backend) -> Backend:
    """What stands in for a back end on the CPU, where an encoder is checked: itself if it runs there."""
    return "grouped" if ATTENTION_BACKENDS[backend].is_kernel else backend


def dropout_notes(backend: Backend, attention_dropout: float) -> tuple[str, ...]:
    """What a run says at start of a back end that cannot apply the encoder's attention dropout."""
    if ATTENTION_BACKENDS[backend].has_dropout or attention_dropout == 0:
        return ()
    return (
        f"attention back end {backend} has no dropout: the encoder's attention dropout of "
        f"{attention_dropout} is not applied",
    )


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

    query_TNH, key_TNH, value_TNH = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
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
