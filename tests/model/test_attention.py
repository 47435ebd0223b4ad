"""Attention groups and back ends against independent implementations:
plain softmax per sequence, exhaustive search.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.packed_batches import packed_batch
from torch.nn.attention import varlen

from mtdnn_ds.batch.groups import CUDA_COSTS, attention_groups, cheapest_cut
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model import attention_choice, varlen_attention
from mtdnn_ds.model.attention import attend
from mtdnn_ds.model.attention_choice import resolve_backend
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


def test_a_gpu_has_few_groups_of_many_sequences() -> None:
    """16,384 tokens of GLUE-like lengths: on a GPU a group's launches cost as much as two million pairs."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(3.45, 0.55, size=600), 6, 128).astype(int)
    lengths = np.sort(lengths[: int(np.searchsorted(np.cumsum(lengths), 16_384))])
    assert (len(lengths), int(lengths.sum()), int(lengths.max())) == (457, 16_346, 128)
    assert len(attention_groups(lengths, CUDA_COSTS)[0]) == 2
    assert len(attention_groups(lengths)[0]) == 27


def test_lengths_out_of_order_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="ascending"):
        attention_groups(np.array([3, 2]))


LENGTHS = [1, 4, 4, 7, 19]


@pytest.mark.parametrize(
    ("backend", "one_group_each"),
    [("grouped", False), ("grouped", True), ("padded", False), ("varlen", False)],
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


@pytest.mark.parametrize("backend", ["grouped", "varlen"])
def test_attention_dropout_keeps_the_mean_and_stays_within_sequences(backend: str) -> None:
    batch = packed_batch([3, 5], one_group_each=False)
    query = torch.zeros(8, 1, 1)  # equal weights: 1/3 within the first sequence, 1/5 within the second
    value = torch.tensor([1.0, 1.0, 1.0, 10.0, 10.0, 10.0, 10.0, 10.0]).view(8, 1, 1)
    torch.manual_seed(0)
    layout = attention_layout(batch, backend)
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
    assert reason == "attention back end grouped (varlen: it needs CUDA and this run is on cpu)"


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


def on_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(attention_choice, "is_flash_attention_available", lambda: True)


def test_auto_takes_torchs_kernel_on_cuda_with_its_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, (9, 0))
    facts = {"head_size": 64, "attention_dropout": 0.1}
    backend, reason = resolve_backend("auto", "cuda", torch.bfloat16, **facts)
    assert (backend, reason) == (
        "varlen",
        "attention back end varlen: attention runs in half precision on CUDA",
    )
    assert resolve_backend("auto", "cuda", torch.float32, **facts) == (
        "grouped",
        "attention back end grouped (varlen: it needs fp16 or bf16 and attention runs in float32)",
    )


def test_a_torch_without_flash_attention_has_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(attention_choice, "is_flash_attention_available", lambda: False)
    assert resolve_backend("auto", "cuda", torch.bfloat16, head_size=64) == (
        "grouped",
        "attention back end grouped (varlen: this torch was built without flash attention)",
    )


@pytest.mark.parametrize(
    ("capability", "head_size", "told"),
    [
        ((7, 5), 64, "it needs a GPU of compute capability 8.0 (Ampere) or newer"),
        ((9, 0), 26, "it takes heads of a multiple of 8 and at most 256 elements, and these have 26"),
        ((9, 0), 264, "it takes heads of a multiple of 8 and at most 256 elements, and these have 264"),
        ((8, 9), 256, "it takes heads of a multiple of 8 and at most 192 elements, and these have 256"),
    ],
)
def test_heads_and_gpus_that_a_kernel_cannot_take(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], head_size: int, told: str
) -> None:
    on_gpu(monkeypatch, capability)
    auto = resolve_backend("auto", "cuda", torch.float16, head_size=head_size)
    assert auto == ("grouped", f"attention back end grouped (varlen: {told})")
    with pytest.raises(ConfigError) as error:
        resolve_backend("varlen", "cuda", torch.float16, head_size=head_size)
    assert error.value.problems == (
        f"encoder.attention=varlen cannot run here: {told}; use 'auto' or 'grouped'",
    )


def test_another_package_of_flash_attns_name_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_gpu(monkeypatch, (9, 0))
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)  # as flash-attn 4 has it
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"flash cannot run here: flash-attn 2 is not installed \(module "):
        resolve_backend("flash", "cuda", torch.bfloat16, head_size=64)


def test_a_torch_without_the_private_op_has_its_public_one_and_says_what_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(attention_choice, "HAS_FLASH_OP", False)
    monkeypatch.setattr(torch, "__version__", "2.99")
    facts = {"head_size": 64, "attention_dropout": 0.1, "dropout": "model"}
    assert attention_choice.choose_backend("auto", "cuda", torch.bfloat16, **facts) == (
        "grouped",
        ("attention back end grouped (varlen: that of torch 2.99 has no dropout)",),
    )
    assert attention_choice.choose_backend("varlen", "cuda", torch.bfloat16, **facts) == (
        "varlen",
        (
            "attention back end varlen: asked for by encoder.attention",
            "attention back end varlen of torch 2.99 has no dropout: "
            "the encoder's attention dropout of 0.1 is not applied",
        ),
    )

    # The public function knows no scale but 1 / sqrt(H), so that the queries carry the rest of ours.
    given: list[tuple[torch.Tensor, ...]] = []
    monkeypatch.setattr(varlen_attention, "HAS_FLASH_OP", False)
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args: given.append(args) or args[0])
    query = torch.randn(3, 1, 16)
    starts = torch.tensor([0, 3], dtype=torch.int32)
    varlen_attention.varlen_attention(query, query, query, starts, 3, dropout=0.0, scaling=0.5)
    torch.testing.assert_close(given[0][0], 2 * query)
    assert given[0][5:] == (3, 3)


def test_the_private_ops_have_the_arguments_that_they_are_given() -> None:
    assert varlen_attention.HAS_FLASH_OP
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(varlen_attention, "FLASH_ARGUMENTS", ("query", "key", "values"))
        assert not varlen_attention._has_flash_op()


def test_the_op_is_what_autograd_and_the_compiler_take_it_for() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(9, 2, 8, generator=generator, requires_grad=True) for _ in range(3))
    starts = torch.tensor([0, 4, 9], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.mtdnn_ds.varlen_attention.default, (query, key, value, starts, 5, 0.0, 0.35)
    )
