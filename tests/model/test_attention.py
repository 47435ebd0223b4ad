"""Attention groups and back ends against independent implementations:
plain softmax per sequence, exhaustive search.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.packed_batches import packed_batch

from mtdnn_ds.batch.groups import attention_groups, cheapest_cut
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.attention import attend, resolve_backend
from mtdnn_ds.model.attention_layout import attention_layout
from mtdnn_ds.model.dropout.word_dropout import WordDropout, word_dropout


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float
) -> torch.Tensor:
    outputs = []
    for q, k, v in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True):
        weights = torch.einsum("inh,jnh->nij", q, k).mul(scaling).softmax(-1)
        outputs.append(torch.einsum("nij,jnh->inh", weights, v))
    return torch.cat(outputs)


def test_groups_of_the_worked_example() -> None:
    (group,), packed_to_padded = attention_groups(np.array([2, 3]))
    assert group.padded_to_packed.tolist() == [[0, 1, 5], [2, 3, 4]]
    assert group.key_mask is not None
    assert group.key_mask[:, 0, 0].tolist() == [[True, True, False], [True, True, True]]
    assert packed_to_padded.tolist() == [0, 1, 3, 4, 5]


def test_far_lengths_part_and_equal_lengths_need_no_mask() -> None:
    groups, packed_to_padded = attention_groups(np.array([2, 2, 2, 300, 301]))
    assert [tuple(group.padded_to_packed.shape) for group in groups] == [(3, 2), (2, 301)]
    assert groups[0].key_mask is None
    assert groups[1].key_mask is not None
    assert groups[1].padded_to_packed[0, -2:].tolist() == [
        305,
        607,
    ]  # 607 tokens in all: the last column of the first row is padding
    assert packed_to_padded[[0, 5, 6, 305, 306]].tolist() == [0, 5, 6, 305, 307]


@pytest.mark.parametrize("seed", range(20))
def test_cut_is_the_cheapest_of_all_cuts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(1, 120, size=9))

    def cost(first: tuple[int, ...]) -> int:
        ends = [*first[1:], len(lengths)]
        return sum(
            (end - start) * int(lengths[end - 1]) * (int(lengths[end - 1]) + 50) + 3000
            for start, end in zip(first, ends, strict=True)
        )

    every_cut = [(0, *inner) for count in range(9) for inner in itertools.combinations(range(1, 9), count)]
    ours = cheapest_cut(lengths, token_cost_pairs=50, group_overhead_pairs=3000)
    assert cost(tuple(ours)) == min(cost(cut) for cut in every_cut)


@pytest.mark.parametrize("seed", range(5))
def test_groups_never_cost_more_than_one_group_and_hold_each_token_once(seed: int) -> None:
    lengths = np.sort(np.random.default_rng(seed).integers(3, 129, size=64))
    groups, packed_to_padded = attention_groups(lengths)
    padded_rows = sum(group.padded_to_packed.numel() for group in groups)
    work = sum(len(group.padded_to_packed) * group.padded_to_packed.shape[1] ** 2 for group in groups)
    assert padded_rows <= 64 * lengths.max()
    assert work <= 64 * lengths.max() ** 2
    indices = torch.cat([group.padded_to_packed.flatten() for group in groups])
    assert indices[packed_to_padded].tolist() == list(range(lengths.sum()))
    assert int((indices == lengths.sum()).sum()) == padded_rows - lengths.sum()


def test_lengths_out_of_order_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="ascending"):
        attention_groups(np.array([3, 2]))


LENGTHS = [1, 4, 4, 7, 19]


@pytest.mark.parametrize(
    ("backend", "one_group_each"), [("grouped", False), ("grouped", True), ("padded", False)]
)
def test_back_ends_equal_plain_attention_with_gradients(backend: str, one_group_each: bool) -> None:
    batch = packed_batch(LENGTHS, one_group_each=one_group_each)
    assert len(batch.attention_groups) == (4 if one_group_each else 2)
    layout = attention_layout(batch, backend)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    ours = [torch.randn(35, 2, 8, generator=generator).requires_grad_() for _ in range(3)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    weights = torch.randn(35, 2, 8, generator=generator)
    out = attend(*ours, layout, dropout=0.0, scaling=0.3)
    expected = plain_attention(*theirs, LENGTHS, 0.3)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-5)


def test_sequences_of_one_length_need_no_gather() -> None:
    batch = packed_batch([6, 6, 6])
    query = torch.randn(18, 2, 4, generator=torch.Generator().manual_seed(2))
    out = attend(query, query, query, attention_layout(batch, "grouped"), dropout=0.0, scaling=0.5)
    torch.testing.assert_close(
        out, plain_attention(query, query, query, [6, 6, 6], 0.5), atol=1e-6, rtol=1e-5
    )


def test_attention_dropout_keeps_the_mean_and_stays_within_sequences() -> None:
    batch = packed_batch([3, 5], one_group_each=False)
    query = torch.zeros(8, 1, 1)  # equal weights: 1/3 within the first sequence, 1/5 within the second
    value = torch.tensor([1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 10.0, 10.0]).view(8, 1, 1)
    torch.manual_seed(0)
    layout = attention_layout(batch, "grouped")
    draws = torch.stack(
        [attend(query, query, value, layout, dropout=0.25, scaling=1.0).flatten() for _ in range(1000)]
    )
    # Each output is a mean of 3 (5) draws of value / 0.75 with probability 0.75:
    # the mean of 1000 has a standard error of 0.011 (0.082).
    torch.testing.assert_close(draws[:, :3].mean(0), torch.ones(3), atol=0.05, rtol=0)
    torch.testing.assert_close(draws[:, 3:].mean(0), torch.full((5,), 10.0), atol=0.4, rtol=0)
    assert set(draws[:, 0].mul(9 / 4).round().int().tolist()) == {
        0,
        1,
        2,
        3,
    }  # kept keys times (1/3) / 0.75 = 4/9


def test_word_dropout_rate_scale_and_gradient() -> None:
    torch.manual_seed(0)
    rows = torch.ones(1000, 401, requires_grad=True)  # an odd count: the last word is used in part
    out = word_dropout(rows, 0.1)
    kept = out != 0
    assert abs(1 - kept.float().mean().item() - 0.1) < 0.003  # standard error 0.0005
    torch.testing.assert_close(out[kept].unique(), torch.tensor([1 / 0.9]), atol=1e-4, rtol=0)
    out.sum().backward()
    assert torch.equal(rows.grad, out.detach())


def test_word_dropout_module_is_off_in_evaluation_and_repeats_with_the_seed() -> None:
    module, rows = WordDropout(0.5), torch.ones(64)
    torch.manual_seed(3)
    first = module(rows)
    torch.manual_seed(3)
    assert torch.equal(first, module(rows))
    assert not torch.equal(first, module(rows))
    assert module.eval()(rows) is rows


def test_auto_takes_grouped_on_cpu_and_says_why() -> None:
    backend, reason = resolve_backend("auto", "cpu", torch.float32)
    assert backend == "grouped"
    assert reason == "attention back end grouped (flash: it needs CUDA and this run is on cpu)"


def test_back_end_that_cannot_run_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"encoder.attention=varlen cannot run here: it needs CUDA and this run is on cpu; "
            r"use 'auto' or 'grouped'"
        ),
    ):
        resolve_backend("varlen", "cpu", torch.bfloat16)
    with pytest.raises(ConfigError, match=r"encoder.attention=flash cannot run here: it needs CUDA"):
        resolve_backend("flash", "cpu", torch.bfloat16)
    with pytest.raises(
        ConfigError, match=r"encoder.attention=groupd: unknown back end; did you mean 'grouped'\?"
    ):
        resolve_backend("groupd", "cpu", torch.float32)
