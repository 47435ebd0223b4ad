"""Noise that GPUs draw from counters (train/regularizers/noise.py): by its formulas, wherever a step is cut,
with the distribution asked for, and without waiting for the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.packed_batches import packed_batch
from torch import Tensor

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.train.regularizers.noise import Ball, counter_noise, draw_noise, noisy_tokens

LENGTHS = [4, 6, 7, 9]
PURPOSE, GOLDEN = 0x6E6F6973, 0x9E3779B97F4A7C15


def key_of(member: int) -> int:
    return 7**20 * (member + 1)


def batch_of(members: Sequence[int]) -> PackedBatch:
    """Some of four sequences, each of an example of its own, with keys as training's micro-batches have."""
    keys = torch.tensor([key_of(member) for member in members])
    return dataclasses.replace(packed_batch([LENGTHS[member] for member in members]), sequence_keys=keys)


def drawn(
    batch: PackedBatch,
    *,
    width: int = 32,
    std: float | None = 0.5,
    seed: int = 1,
    step: int = 1,
    norm: Any = "l2",
    per: Any = "sequence",
) -> Tensor:
    ball = Ball(norm=norm, per=per, radius=0.4, step_size=1.0)
    return counter_noise(batch, width=width, std=std, ball=ball, seed=seed, step=step)


def mix(word: int) -> int:
    word = (word + GOLDEN) % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def signed_half(word: int) -> int:
    """The low 32 bits as an integer from -2^31."""
    return (word + 2**31) % 2**32 - 2**31


def test_it_equals_its_formulas_on_pythons_whole_numbers() -> None:
    normal, uniform = (drawn(batch_of([0, 2]), width=5, step=3, std=std) for std in (0.5, None))
    of_step, row = mix(mix(mix(1) + PURPOSE) + 3), 0
    for member in (0, 2):
        for position in range(LENGTHS[member]):
            token_key = mix(mix(key_of(member) + of_step) + position * GOLDEN)
            expected_normal, expected_uniform = [], []
            for counter in range(3):
                word = mix(token_key + counter * GOLDEN)
                halves = (signed_half(word), signed_half(word >> 32))
                u, v = ((half + 2**31 + 0.5) / 2**32 for half in halves)
                size = 0.5 * math.sqrt(-2 * math.log(u))
                expected_normal += [size * math.cos(2 * math.pi * v), size * math.sin(2 * math.pi * v)]
                expected_uniform += [half / 2**31 * 0.4 / math.sqrt(5 * LENGTHS[member]) for half in halves]

            torch.testing.assert_close(normal[row], torch.tensor(expected_normal[:5]), atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(uniform[row], torch.tensor(expected_uniform[:5]), atol=1e-8, rtol=1e-5)
            row += 1


@pytest.mark.parametrize("std", [0.5, None])
def test_it_does_not_depend_on_how_the_step_was_cut(std: float | None) -> None:
    whole = drawn(batch_of([0, 1, 2, 3]), std=std).split(LENGTHS)
    for members in ([0, 2], [1, 3]):
        parts = drawn(batch_of(members), std=std).split([LENGTHS[member] for member in members])
        for member, own in zip(members, parts, strict=True):
            assert torch.equal(own, whole[member])

    assert not torch.equal(whole[0], whole[1][:4])
    assert not torch.equal(whole[0][0], whole[0][1])
    assert not torch.equal(whole[0], drawn(batch_of([0]), std=std, step=2))
    assert not torch.equal(whole[0], drawn(batch_of([0]), std=std, seed=2))


def test_normal_numbers_have_normal_moments_and_no_neighbours() -> None:
    normal = drawn(batch_of([0, 1, 2, 3]), width=4001).double() / 0.5
    assert normal.shape == (26, 4001)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        sigma = math.sqrt(variance / normal.numel())
        assert float((normal**power).mean()) == pytest.approx(moment, abs=4.5 * sigma)
    for ours, theirs in ((normal[:, 1:], normal[:, :-1]), (normal[1:], normal[:-1])):
        assert abs(float((ours * theirs).mean())) < 4.5 / math.sqrt(ours.numel())


@pytest.mark.parametrize(
    ("norm", "per", "bounds"),
    [
        ("inf", "token", [0.4] * 4),
        ("inf", "sequence", [0.4] * 4),
        ("l2", "token", [0.4 / math.sqrt(4001)] * 4),
        ("l2", "sequence", [0.4 / math.sqrt(4001 * length) for length in LENGTHS]),
    ],
)
def test_uniform_numbers_fill_their_bounds(norm: str, per: str, bounds: list[float]) -> None:
    parts = drawn(batch_of([0, 1, 2, 3]), width=4001, std=None, norm=norm, per=per).split(LENGTHS)
    for part, bound in zip(parts, bounds, strict=True):
        assert float(part.abs().max()) == pytest.approx(bound, rel=1e-3)
        assert float(part.double().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("std", [0.5, None])
def test_nothing_waits_for_the_device(std: float | None) -> None:
    """On the meta device, tensors have no values: whatever asked for one would fail."""
    host_batch = batch_of([0, 1, 2])
    noise = draw_noise(
        host_batch,
        host_batch.to("meta"),
        width=8,
        is_noisy_N=np.array([True]),
        std=std,
        ball=Ball(norm="l2", per="sequence", radius=0.4, step_size=1.0),
        seed=1,
        step=1,
    )
    assert noise.shape == (17, 8) and noise.device.type == "meta"


def test_tokens_of_the_tasks_asked_for() -> None:
    batch = dataclasses.replace(batch_of([0, 1, 2]), example_tasks=np.array([0, 1, 0]))
    is_noisy = noisy_tokens(batch, np.array([False, True]))
    assert is_noisy.flatten().tolist() == [False] * 4 + [True] * 6 + [False] * 7
