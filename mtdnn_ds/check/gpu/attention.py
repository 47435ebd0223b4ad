"""Part attention: every back end against softmax written out in float32, its dropout, repeats and speed.

Shape legend: T packed tokens, N heads, H head dim, 1 the only packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mtdnn_ds.batch.groups import costs_on
from mtdnn_ds.check.gpu.bench import Bench, first_line
from mtdnn_ds.check.gpu.results import Figure, Row, RowStatus
from mtdnn_ds.check.gpu.timing import median_ms
from mtdnn_ds.check.gpu.workload import glue_like_batch
from mtdnn_ds.config.choices import ATTENTION_BACKENDS
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.attention import attend
from mtdnn_ds.model.attention_choice import has_dropout, resolve_backend
from mtdnn_ds.model.attention_layout import AttentionLayout, Backend, attention_layout
from mtdnn_ds.model.probe import batch_of_lengths
from mtdnn_ds.model.varlen_attention import HAS_FLASH_OP

LENGTHS = (3, 17, 64, 128)
NUM_HEADS = 4
HEAD_SIZES = (32, 64, 128)
DROPOUT = 0.1

# Of output and gradients, relative to their largest value: some roundings of 8 and of 11 bits.
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
# The mean over draws is (1 + this) times what there is without dropout; unscaled it would be 0.9 times.
DROPOUT_TOLERANCE = 0.01
# Of the gradient of value under dropout: roundings are 1e-4, another mask or scale makes some 0.1.
VALUE_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    """What attention is computed of."""

    inputs: tuple[Tensor, Tensor, Tensor]  # query, key, value, each (1, N, T, H), as a layer has them
    gradient_TNH: Tensor  # of the output
    layout: AttentionLayout

    def output(self, dropout: float) -> Tensor:
        """(T, N, H)."""
        query_TNH, key_TNH, value_TNH = (tensor.squeeze(0).transpose(0, 1) for tensor in self.inputs)
        scaling = query_TNH.shape[-1] ** -0.5
        return attend(query_TNH, key_TNH, value_TNH, self.layout, dropout=dropout, scaling=scaling)

    def run(self, dropout: float) -> tuple[Tensor, ...]:
        """Output and the gradients of query, key and value, detached."""
        query, key, value = (tensor.detach().requires_grad_() for tensor in self.inputs)
        out_TNH = replace(self, inputs=(query, key, value)).output(dropout)
        gradients = torch.autograd.grad(out_TNH, (query, key, value), self.gradient_TNH)
        return (out_TNH.detach(), *gradients)


def look(bench: Bench) -> None:
    """Back ends without kernels of their own first."""
    for backend in sorted(ATTENTION_BACKENDS, key=lambda name: ATTENTION_BACKENDS[name].is_kernel):
        try:
            if not _is_rehearsed(bench, backend):
                resolve_backend(backend, bench.device.type, torch.bfloat16)
        except ConfigError as error:
            bench.emit(Row(name=backend, status="note", what="; ".join(error.problems)))
            continue

        for dtype in TOLERANCES:
            for size in HEAD_SIZES:
                name = f"{backend}, {_word(dtype)}, heads of {size}"
                bench.tried(name, partial(_exact, bench, backend, dtype, size, name))

        name = f"{backend}, dropout and repeats"
        bench.tried(name, partial(_dropout, bench, backend, name))
        name = f"{backend}, speed"
        bench.tried(name, partial(_speed, bench, backend, name))
        if bench.on_cuda and not ATTENTION_BACKENDS[backend].is_kernel:
            name = f"{backend}, speed, cuDNN's attention on"
            bench.tried(name, partial(_speed_with_cudnn, bench, backend, name))


def _is_rehearsed(bench: Bench, backend: Backend) -> bool:
    """Whether it is varlen on a CPU, which its op has a form for (model/varlen_attention.py)."""
    return bench.is_rehearsal and backend == "varlen" and HAS_FLASH_OP


def _word(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def _problem(
    bench: Bench, backend: Backend, dtype: torch.dtype, lengths: Sequence[int], heads: int, size: int
) -> _Problem:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, sum(lengths), size, generator=generator).to(bench.device, dtype)
        for _ in range(4)
    ]
    gradient_TNH = tensors[3].squeeze(0).transpose(0, 1).contiguous()
    batch = batch_of_lengths(np.array(lengths), costs=costs_on(bench.device)).to(bench.device)
    layout = attention_layout(batch, backend)
    return _Problem(inputs=(tensors[0], tensors[1], tensors[2]), gradient_TNH=gradient_TNH, layout=layout)


def _exact(bench: Bench, backend: Backend, dtype: torch.dtype, size: int, name: str) -> Row:
    problem = _problem(bench, backend, dtype, LENGTHS, NUM_HEADS, size)
    ours, theirs = problem.run(dropout=0.0), plain_attention(problem, LENGTHS)
    errors = [
        float((our.float() - their).abs().max() / their.abs().max())
        for our, their in zip(ours, theirs, strict=True)
    ]
    figures: dict[str, Figure] = {"output": errors[0], "gradients": max(errors[1:])}
    is_good = all(error < TOLERANCES[dtype] for error in errors)  # not so of NaN
    what = "" if is_good else f"at most {TOLERANCES[dtype]:g} was expected: set encoder.attention to grouped"
    return Row(name=name, status="ok" if is_good else "failed", figures=figures, what=what)


def plain_attention(problem: _Problem, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """softmax(q k^T / sqrt(H)) v of each sequence alone in float32, and the gradients."""
    leaves = [tensor.detach().float().requires_grad_() for tensor in problem.inputs]
    scaling = leaves[0].shape[-1] ** -0.5
    parts, start = [], 0
    for length in lengths:
        query_NLH, key_NLH, value_NLH = (leaf[0, :, start : start + length] for leaf in leaves)
        weights_NLL = (query_NLH @ key_NLH.transpose(1, 2) * scaling).softmax(-1)
        parts.append((weights_NLL @ value_NLH).transpose(0, 1))
        start += length
    out_TNH = torch.cat(parts)
    return (out_TNH.detach(), *torch.autograd.grad(out_TNH, leaves, problem.gradient_TNH.float()))


def _dropout(bench: Bench, backend: Backend, name: str) -> Row:
    """The mean over draws, the gradient of value, and whether the same seed gives the same bits twice."""
    problem = _problem(bench, backend, torch.bfloat16, LENGTHS, NUM_HEADS, 64)
    rate = DROPOUT if has_dropout(backend) else 0.0
    torch.manual_seed(1)
    first = problem.run(rate)
    torch.manual_seed(1)
    again = problem.run(rate)
    differing = [
        part
        for part, ours, theirs in zip(("output", "query", "key", "value"), first, again, strict=True)
        if not torch.equal(ours, theirs)
    ]

    status: RowStatus = "ok"
    words = ["the same seed gives the same bits, forward and backward"]
    if differing:
        status = "missed"  # a resumed run is then close, and not equal bit for bit
        words = [f"the same seed gives other bits in {', '.join(differing)}"]
    if not rate:
        return Row(name=name, status=status, what=f"has no dropout; {words[0]}")

    # The output is linear in the mask, so its mean over draws is what there is without dropout.
    plain = problem.output(0.0).float()
    number = bench.sized(400, 60)
    mean, spread = torch.zeros_like(plain), 0.0
    for seed in range(number):
        torch.manual_seed(seed)
        drawn = problem.output(rate).float()
        mean += drawn / number
        spread = max(spread, float((drawn - plain).abs().max()))
    ratio = float((mean * plain).sum() / (plain * plain).sum())

    if not abs(ratio - 1) < DROPOUT_TOLERANCE:
        status = "failed"
        words.append(f"at most {DROPOUT_TOLERANCE:g} from 1 was expected")
    error = value_error(problem, rate)
    if not error < VALUE_TOLERANCE:
        status = "failed"
        words.append(f"the gradient of value is not that of the output's mask: at most {VALUE_TOLERANCE:g}")
    if spread == 0.0:
        status = "failed"
        words.append("nothing is dropped")
    figures: dict[str, Figure] = {"draws": number, "mean_over_plain": ratio, "gradient_of_value": error}
    return Row(name=name, status=status, figures=figures, what="; ".join(words))


def value_error(problem: _Problem, dropout: float) -> float:
    """By how much forward and backward differ in their masks and scales, relative.

    The output is linear in value, so with one mask sum(output * gradient) is sum(gradient of value * value).
    The gradient is the output itself here: of a random one both sums would be near 0 whatever the mask.
    """
    torch.manual_seed(2)
    gradient_TNH = problem.output(dropout).detach()
    torch.manual_seed(2)
    out_TNH, _, _, of_value = replace(problem, gradient_TNH=gradient_TNH).run(dropout)
    forward = float((out_TNH.double() * gradient_TNH.double()).sum())
    backward = float((of_value.double() * problem.inputs[2].double()).sum())
    return abs(forward - backward) / abs(forward)


def _speed(bench: Bench, backend: Backend, name: str) -> Row:
    """Forward and backward of BERT-large's attention in one layer, at 16,384 GLUE-like tokens."""
    dtype, size = torch.bfloat16, bench.sized(64, 8)
    batch = glue_like_batch(bench.sized(16_384, 512), seed=0)
    lengths = batch.cu_seqlens.diff().tolist()
    problem = _problem(bench, backend, dtype, lengths, bench.sized(16, 2), size)
    figures: dict[str, Figure] = {"tokens": sum(lengths), "sequences": len(lengths)}
    figures["groups"] = len(problem.layout.groups) if not ATTENTION_BACKENDS[backend].is_kernel else 1
    rates = [0.0, DROPOUT] if has_dropout(backend) else [0.0]
    for rate in rates:
        ms = median_ms(partial(problem.run, rate), bench.device, warmup=3, repeats=bench.sized(10, 1))
        figures[f"ms_at_dropout_{rate:g}"] = ms
    return Row(name=name, figures=figures)


def _speed_with_cudnn(bench: Bench, backend: Backend, name: str) -> Row:
    """The same where torch may take cuDNN's kernels, which it plans anew for every shape.

    No run has them on, so what they raise is no failure.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        return _speed(bench, backend, name)
    except RuntimeError as error:
        return Row(name=name, status="note", what=first_line(error))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
