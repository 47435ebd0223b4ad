"""train.dropout=counter inside one process:
masks equal a plain Python reference, are random, and depend on nothing but what they should.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.encoder_families import CONFIGS, SIZES, SPECS
from helpers.packed_batches import packed_batch
from torch import Tensor, nn
from transformers import AlbertConfig, AutoModel, ModernBertConfig

from mtdnn_ds.batch.packed import PackedBatch, Targets
from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.counter_hash import mix_word, sequence_keys, stream_of
from mtdnn_ds.model.attention_choice import counter_backend
from mtdnn_ds.model.dropout.counter_masks import (
    attention_dropout,
    counter_dropout,
    dropout_keys,
    row_counter_dropout,
    row_words,
    scaled_mask,
)
from mtdnn_ds.model.encoder import PackedEncoder, load_encoder
from mtdnn_ds.model.heads.custom import build_custom_heads
from mtdnn_ds.model.multitask import MultiTaskNet, build_model
from mtdnn_ds.runs.state import RunState, check_fit
from mtdnn_ds.tasks.layout import head_layout

LENGTHS = [2, 5, 5, 9, 30]
KEYS = [11, 22, 33, 44, 55]  # of the sequences
GOLDEN = 0x9E3779B97F4A7C15


WITH_DROPOUT = {  # Hugging Face's default for these is none
    "albert": AlbertConfig(
        **SIZES, embedding_size=16, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    ),
    "modernbert": ModernBertConfig(
        **SIZES, pad_token_id=0, local_attention=4, mlp_dropout=0.1, embedding_dropout=0.1
    ),
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    for name, config in {**CONFIGS, **WITH_DROPOUT}.items():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


# A reference without tensors: docs/dropout.md's formulas on Python's whole numbers.


def reference_mix(word: int) -> int:
    word = (word + GOLDEN) & (2**64 - 1)
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return word ^ (word >> 31)


def reference_key(sequence_key: int, position: int, *, seed: int, step: int, number: int) -> int:
    of_pass = reference_mix(reference_mix(reference_mix(seed) + step) + number)
    return reference_mix(reference_mix(sequence_key + of_pass) + position * GOLDEN)


def reference_kept(key: int, stream: int, head: int, column: int, p: float) -> bool:
    word = reference_mix(key + stream + ((head << 20) + column // 4) * GOLDEN)
    draw = (word >> 16 * (column % 4)) & 0xFFFF
    return (draw ^ 0x8000) >= round(p * 65536)  # draws count from -2^15 in two's complement


def reference_stream(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def signed(words: list[int]) -> Tensor:
    return torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))


def batch_of(
    lengths: list[int], keys: list[int], step: int = 3, tokens: list[Tensor] | None = None, **changes: Any
) -> PackedBatch:
    batch = packed_batch(lengths)
    ids = batch.input_ids if tokens is None else torch.cat(tokens)
    types = torch.zeros_like(ids)
    return dataclasses.replace(
        batch, input_ids=ids, token_type_ids=types, sequence_keys=signed(keys), step=step, **changes
    )


def test_the_hash_is_splitmix64() -> None:
    # The first words of the generator that starts at 0, from https://prng.di.unimi.it/splitmix64.c.
    assert [mix_word(word * GOLDEN % 2**64) for word in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


def test_keys_of_tokens_equal_the_reference() -> None:
    keys = dropout_keys(batch_of([2, 3], [2**64 - 5, 7]), seed=9, number=2)
    expected = [
        reference_key(key, place, seed=9, step=3, number=2)
        for key, size in ((2**64 - 5, 2), (7, 3))
        for place in range(size)
    ]
    assert keys.of_token_T.tolist() == signed(expected).tolist()


@pytest.mark.parametrize("width", [1, 6, 7, 32])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9999999, 1e-6])
def test_masks_of_hidden_states_equal_the_reference(width: int, p: float) -> None:
    keys = [reference_mix(row) for row in range(40)]
    ours = counter_dropout(torch.ones(5, 8, width), p, signed(keys).view(5, 8), 2**63 + 12345).view(40, width)
    levels = min(round(p * 65536), 65535)
    kept = [
        [reference_kept(key, 2**63 + 12345, 0, column, levels / 65536) for column in range(width)]
        for key in keys
    ]
    assert torch.equal(ours, torch.tensor(kept) * torch.tensor(65536 / (65536 - levels)))


def test_masks_of_attention_equal_the_reference_and_do_not_depend_on_padding() -> None:
    keys = [reference_mix(row) for row in range(12)]
    ours = attention_dropout(torch.ones(2, 3, 6, 6), 0.3, signed(keys).view(2, 6), 99)
    for sequence in range(2):
        for head in range(3):
            for query in range(6):
                kept = [reference_kept(keys[6 * sequence + query], 99, head, key, 0.3) for key in range(6)]
                assert (ours[sequence, head, query] > 0).tolist() == kept
    longer = attention_dropout(
        torch.ones(2, 3, 9, 9), 0.3, nn.functional.pad(signed(keys).view(2, 6), (0, 3)), 99
    )
    assert torch.equal(longer[:, :, :6, :6], ours)


def test_masks_of_heads_have_their_rows_probability_and_their_terms_stream() -> None:
    keys, terms, p = [reference_mix(row) for row in range(4)], [0, 2, 1, 2], [0.0, 0.25, 0.5, 0.25]
    ours = row_counter_dropout(torch.ones(4, 10), torch.tensor(p), signed(keys), torch.tensor(terms), 5)
    kept = [
        [reference_kept(key, 5, term, column, one) for column in range(10)]
        for key, term, one in zip(keys, terms, p, strict=True)
    ]
    assert torch.equal(ours, torch.tensor(kept) / (1 - torch.tensor(p)[:, None]))
    words = [
        [reference_mix(key + 5 + ((term << 20) + step) * GOLDEN) for step in range(5)]
        for key, term in zip(keys, terms, strict=True)
    ]
    assert row_words(signed(keys), torch.tensor(terms), 5, 5).tolist() == [
        signed(row).tolist() for row in words
    ]


def test_large_masks_are_hashed_in_parts_and_equal_small_ones() -> None:
    keys = torch.empty(1500, dtype=torch.int64).random_(
        -(2**63), None, generator=torch.Generator().manual_seed(0)
    )
    whole = scaled_mask(keys, 0.1, 384, torch.float32)  # 144,000 words: three parts
    assert torch.equal(
        whole, torch.cat([scaled_mask(part, 0.1, 384, torch.float32) for part in keys.split(7)])
    )
    assert torch.equal(whole > 0, scaled_mask(keys, 0.1, 384, torch.bfloat16) > 0)


def test_nothing_waits_for_the_device() -> None:
    """On the meta device, tensors have no values: whatever asked for one would fail."""
    batch = batch_of(LENGTHS, KEYS).to("meta")
    keys = dropout_keys(batch, seed=1).of_token_T
    assert counter_dropout(torch.ones(51, 32, device="meta"), 0.1, keys, 1).shape == (51, 32)
    assert attention_dropout(torch.ones(3, 4, 17, 17, device="meta"), 0.1, keys.view(3, 17), 1).shape == (
        3,
        4,
        17,
        17,
    )
    assert row_counter_dropout(
        torch.ones(51, 32, device="meta"), torch.ones(51, device="meta"), keys, keys, 1
    ).shape == (51, 32)


# Randomness


ROWS, WIDTH = 512, 256


def kept_of(
    *, seed: int = 0, step: int = 1, number: int = 0, stream: int = 1, sequence: int = 0, p: float = 0.5
) -> Tensor:
    """Masks of one long sequence, (positions, columns)."""
    batch = batch_of(
        [ROWS], [reference_mix(sequence)], step=step, tokens=[torch.zeros(ROWS, dtype=torch.int64)]
    )
    keys = dropout_keys(batch, seed=seed, number=number).of_token_T
    return (scaled_mask(keys + signed([reference_mix(stream)]), p, WIDTH, torch.float32) > 0).double()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_neighbours_in_every_direction_are_independent(p: float) -> None:
    kept = kept_of(p=p)
    others = {
        "position": (kept[1:], kept[:-1]),
        "column": (kept[:, 1:], kept[:, :-1]),
        "column of the next word": (kept[:, 4:], kept[:, :-4]),
        "seed": (kept, kept_of(p=p, seed=1)),
        "step": (kept, kept_of(p=p, step=2)),
        "pass": (kept, kept_of(p=p, number=1)),
        "layer": (kept, kept_of(p=p, stream=2)),
        "sequence": (kept, kept_of(p=p, sequence=1)),
        "sequence and position": (kept[1:], kept_of(p=p, sequence=1)[:-1]),
    }
    heads = (
        attention_dropout(
            torch.ones(4, 12, 64, 64), p, signed([reference_mix(row) for row in range(256)]).view(4, 64), 3
        )
        > 0
    )
    others["head"] = (heads[:, 1:].double(), heads[:, :-1].double())
    below = torch.ones(64, 64).tril(-1).bool()
    others["query and key"] = (heads[:, :, below].double(), heads.transpose(2, 3)[:, :, below].double())
    for name, (ours, theirs) in others.items():
        size = ours.numel()
        correlation = ((ours - (1 - p)) * (theirs - (1 - p))).sum() / (size * p * (1 - p))
        assert abs(correlation) < 4.5 / size**0.5, f"{name}: correlation {correlation:.5f} of {size} pairs"


def test_draws_are_uniform_in_every_16_bits_and_jointly() -> None:
    keys = dropout_keys(
        batch_of([4096], [5], tokens=[torch.zeros(4096, dtype=torch.int64)]), seed=0
    ).of_token_T
    draws = (
        row_words(keys, torch.zeros(4096, dtype=torch.int64), 7, 64).view(torch.int16).int() + 2**15
    )  # 2^20 draws
    for shift in (0, 8):
        assert chi_square(torch.bincount((draws.flatten() >> shift) & 255, minlength=256)) < 350, (
            shift
        )  # 255 degrees, 4 sigma
    top = draws >> 12
    for ours, theirs in ((top[:, 1:], top[:, :-1]), (top[1:], top[:-1])):
        assert chi_square(torch.bincount((16 * ours + theirs).flatten(), minlength=256)) < 350


def chi_square(counts: Tensor) -> float:
    expected = float(counts.sum()) / len(counts)
    return float(((counts - expected) ** 2).sum() / expected)


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_the_mean_is_kept_and_the_share_is_p(p: float) -> None:
    mask = scaled_mask(
        dropout_keys(batch_of([2048], [1], tokens=[torch.zeros(2048, dtype=torch.int64)]), seed=4).of_token_T,
        p,
        512,
        torch.float32,
    )
    exact = round(p * 65536) / 65536
    assert mask.max().item() == pytest.approx(1 / (1 - exact), rel=1e-6)
    sigma = (exact * (1 - exact) / mask.numel()) ** 0.5
    assert (mask == 0).double().mean().item() == pytest.approx(exact, abs=4 * sigma)


def test_keys_of_sequences_know_their_example_alone() -> None:
    streams, rows, epochs = (
        np.array([stream_of("a"), stream_of("b"), stream_of("a")], np.uint64),
        np.array([4, 4, 4]),
        np.array([0, 0, 1]),
    )
    keys = sequence_keys(np.array([0, 1, 0, 2, -1]), streams, rows, epochs)
    assert len(set(keys.tolist())) == 5, "task, epoch and place in the example make a difference"
    alone = sequence_keys(np.array([0, 0]), streams[:1], rows[:1], epochs[:1])
    assert alone.tolist() == keys[[0, 2]].tolist()
    assert (
        sequence_keys(np.array([1, 0]), streams[1:], rows[1:], epochs[1:]).tolist() == keys[[3, 1]].tolist()
    )


# Encoders


def counting(folder: Path, **settings: Any) -> PackedEncoder:
    return load_encoder(
        str(folder), attention=settings.pop("attention", "grouped"), dropout="counter", **settings
    )


def hidden_of(encoder: PackedEncoder, batch: PackedBatch, number: int = 0) -> Tensor:
    return encoder(batch, None, dropout_keys(batch, seed=1, number=number))


@pytest.mark.parametrize("backend", ["grouped", "padded"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_sequence_is_the_same_alone_and_among_others(
    encoders: dict[str, Path], name: str, backend: str
) -> None:
    encoder = counting(encoders[name], attention=backend)
    tokens = list(packed_batch(LENGTHS).input_ids.split(LENGTHS))
    together = hidden_of(encoder, batch_of(LENGTHS, KEYS, tokens=tokens))
    for part, ids, key in zip(together.split(LENGTHS), tokens, KEYS, strict=True):
        alone = hidden_of(encoder, batch_of([len(ids)], [key], tokens=[ids]))
        torch.testing.assert_close(part, alone, atol=2e-5, rtol=2e-5)
    other = hidden_of(encoder, batch_of(LENGTHS, KEYS, tokens=tokens), number=1)
    assert not torch.allclose(together, other, atol=1e-2)
    encoder.eval()
    assert torch.equal(
        hidden_of(encoder, batch_of(LENGTHS, KEYS)), hidden_of(encoder, batch_of(LENGTHS, KEYS), number=1)
    ), "off in evaluation"


def test_masks_inside_bert_equal_the_reference(encoders: dict[str, Path]) -> None:
    encoder, seen = counting(encoders["bert"]), {}
    for name in (
        "embeddings.dropout",
        "encoder.layer.0.attention.output.dropout",
        "encoder.layer.1.output.dropout",
    ):
        encoder.model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: (output[0] != 0)}),
        )
    hidden_of(encoder, batch_of(LENGTHS, KEYS, step=8))
    assert len(seen) == 3
    for name, kept in seen.items():
        stream = reference_stream(f"encoder.model.{name}")
        for sequence, position, token in ((0, 1, 1), (1, 0, 2), (4, 29, 50)):
            key = reference_key(KEYS[sequence], position, seed=1, step=8, number=0)
            assert kept[token].tolist() == [
                reference_kept(key, stream, 0, column, 0.1) for column in range(32)
            ]


def test_layers_that_share_a_module_have_masks_of_their_own(encoders: dict[str, Path]) -> None:
    encoder, seen = counting(encoders["albert"]), []
    (layer,) = (
        module for name, module in encoder.model.named_modules() if name.endswith("attention.output_dropout")
    )
    layer.register_forward_hook(lambda module, args, output: seen.append(output != 0))
    hidden_of(encoder, batch_of(LENGTHS, KEYS))
    assert len(seen) == 2 and not torch.equal(*seen)


def gradients(
    encoder: PackedEncoder, backward: Callable[[Tensor], None] = lambda loss: loss.backward()
) -> list[Tensor]:
    """Of two passes and two micro-batches, all forward before any goes backward."""
    encoder.zero_grad()
    batches = (batch_of(LENGTHS, KEYS), batch_of([4, 7], [1, 2]))
    weights = torch.linspace(-1, 1, 32)
    loss = sum(
        (hidden_of(encoder, batch, number) * weights).square().sum() for batch in batches for number in (0, 1)
    )
    assert isinstance(loss, Tensor)
    backward(loss)
    return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]


def in_a_thread(loss: Tensor) -> None:
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()


def twice(loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    loss.backward()


@pytest.mark.parametrize("name", ["bert", "deberta", "modernbert"])
def test_recomputed_layers_have_the_masks_of_their_own_pass(encoders: dict[str, Path], name: str) -> None:
    plain, saving = counting(encoders[name]), counting(encoders[name], gradient_checkpointing=True)
    expected = gradients(plain)
    for backward, times in ((Tensor.backward, 1), (in_a_thread, 1), (twice, 2)):
        for ours, theirs in zip(gradients(saving, backward), expected, strict=True):
            torch.testing.assert_close(
                ours, times * theirs, atol=1e-4 * max(1.0, theirs.abs().max().item()), rtol=1e-4
            )


def test_what_cannot_be_counted_is_refused(tmp_path: Path) -> None:
    AutoModel.from_config(
        ModernBertConfig(**SIZES, pad_token_id=0, local_attention=4, attention_dropout=0.1)
    ).save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"^train.dropout=counter: ModernBertModel draws random numbers outside torch.nn.Dropout",
    ):
        counting(tmp_path)
    assert load_encoder(str(tmp_path), attention="grouped").training, "the default mode takes it"


def test_kernels_that_take_no_masks_are_not_taken() -> None:
    assert counter_backend("auto", "flash", "fast", 0.1) == (
        "grouped",
        "attention back end grouped (flash cannot take the attention dropout masks of train.dropout=counter)",
    )
    assert counter_backend("auto", "flash", "fast", 0.0) == ("flash", "fast")
    assert counter_backend("padded", "padded", "asked for", 0.1) == ("padded", "asked for")
    for name in ("flash", "varlen"):
        with pytest.raises(ConfigError) as raised:
            counter_backend(name, name, "asked for", 0.1)  # type: ignore[arg-type]
        assert str(raised.value) == (
            f"encoder.attention={name}: it cannot take the masks of train.dropout=counter, "
            "and the encoder's attention dropout is 0.1; "
            "use 'auto' or 'grouped', or train.dropout=model"
        )


# Heads


def two_tasks(folder: Path, dropout: str) -> MultiTaskNet:
    specs = [dataclasses.replace(spec, dropout=p) for spec, p in zip(SPECS, (0.5, 0.2), strict=True)]
    return build_model(
        encoder_path=str(folder), specs=specs, layout=head_layout(specs), dropout=dropout, seed=6
    )  # type: ignore[arg-type]


def targets_of(rows: list[int], term: int, num: int) -> Targets:
    return Targets(
        rows=torch.tensor(rows, dtype=torch.int64),
        term_ids=torch.full((len(rows),), term),
        labels=torch.zeros(len(rows)),
        groups=torch.arange(len(rows)),
        examples=np.arange(num),
    )


def test_a_row_of_a_head_is_the_same_alone_and_among_others(encoders: dict[str, Path]) -> None:
    model, tokens = (
        two_tasks(encoders["bert"], "counter"),
        list(packed_batch(LENGTHS).input_ids.split(LENGTHS)),
    )
    targets = {"class": targets_of([4, 1], 0, 2), "score": targets_of([0, 3], 1, 2)}
    whole = batch_of(LENGTHS, KEYS, tokens=tokens, targets=targets, unit_counts=np.array([2.0, 2.0]))
    both, again, other = model(whole), model(whole), model.outputs(whole, number=1)
    assert torch.equal(both["class"], again["class"]) and not torch.equal(both["class"], other["class"])
    none = {"class": targets_of([], 0, 0), "score": targets_of([], 1, 0)}
    for form, sequence, row in (("class", 4, 0), ("class", 1, 1), ("score", 0, 0), ("score", 3, 1)):
        term = ("class", "score").index(form)
        alone = batch_of([LENGTHS[sequence]], [KEYS[sequence]], tokens=[tokens[sequence]])
        counts = np.array([1.0 - term, term])
        alone = dataclasses.replace(
            alone, targets={**none, form: targets_of([0], term, 1)}, unit_counts=counts
        )
        torch.testing.assert_close(model(alone)[form][0], both[form][row], atol=1e-5, rtol=1e-5)
    state = torch.get_rng_state()
    model(whole)
    assert torch.equal(state, torch.get_rng_state()), "no generator is asked"


def custom(make: Callable[[int, int], nn.Module]) -> Any:
    return build_custom_heads(
        make,
        kind="k",
        tasks=("a", "b"),
        hidden_size=8,
        columns={0: range(2), 1: range(2, 4)},
        dropout_M=[0.0, 0.0],
        dropout="counter",
        seed=0,
    )


def test_dropout_inside_a_head_of_ones_own_is_counted_or_refused() -> None:
    head = custom(lambda size, num: nn.Sequential(nn.Dropout(0.5), nn.Linear(size, num), nn.Dropout(0.1)))
    head.dropout_stream = 1
    states, keys, terms = (
        torch.randn(5, 8),
        signed([reference_mix(row) for row in range(5)]),
        torch.tensor([1, 0, 1, 0, 0]),
    )
    all_rows = head(states, terms, [3, 2], keys)
    for row in range(5):
        sizes = [1 - int(terms[row]), int(terms[row])]
        assert torch.equal(
            head(states[row : row + 1], terms[row : row + 1], sizes, keys[row : row + 1])[0] != 0,
            all_rows[row] != 0,
        )
        torch.testing.assert_close(
            head(states[row : row + 1], terms[row : row + 1], sizes, keys[row : row + 1])[0], all_rows[row]
        )
    kept = [
        reference_kept(reference_mix(0), reference_stream("the head of b.0"), 0, column, 0.5)
        for column in range(8)
    ]
    first = nn.functional.linear(
        states[:1] * torch.tensor(kept) * 2, head.of_tasks[1][1].weight, head.of_tasks[1][1].bias
    )
    last = [
        reference_kept(reference_mix(0), reference_stream("the head of b.2"), 0, column, 0.1)
        for column in range(2)
    ]
    torch.testing.assert_close(all_rows[0, 2:], (first * torch.tensor(last) * 65536 / (65536 - 6554))[0])

    class Drops(nn.Module):
        def __init__(self, how: Callable[[Tensor], Tensor], size: int, num: int) -> None:
            super().__init__()
            self.how, self.linear, self.drop = how, nn.Linear(size, num), nn.Dropout(0.2)

        def forward(self, rows: Tensor) -> Tensor:
            return self.linear(self.how(rows) if self.training else rows)

    with pytest.raises(
        ConfigError,
        match=r"^train.dropout=counter: the head of kind k draws random numbers outside torch.nn.Dropout",
    ):
        custom(lambda size, num: Drops(nn.functional.dropout, size, num))

    def reshaped(size: int, num: int) -> nn.Module:
        module = Drops(torch.relu, size, num)
        module.how = lambda rows: module.drop(rows.view(-1, 4, 2)).flatten(1)
        return module

    with pytest.raises(
        ConfigError,
        match=r"the head of a.drop drops elements of a tensor of shape \(2, 4, 2\), whose rows are no tokens",
    ):
        custom(reshaped)


def test_the_seed_and_the_mode_make_a_difference(encoders: dict[str, Path]) -> None:
    batch = batch_of(LENGTHS, KEYS)
    encoder = counting(encoders["bert"])
    first, second = (encoder(batch, None, dropout_keys(batch, seed=seed)) for seed in (1, 2))
    assert not torch.allclose(first, second, atol=1e-2)
    later = dataclasses.replace(batch, step=4)
    assert not torch.allclose(first, hidden_of(encoder, later), atol=1e-2)
    plain = load_encoder(str(encoders["bert"]), attention="grouped", dropout="none")
    assert not torch.allclose(first, plain(batch), atol=1e-2)


def test_it_is_part_of_what_a_resumed_run_must_have_in_common() -> None:
    plan: Any = type("Plan", (), {"step_of_state": lambda self, state: 2})()
    topology = {"world_size": 1, "zero_stage": 2}
    states = {
        mode: RunState(
            step=2, recipe={"batch": {}, "train": {"dropout": mode}}, plan={"step": 2}, topology=topology
        )
        for mode in ("counter", "model")
    }
    saved = states["counter"].to_json()
    check_fit("step_2", saved, states["counter"], plan)
    with pytest.raises(
        CheckpointError, match=r"^step_2: train.dropout was 'counter' when it was saved and is 'model' now"
    ):
        check_fit("step_2", saved, states["model"], plan)
