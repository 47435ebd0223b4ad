"""Attention over packed tokens by torch's own flash kernel, as one op with its dropout. Chooses nothing.

`aten::_flash_attention_forward` is what scaled_dot_product_attention and torch.nn.attention.varlen call; the
latter gives it no dropout, so it is called here. It is private: HAS_FLASH_OP is whether it takes the
arguments that are given here, and where it does not, `varlen_attention` is the public function, without
dropout.

torch.compile sees a single op, whatever the lengths. The backward pass is deterministic: sums over blocks of
keys are added in a fixed order instead of by atomics. The CPU's form is for checks of the op off a GPU:
exact, with all T x T scores at once.

Shape legend: T packed tokens, S sequences, N heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_INPUTS = ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal")
FLASH_ARGUMENTS = ("query", "key", "value", *_INPUTS, "return_debug_mask", "scale")
FLASH_BACKWARD_ARGUMENTS = (
    *("grad_out", "query", "key", "value", "out", "logsumexp"),
    *_INPUTS,
    *("rng_state", "unused", "scale"),
)


def _has_flash_op() -> bool:
    """Whether this torch has the two private ops with the arguments that are given here."""
    wanted = {
        "_flash_attention_forward": FLASH_ARGUMENTS,
        "_flash_attention_backward": FLASH_BACKWARD_ARGUMENTS,
    }
    for name, arguments in wanted.items():
        if not hasattr(torch.ops.aten, name):
            return False
        schema = getattr(torch.ops.aten, name).default._schema
        names = tuple(argument.name for argument in schema.arguments)
        if names[: len(arguments)] != arguments:
            return False
    return True


# A constant, not a question: torch.compile has to see through it.
HAS_FLASH_OP = _has_flash_op()


def varlen_attention(
    query_TNH: Tensor,
    key_TNH: Tensor,
    value_TNH: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    dropout: float,
    scaling: float,
) -> Tensor:
    """softmax(q k^T * scaling) v within each sequence, (T, N, H).

    `dropout` must be 0 where HAS_FLASH_OP is false.
    """
    if HAS_FLASH_OP:
        tensors = (query_TNH, key_TNH, value_TNH, cu_seqlens)
        return torch.ops.mtdnn_ds.varlen_attention(*tensors, max_seqlen, dropout, scaling)[0]

    assert dropout == 0, dropout
    from torch.nn.attention.varlen import varlen_attn

    # Its own scale is 1 / sqrt(H), and the one of torch 2.10 takes no other.
    own_scaling = query_TNH.shape[-1] ** -0.5
    if scaling != own_scaling:
        query_TNH = query_TNH * (scaling / own_scaling)
    out_TNH = varlen_attn(query_TNH, key_TNH, value_TNH, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    assert isinstance(out_TNH, Tensor)  # a pair only where return_aux is asked for
    return out_TNH


@torch.library.custom_op("mtdnn_ds::varlen_attention", mutates_args=(), device_types="cuda")
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output (T, N, H), and what the backward pass needs: log-sum-exp (N, T), and the random state."""
    out, logsumexp, rng_state, unused, _ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout,
        False,
        False,
        scale=scaling,
    )
    return out, logsumexp, rng_state, unused


@torch.library.custom_op("mtdnn_ds::varlen_attention_backward", mutates_args=(), device_types="cuda")
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    rng_state: Tensor,
    unused: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, (T, N, H)."""
    with _deterministic():
        of_query, of_key, of_value = torch.ops.aten._flash_attention_backward(
            gradient.contiguous(),
            query,
            key,
            value,
            out,
            logsumexp,
            cu_seqlens,
            cu_seqlens,
            max_seqlen,
            max_seqlen,
            dropout,
            False,
            rng_state,
            unused,
            scale=scaling,
        )
    return of_query, of_key, of_value


@contextmanager
def _deterministic() -> Iterator[None]:
    """The kernel has no argument for it: it reads torch's global flag, and warn_only does not count."""
    was_on = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warned_only)


# What the ops look like to torch.compile and to autograd


@_forward.register_fake
def _forward_shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_tokens, num_heads, _ = query.shape
    logsumexp = query.new_empty((num_heads, num_tokens), dtype=torch.float32)
    rng_state = query.new_empty((2,), dtype=torch.uint64)
    unused = query.new_empty((), dtype=torch.uint64)
    if query.device.type == "cpu":
        unused = query.new_empty((num_heads, num_tokens, num_tokens), dtype=torch.bool)
    return torch.empty_like(query), logsumexp, rng_state, unused


@_backward.register_fake
def _backward_shapes(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.max_seqlen, ctx.dropout, ctx.scaling = inputs
    ctx.set_materialize_grads(False)  # of the outputs that nothing reads
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx: Any, gradient: Tensor, *of_others: Any) -> tuple[Tensor | None, ...]:
    query, key, value, cu_seqlens, *kept = ctx.saved_tensors
    gradients = torch.ops.mtdnn_ds.varlen_attention_backward(
        gradient, query, key, value, *kept, cu_seqlens, ctx.max_seqlen, ctx.dropout, ctx.scaling
    )
    return (*gradients, None, None, None, None)


_forward.register_autograd(_gradients, setup_context=_keep)


# The same on the CPU


@_forward.register_kernel("cpu")
def _forward_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores_NTT = _scores(query, key, cu_seqlens, scaling)
    logsumexp_NT = scores_NTT.logsumexp(-1)
    weights_NTT = (scores_NTT - logsumexp_NT[..., None]).exp()

    kept_NTT = torch.rand_like(weights_NTT) >= dropout
    out_NTH = (weights_NTT * kept_NTT / (1 - dropout)) @ value.float().transpose(0, 1)
    out_TNH = out_NTH.transpose(0, 1).to(query.dtype).contiguous()
    return out_TNH, logsumexp_NT, torch.zeros(2, dtype=torch.uint64), kept_NTT


@_backward.register_kernel("cpu")
def _backward_on_cpu(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    rng_state: Tensor,
    unused: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout: float,
    scaling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    heads_first = (each.float().transpose(0, 1) for each in (gradient, query, key, value, out))
    gradient_NTH, query_NTH, key_NTH, value_NTH, out_NTH = heads_first
    weights_NTT = (_scores(query, key, cu_seqlens, scaling) - logsumexp[..., None]).exp()
    kept_NTT = unused / (1 - dropout)  # the forward pass on the CPU keeps its mask there

    # d softmax = P * (dP - sum(dP * P)), and the sum is that of d out * out
    of_value = (weights_NTT * kept_NTT).transpose(1, 2) @ gradient_NTH
    of_weights = (gradient_NTH @ value_NTH.transpose(1, 2)) * kept_NTT
    of_scores = weights_NTT * (of_weights - (gradient_NTH * out_NTH).sum(-1, keepdim=True)) * scaling
    of_query, of_key = of_scores @ key_NTH, of_scores.transpose(1, 2) @ query_NTH

    of_query, of_key, of_value = (
        each.transpose(0, 1).to(query.dtype).contiguous() for each in (of_query, of_key, of_value)
    )
    return of_query, of_key, of_value


def _scores(query: Tensor, key: Tensor, cu_seqlens: Tensor, scaling: float) -> Tensor:
    """(N, T, T) float32; -inf between sequences."""
    sequence_T = torch.repeat_interleave(cu_seqlens.diff(), output_size=len(query))
    scores_NTT = (query.float().transpose(0, 1) * scaling) @ key.float().permute(1, 2, 0)
    return scores_NTT.masked_fill(sequence_T[:, None] != sequence_T, float("-inf"))
