"""Attention over packed tokens: four back ends behind one signature, and their registration with transformers.

Not the encoder, and no parameters. Every back end computes softmax(q k^T * scaling) v within each sequence and nothing
between sequences; they differ in speed and in where they run:
  grouped  pure PyTorch: sequences of similar length are re-padded together, inside attention only; CPU and GPU
  padded   the reference: all sequences padded to the longest; CPU and GPU
  flash    flash-attn's varlen kernel; CUDA, half precision
  varlen   torch.nn.attention.varlen; CUDA, half precision, no attention dropout

Shape legend: T packed tokens, S sequences, N heads, H head dim, D = N * H, L longest sequence of a group, P padded rows.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from mtdnn_ds.batch.packed import AttentionGroup, PackedBatch
from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.model.dropout.counter_dropout import next_stream
from mtdnn_ds.model.dropout.counter_masks import DropoutKeys, attention_dropout
from mtdnn_ds.model.dropout.replayed import Replayed
from mtdnn_ds.model.dropout.word_dropout import word_dropout

Backend = Literal["grouped", "padded", "flash", "varlen"]

# The name under which transformers finds `packed_attention`. It must not contain "flash": transformers would then ask
# for its own flash-attn integration.
HF_ATTENTION_NAME = "mtdnn_packed"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionLayout:
    """Where the sequences of one packed micro-batch lie; built once per forward, read by every layer."""

    backend: Backend
    cu_seqlens: Tensor  # (S+1,) int32
    max_seqlen: int
    groups: tuple[AttentionGroup, ...]  # grouped and padded only
    padded_to_packed: Tensor  # (P,) int64, all groups end to end; T stands for a zero row
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
    padded_to_packed = torch.cat([group.padded_to_packed.flatten() for group in groups])
    return AttentionLayout(
        backend=backend,
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        groups=groups,
        padded_to_packed=padded_to_packed,
        packed_to_padded=packed_to_padded,
        token_groups=None
        if batch.sequence_groups is None
        else batch.sequence_groups.repeat_interleave(
            batch.cu_seqlens.diff(), output_size=batch.input_ids.numel()
        ),
        running=None if keys is None else running,
        dropout_keys=None if keys is None else _pad_rows(keys.of_token_T, padded_to_packed),
    )


def padded_group(batch: PackedBatch) -> tuple[AttentionGroup, Tensor]:
    """One group of all sequences padded to the longest, and its packed_to_padded (T,); computed on the batch's device."""
    num_tokens, starts_S = batch.input_ids.numel(), batch.cu_seqlens[:-1].long()
    lengths_S = batch.cu_seqlens.diff()
    positions_L = torch.arange(batch.max_seqlen, device=starts_S.device)
    is_token_SL = positions_L < lengths_S[:, None]
    sequence_T = torch.repeat_interleave(lengths_S, output_size=num_tokens)
    group = AttentionGroup(
        padded_to_packed=torch.where(is_token_SL, starts_S[:, None] + positions_L, num_tokens),
        key_mask=is_token_SL[:, None, None, :] if num_tokens < is_token_SL.numel() else None,
    )
    return group, sequence_T * batch.max_seqlen + batch.position_ids


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
    """Attention within each sequence, (T, N, H). `dropout` is the probability in effect: 0 outside training; `stream`: of its counters."""
    cu_seqlens, longest = layout.cu_seqlens, layout.max_seqlen
    if layout.backend == "flash":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            query_TNH,
            key_TNH,
            value_TNH,
            cu_seqlens,
            cu_seqlens,
            longest,
            longest,
            dropout_p=dropout,
            softmax_scale=scaling,
        )
    if layout.backend == "varlen":  # has no dropout; load_encoder says so at start
        from torch.nn.attention.varlen import varlen_attn

        out_TNH = varlen_attn(
            query_TNH, key_TNH, value_TNH, cu_seqlens, cu_seqlens, longest, longest, scale=scaling
        )
        assert isinstance(out_TNH, Tensor)  # a pair only where return_aux is asked for
        return out_TNH
    return _attend_groups(query_TNH, key_TNH, value_TNH, layout, dropout, scaling, stream)


def _attend_groups(
    query_TNH: Tensor,
    key_TNH: Tensor,
    value_TNH: Tensor,
    layout: AttentionLayout,
    dropout: float,
    scaling: float,
    stream: int,
) -> Tensor:
    num_tokens, *heads = query_TNH.shape
    # Where nothing is padded both indices are the identity, because groups follow the packed order.
    is_identity = layout.padded_to_packed.numel() == num_tokens
    padded = [
        rows if is_identity else _Pad.apply(rows, layout.padded_to_packed, layout.packed_to_padded)
        for rows in (query_TNH, key_TNH, value_TNH)
    ]
    shapes = [group.padded_to_packed.shape for group in layout.groups]
    sizes = [shape.numel() for shape in shapes]
    split_rows = zip(*(rows.split(sizes) for rows in padded), strict=True)
    keys = (
        [None] * len(sizes)
        if layout.dropout_keys is None or dropout == 0
        else layout.dropout_keys.split(sizes)
    )
    outputs = []
    for group, shape, rows, keys_P in zip(layout.groups, shapes, split_rows, keys, strict=True):
        query_SNLH, key_SNLH, value_SNLH = (part.view(*shape, *heads).transpose(1, 2) for part in rows)
        keys_SL = None if keys_P is None else keys_P.view(shape)
        out_SNLH = _attend_padded(
            query_SNLH, key_SNLH, value_SNLH, group.key_mask, dropout, scaling, keys_SL, stream
        )
        outputs.append(out_SNLH.transpose(1, 2).reshape(-1, *heads))
    out_PNH = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return out_PNH if is_identity else _Unpad.apply(out_PNH, layout.padded_to_packed, layout.packed_to_padded)


def _attend_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    dropout: float,
    scaling: float,
    keys_SL: Tensor | None = None,
    stream: int = 0,
) -> Tensor:
    if dropout == 0 or (query.device.type != "cpu" and keys_SL is None):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=key_mask, dropout_p=dropout, scale=scaling
        )
    # With dropout the CPU has no fused kernel either: scaled_dot_product_attention would take these same steps, with a slow mask.
    # And no fused kernel takes a mask for dropout.
    scores_SNLL = torch.matmul(query * scaling, key.transpose(2, 3))
    if key_mask is not None:
        scores_SNLL = scores_SNLL + torch.zeros_like(key_mask, dtype=scores_SNLL.dtype).masked_fill_(
            ~key_mask, float("-inf")
        )
    weights_SNLL = scores_SNLL.softmax(-1)
    dropped = (
        word_dropout(weights_SNLL, dropout)
        if keys_SL is None
        else attention_dropout(weights_SNLL, dropout, keys_SL, stream)
    )
    return torch.matmul(dropped, value)


def _pad_rows(rows: Tensor, padded_to_packed: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])]).index_select(0, padded_to_packed)


class _Pad(torch.autograd.Function):
    """(T, ...) -> (P, ...). Each token appears once, so the backward pass is the inverse gather: no atomics, deterministic."""

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


def unpad(rows: Tensor, group: AttentionGroup, packed_to_padded: Tensor) -> Tensor:
    """(S, L, ...) -> (T, ...): the real tokens of a padded tensor; padding gets a zero gradient."""
    return _Unpad.apply(rows.flatten(0, 1), group.padded_to_packed.flatten(), packed_to_padded)


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
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query_TNH, key_TNH, value_TNH = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    stream = (
        next_stream(module, packed_layout.running) if dropout > 0 and packed_layout.running is not None else 0
    )
    return attend(
        query_TNH, key_TNH, value_TNH, packed_layout, dropout=dropout, scaling=scaling, stream=stream
    ).unsqueeze(0), None


def register_packed_attention() -> None:
    """Makes `packed_attention` known to transformers; no mask is built, for the layout says which tokens belong together."""
    AttentionInterface.register(HF_ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(HF_ATTENTION_NAME, lambda *args, **kwargs: None)


def resolve_backend(requested: str, device_type: str, dtype: torch.dtype) -> tuple[Backend, str]:
    """The back end to use on this device for attention in `dtype`, and the reason in one sentence.

    `auto` takes flash where it runs, else grouped. Raises ConfigError when a back end is asked for by name and cannot run.
    """
    if requested == "auto":
        problems = _flash_problems(device_type, dtype)
        if problems:
            return "grouped", f"attention back end grouped (flash: {problems[0]})"
        return (
            "flash",
            "attention back end flash: flash-attn is installed and attention runs in half precision on CUDA",
        )
    if requested not in get_args(Backend):
        raise ConfigError(
            f"encoder.attention={requested}: unknown back end{did_you_mean(requested, ('auto', *get_args(Backend)))}"
        )
    problems = {"flash": _flash_problems, "varlen": _kernel_problems}.get(requested, lambda *_: [])(
        device_type, dtype
    )
    if problems:
        raise ConfigError(
            f"encoder.attention={requested} cannot run here: {' and '.join(problems)}; use 'auto' or 'grouped'"
        )
    backend: Backend = next(name for name in get_args(Backend) if name == requested)
    return backend, f"attention back end {backend}: asked for by encoder.attention"


def counter_backend(
    requested: str, backend: Backend, reason: str, attention_dropout: float
) -> tuple[Backend, str]:
    """The back end and the reason with train.dropout=counter: kernels cannot take its masks. Raises ConfigError where one is asked for by name."""
    if backend in ("grouped", "padded") or attention_dropout == 0:
        return backend, reason
    if requested == "auto":
        return (
            "grouped",
            f"attention back end grouped ({backend} cannot take the attention dropout masks of train.dropout=counter)",
        )
    raise ConfigError(
        f"encoder.attention={requested}: it cannot take the masks of train.dropout=counter, and the encoder's attention dropout is "
        f"{attention_dropout}; use 'auto' or 'grouped', or train.dropout=model"
    )


def _flash_problems(device_type: str, dtype: torch.dtype) -> list[str]:
    missing = (
        [] if importlib.util.find_spec("flash_attn") else ["the Python package flash-attn is not installed"]
    )
    return [*_kernel_problems(device_type, dtype), *missing]


def _kernel_problems(device_type: str, dtype: torch.dtype) -> list[str]:
    problems = []
    if device_type != "cuda":
        problems.append(f"it needs CUDA and this run is on {device_type}")
    elif torch.cuda.get_device_capability() < (8, 0):
        problems.append("it needs a GPU of compute capability 8.0 (Ampere) or newer")
    if dtype not in (torch.float16, torch.bfloat16):
        problems.append(f"it needs fp16 or bf16 and attention runs in {str(dtype).removeprefix('torch.')}")
    return problems
