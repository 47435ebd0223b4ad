"""Noise on word embeddings: drawn for each example, moved along a gradient. Knows no model and no loss.

    d <- P(d + step_size g / |g|)       P: to the nearest point of |d| <= radius

with |.| the largest element (inf) or the Euclidean length (l2), of each token or of each sequence. Where g is
zero or not finite, d stays as it is. That is one step of projected gradient ascent: SMART's (Jiang et al.
2020, arXiv:1911.03437, algorithm 1; their code normalises each token's gradient) and FreeLB's (Zhu et al.
2020, arXiv:1909.11764, algorithm 1; that of each sequence).

Shape legend: T packed tokens, S sequences, E word embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtdnn_ds.batch import PackedBatch

PURPOSE = 0x6E6F6973  # so that no other stream of the seed meets this one


@dataclass(frozen=True, kw_only=True, slots=True)
class Ball:
    """Where noise may go, and how far a step of ascent takes it."""

    norm: Literal["inf", "l2"]
    per: Literal["token", "sequence"]
    radius: float
    step_size: float


def draw_noise(
    batch: PackedBatch,
    *,
    width: int,
    is_noisy_N: np.ndarray,
    std: float | None,
    ball: Ball,
    seed: int,
    step: int,
    device: torch.device,
) -> Tensor:
    """(T, E) float32 on `device`: N(0, std^2), or, where `std` is None, FreeLB's.

    That is uniform in (-r, r), so that an inf norm is r at most, and of an l2 norm r divided by the root of
    the number of elements. Drawn from (seed, step, task, example, number of the sequence in it) alone, so it
    does not depend on how the step was cut up; zero for the sequences of tasks outside `is_noisy_N` and for
    fillers. `batch` is the one on the host.
    """
    lengths = batch.cu_seqlens.diff().tolist()
    noise_TE = torch.zeros((sum(lengths), width), device=device)
    generator = torch.Generator(device=device)
    number_in_example: dict[int, int] = {}
    examples_S = batch.sequence_examples.tolist()
    is_noisy_S = _noisy_sequences(batch, is_noisy_N)

    for part_LE, example, is_noisy in zip(noise_TE.split(lengths), examples_S, is_noisy_S, strict=True):
        if not is_noisy:
            continue

        number = number_in_example.get(example, -1) + 1
        number_in_example[example] = number
        place = (int(batch.example_tasks[example]), int(batch.example_rows[example]), number)
        sequence_seed = np.random.SeedSequence([seed, PURPOSE, step, *place]).generate_state(1, np.uint64)[0]
        generator.manual_seed(int(sequence_seed >> 1))

        if std is not None:
            part_LE.normal_(0.0, std, generator=generator)
        else:
            radius = ball.radius / math.sqrt(_elements(part_LE, ball))
            part_LE.uniform_(-1.0, 1.0, generator=generator).mul_(radius)
    return noise_TE


def _elements(part_LE: Tensor, ball: Ball) -> int:
    """Elements that share one Euclidean length; 1 where each has its own bound."""
    if ball.norm == "inf":
        return 1
    if ball.per == "token":
        return part_LE.shape[1]
    return part_LE.numel()


def noisy_tokens(batch: PackedBatch, is_noisy_N: np.ndarray) -> Tensor:
    """(T, 1) bool on the host: the tokens of tasks in `is_noisy_N`."""
    is_noisy_T = np.repeat(_noisy_sequences(batch, is_noisy_N), batch.cu_seqlens.diff().numpy())
    return torch.from_numpy(is_noisy_T)[:, None]


def _noisy_sequences(batch: PackedBatch, is_noisy_N: np.ndarray) -> np.ndarray:
    """(S,) bool. Sequences of no example (fillers) have number -1."""
    return np.append(is_noisy_N[batch.example_tasks], False)[batch.sequence_examples]


def ascend(noise_TE: Tensor, gradient_TE: Tensor, lengths_S: Tensor, ball: Ball) -> Tensor:
    """The noise after one step of ascent, (T, E), without a graph. `lengths_S`: tokens of each sequence."""
    size_T1 = _norms(gradient_TE, lengths_S, ball)
    direction_TE = gradient_TE / size_T1
    moves_TE = torch.isfinite(direction_TE) & torch.isfinite(size_T1)  # 0 / 0 is not a number either
    moved_TE = noise_TE + ball.step_size * torch.where(moves_TE, direction_TE, 0.0)
    if ball.norm == "inf":
        return moved_TE.clamp(-ball.radius, ball.radius)
    shrink_T1 = (ball.radius / _norms(moved_TE, lengths_S, ball)).clamp(max=1.0)  # radius / 0 is inf: 1
    return moved_TE * shrink_T1


def _norms(values_TE: Tensor, lengths_S: Tensor, ball: Ball) -> Tensor:
    """(T, 1): the norm of each token's values, or of its sequence's."""
    order = {"inf": math.inf, "l2": 2}[ball.norm]
    norms_T1 = torch.linalg.vector_norm(values_TE, ord=order, dim=1, keepdim=True)
    if ball.per == "token":
        return norms_T1
    if ball.norm == "inf":
        norms_S1 = torch.segment_reduce(norms_T1, "max", lengths=lengths_S, unsafe=True)
    else:
        norms_S1 = torch.segment_reduce(norms_T1**2, "sum", lengths=lengths_S, unsafe=True).sqrt()
    return torch.repeat_interleave(norms_S1, lengths_S, dim=0, output_size=len(values_TE))
