"""Noise on word embeddings: drawn for each example, moved along a gradient. Knows no model and no loss.

    d <- P(d + step_size g / |g|)       P: to the nearest point of |d| <= radius

with |.| the largest element (inf) or the Euclidean length (l2), of each token or of each sequence. Where g is
zero or not finite, d stays as it is. That is one step of projected gradient ascent: SMART's (Jiang et al.
2020, arXiv:1911.03437, algorithm 1; their code normalises each token's gradient) and FreeLB's (Zhu et al.
2020, arXiv:1909.11764, algorithm 1; that of each sequence).

Noise is drawn on the CPU by a generator seeded for each sequence, one after the other. A GPU would need a
kernel for each of them; there it is drawn from counters instead, in some thirty passes over the micro-batch
(model/dropout/counter_masks.py has the words). So a seed has other noise on a GPU than on a CPU.

Shape legend: T packed tokens, S sequences, E word embeddings, W words of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.counter_hash import GOLDEN, mix_word
from mtdnn_ds.model.dropout.counter_masks import mix_, signed
from mtdnn_ds.runs.device import without_waiting

PURPOSE = 0x6E6F6973  # so that no other stream of the seed meets this one


@dataclass(frozen=True, kw_only=True, slots=True)
class Ball:
    """Where noise may go, and how far a step of ascent takes it."""

    norm: Literal["inf", "l2"]
    per: Literal["token", "sequence"]
    radius: float
    step_size: float


def draw_noise(
    host_batch: PackedBatch,
    batch: PackedBatch,
    *,
    width: int,
    is_noisy_N: np.ndarray,
    std: float | None,
    ball: Ball,
    seed: int,
    step: int,
) -> Tensor:
    """(T, E) float32 where `batch` is: N(0, std^2), or, where `std` is None, FreeLB's.

    That is uniform in (-r, r), so that an inf norm is r at most, and of an l2 norm r divided by the root of
    the number of elements. Drawn from (seed, step, task, example, number of the sequence in it) alone, so it
    does not depend on how the step was cut up; zero for the sequences of tasks outside `is_noisy_N` and for
    fillers. `host_batch` is the same micro-batch on the host. Never waits for the device.
    """
    if batch.input_ids.device.type == "cpu":
        return generator_noise(
            host_batch, width=width, is_noisy_N=is_noisy_N, std=std, ball=ball, seed=seed, step=step
        )

    noise_TE = counter_noise(batch, width=width, std=std, ball=ball, seed=seed, step=step)
    is_noisy_T1 = without_waiting(noisy_tokens(host_batch, is_noisy_N), noise_TE.device)
    return noise_TE.mul_(is_noisy_T1)


def generator_noise(
    batch: PackedBatch,
    *,
    width: int,
    is_noisy_N: np.ndarray,
    std: float | None,
    ball: Ball,
    seed: int,
    step: int,
) -> Tensor:
    """The noise of a micro-batch on the CPU."""
    lengths = batch.cu_seqlens.diff().tolist()
    noise_TE = torch.zeros((sum(lengths), width))
    generator = torch.Generator()
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


def counter_noise(
    batch: PackedBatch, *, width: int, std: float | None, ball: Ball, seed: int, step: int
) -> Tensor:
    """The noise of a micro-batch on any device, of all its sequences.

    Word w of a token holds the draws of columns 2 w and 2 w + 1, 32 bits each, the lower first:

        step key   mix(mix(mix(seed) + PURPOSE) + step)
        token key  mix(mix(sequence key + step key) + position * GOLDEN)
        word       mix(token key + w * GOLDEN)

    As integers from -2^31, divided by 2^31, they are uniform; a pair (u, v) of fractions of 2^32 becomes two
    normal numbers, sqrt(-2 ln u) times cosine and sine of 2 pi v (Box and Muller 1958).
    """
    assert batch.sequence_keys is not None, "a training micro-batch has a key for each sequence"
    lengths_S, num_tokens = batch.cu_seqlens.diff().long(), len(batch.input_ids)
    of_step = signed(mix_word(mix_word(mix_word(seed) + PURPOSE) + step))

    keys_S = mix_(batch.sequence_keys + of_step)
    starts_T = torch.repeat_interleave(keys_S, lengths_S, output_size=num_tokens)
    keys_T = mix_(starts_T.add_(batch.position_ids * signed(GOLDEN)))
    counters_W = torch.arange((width + 1) // 2, device=keys_T.device) * signed(GOLDEN)
    draws_TW2 = mix_(keys_T[:, None] + counters_W).view(torch.int32).view(num_tokens, -1, 2).float()

    if std is not None:
        u_TW, v_TW = draws_TW2.add_(2.0**31 + 0.5).mul_(2.0**-32).unbind(2)  # never 0
        size_TW, angle_TW = u_TW.log().mul_(-2.0).sqrt_().mul_(std), v_TW * (2 * math.pi)
        pairs_TW2 = torch.stack([size_TW * angle_TW.cos(), size_TW * angle_TW.sin()], dim=2)
        return pairs_TW2.flatten(1)[:, :width].contiguous()

    uniform_TE = draws_TW2.mul_(2.0**-31).flatten(1)[:, :width]
    if ball.norm == "inf":
        return uniform_TE * ball.radius
    elements_S = torch.full_like(lengths_S, width)
    if ball.per == "sequence":
        elements_S = lengths_S * width
    radius_S = ball.radius / elements_S.float().sqrt()
    return uniform_TE * torch.repeat_interleave(radius_S, lengths_S, output_size=num_tokens)[:, None]


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
