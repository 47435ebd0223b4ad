"""encoder.compile: layers compiled for any number of tokens, and where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.encoder_families import CONFIGS
from torch._dynamo.utils import counters

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.compiled_layers import compile_if_asked, compile_layers
from mtdnn_ds.model.dropout import word_dropout
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.model.encoder import PackedEncoder, load_encoder
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.model.probe import batch_of_lengths
from mtdnn_ds.tasks.layout import HeadLayout


def encoder_of(folder: Path, family: str, dropout: DropoutMode = "none") -> PackedEncoder:
    CONFIGS[family].save_pretrained(folder)
    encoder = load_encoder(str(folder), random_init=True, dropout=dropout)
    encoder.attention = "varlen"
    return encoder


def ten_batches() -> list[PackedBatch]:
    """Of 2 to 11 sequences, no two with as many tokens."""
    generator = np.random.default_rng(0)
    batches = [batch_of_lengths(np.sort(generator.integers(3, 20, size=size))) for size in range(2, 12)]
    assert len({batch.input_ids.numel() for batch in batches}) == 10
    return batches


def passes(encoder: PackedEncoder, batches: list[PackedBatch]) -> list[torch.Tensor]:
    """Hidden states of each batch, and the gradients of all parameters of the layers."""
    found = []
    for batch in batches:
        encoder.zero_grad()
        hidden_TD = encoder(batch)
        hidden_TD.pow(2).sum().backward()
        gradients = [own.grad for name, own in encoder.named_parameters() if ".layer." in name]
        found += [hidden_TD.detach(), *(each.clone() for each in gradients if each is not None)]
    return found


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_compiled_layers_are_one_graph_for_ten_shapes_and_equal_eager_ones(
    tmp_path: Path, family: str
) -> None:
    torch._dynamo.reset()
    counters.clear()
    encoder, batches = encoder_of(tmp_path, family), ten_batches()
    theirs = passes(encoder, batches)
    compile_layers(encoder, backend="aot_eager")
    ours = passes(encoder, batches)

    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] == 1
    assert len(ours) == len(theirs) > 10 * 16
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)


def test_dropout_as_gpus_have_it_breaks_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_gpus(rows: torch.Tensor, p: float) -> torch.Tensor:
        return torch.nn.functional.dropout(rows, p, training=True)

    monkeypatch.setattr(word_dropout, "word_dropout", of_gpus)
    torch._dynamo.reset()
    counters.clear()
    encoder = encoder_of(tmp_path, "bert", dropout="model")
    assert encoder.hidden_dropout == encoder.attention_dropout == 0.1
    compile_layers(encoder, backend="aot_eager")
    first, second = (passes(encoder, ten_batches())[0] for _ in range(2))

    assert not torch.equal(first, second), "nothing is dropped"
    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] == 1


def net_of(encoder: PackedEncoder) -> MultiTaskNet:
    return MultiTaskNet(encoder=encoder, heads={}, layout=HeadLayout(task_names=(), terms=()))


SETTINGS: dict[str, Any] = {
    "device_type": "cuda",
    "zero_stage": 2,
    "gradient_checkpointing": False,
    "dropout": "model",
    "sharing": "hard",
}


@pytest.mark.parametrize(
    ("change", "attention", "told"),
    [
        ({"zero_stage": 3}, "varlen", "ZeRO stage 3 gathers parameters by hooks inside layers"),
        (
            {"gradient_checkpointing": True},
            "varlen",
            "encoder.gradient_checkpointing runs layers twice",
        ),
        (
            {"dropout": "counter"},
            "varlen",
            "train.dropout=counter counts the runs of each layer in Python",
        ),
        ({"sharing": "low_rank"}, "varlen", "sharing.mode=low_rank changes layers by hooks"),
        ({}, "grouped", "attention back end grouped breaks a layer into several graphs"),
    ],
)
def test_layers_that_cannot_be_compiled_are_left_with_a_word_or_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    attention: str,
    told: str,
) -> None:
    monkeypatch.setattr("mtdnn_ds.model.compiled_layers._machine_obstacles", lambda: [])
    encoder = encoder_of(tmp_path, "bert")
    encoder.attention = attention
    net, settings = net_of(encoder), SETTINGS | change

    assert compile_if_asked(net, "auto", **settings) == (
        f"layers are not compiled (encoder.compile): {told}",
    )
    with pytest.raises(ConfigError) as error:
        compile_if_asked(net, "always", **settings)
    assert error.value.problems == (f"encoder.compile=always: {told}; use 'auto' or 'never'",)
    assert compile_if_asked(net, "never", **settings) == ()


def test_on_a_cpu_auto_is_off_without_a_word_and_always_is_refused(tmp_path: Path) -> None:
    net, settings = net_of(encoder_of(tmp_path, "bert")), SETTINGS | {"device_type": "cpu"}
    assert compile_if_asked(net, "auto", **settings) == ()
    with pytest.raises(ConfigError) as error:
        compile_if_asked(net, "always", **settings)
    assert error.value.problems == (
        "encoder.compile=always: this run is on the CPU, where compiled layers are slower; use 'auto'",
    )


def test_auto_compiles_every_layer_where_nothing_stands_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtdnn_ds.model.compiled_layers._machine_obstacles", lambda: [])
    encoder = encoder_of(tmp_path, "bert")
    assert compile_if_asked(net_of(encoder), "auto", **SETTINGS) == (
        "layers are compiled (encoder.compile): the first steps take a minute longer",
    )
    compiled = [name for name, module in encoder.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["model.encoder.layer.0", "model.encoder.layer.1"]
