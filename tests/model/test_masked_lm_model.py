"""The masked-LM head and the pretraining loss against transformers' own:
logits, losses, every gradient, one tied weight.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.encoder_families import CONFIGS, SIZES
from helpers.masked_documents import WORDS, examples_of, spec_of
from helpers.packed_batches import packed_batch
from helpers.tiny_encoders import write_tiny_encoder
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertForPreTraining

from mtdnn_ds.batch.packed import PackedBatch
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.losses.objective import micro_batch_loss, term_coefficients
from mtdnn_ds.model.encoder import load_encoder
from mtdnn_ds.model.heads.masked_lm import MaskedLMHead, build_masked_lm_head
from mtdnn_ds.model.multitask import MultiTaskNet, build_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.sharing import share
from mtdnn_ds.tasks.spec import TaskSpec


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Weights away from their initial values, so that biases and normalisations matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("masked_lm")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        shaken(AutoModelForMaskedLM.from_config(config)).save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


def head_of(folder: Path, **options: object) -> tuple[MaskedLMHead, torch.nn.Module]:
    encoder = load_encoder(str(folder), attention="grouped", dropout="none")
    return build_masked_lm_head(encoder, str(folder), seed=0, **options), encoder  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_checkpoints_own_head_gives_hugging_faces_logits(checkpoints: dict[str, Path], name: str) -> None:
    head, encoder = head_of(checkpoints[name])
    theirs = AutoModelForMaskedLM.from_pretrained(checkpoints[name], dtype=torch.float32).eval()
    batch = packed_batch([9, 13])
    expected = torch.cat(
        [
            theirs(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
            for ids in batch.input_ids.split([9, 13])
        ]
    )
    assert head.notes == ()
    without_types = replace(batch, token_type_ids=torch.zeros_like(batch.token_type_ids))
    torch.testing.assert_close(head(encoder(without_types)), expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_without_a_head_gets_a_new_one_from_the_seed(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    AutoModel.from_pretrained(checkpoints["bert"]).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), attention="grouped")
    state = torch.get_rng_state()
    first, again, other = (build_masked_lm_head(encoder, str(tmp_path), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.notes == (
        (
            "masked_lm: the checkpoint has no masked-language-model head: "
            "a new head is drawn from the seed, its decoder tied to the word embeddings"
        ),
    )
    assert torch.equal(first.dense.weight, again.dense.weight) and not torch.equal(
        first.dense.weight, other.dense.weight
    )
    assert 0.018 < first.dense.weight.std().item() < 0.022  # initializer_range 0.02, 1024 draws
    assert not first.bias.any() and not first.dense.bias.any()
    assert (
        build_masked_lm_head(encoder, None, seed=1).notes == ()
    )  # encoder.random_init says it for all weights


def test_a_head_of_another_form_is_not_taken_and_told(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    untied = BertForMaskedLM(BertConfig(**SIZES, tie_word_embeddings=False))
    untied.save_pretrained(tmp_path / "untied")
    head, _ = head_of(tmp_path / "untied")
    assert head.notes == (
        "masked_lm: the head of BertForMaskedLM is not a dense layer, "
        "GELUActivation, a normalisation and the tied embeddings: "
        "a new head is drawn from the seed, its decoder tied to the word embeddings",
    )
    assert not head.bias.any()


# The pretraining loss


PRETRAINING = TaskSpec(
    name="text",
    kind="masked_lm",
    labels=(),
    metrics=("masked_accuracy",),
    splits={},
    dropout=0.0,
    options={"next_sentence": True},
)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """A tiny BertForPreTraining with MiniLM's tokenizer."""
    folder = write_tiny_encoder(tmp_path_factory.mktemp("pretrained"), minilm)
    torch.manual_seed(3)
    shaken(BertForPreTraining(BertConfig.from_pretrained(folder))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    lines = [
        " ".join(WORDS[index] for index in generator.integers(0, len(WORDS), size)) + "."
        for size in generator.integers(3, 12, 60)
    ]
    path.write_text("\n\n".join("\n".join(lines[start : start + 5]) for start in range(0, 60, 5)))
    return path


def batch_of(corpus: Path, minilm: Path, *, next_sentence: bool) -> tuple[PackedBatch, TaskSpec]:
    examples = examples_of(corpus, minilm, max_length=24, next_sentence=next_sentence)
    spec = spec_of(corpus, next_sentence=next_sentence)
    chosen = np.array([3, 14, 9, 1, 20, 6, 17, 11])
    batch = collate(
        np.zeros(8, dtype=np.int64),
        chosen,
        np.full(8, 2),
        ExampleSets(
            examples=[examples],
            tasks=[0],
            layout=head_layout([spec]),
            filler_ids=np.array([101, 102]),
        ),
    )
    return batch, spec


def their_inputs(batch: PackedBatch) -> dict[str, torch.Tensor]:
    """The micro-batch as transformers wants it: padded, with -100 for what is not to be predicted."""
    lengths = batch.cu_seqlens.diff().tolist()
    pad = torch.nn.utils.rnn.pad_sequence
    labels = torch.full_like(batch.input_ids, -100)
    for row, label in zip(
        batch.targets["masked_token"].rows.tolist(),
        batch.targets["masked_token"].labels.tolist(),
        strict=True,
    ):
        labels[row] = int(label)
    return {
        "input_ids": pad(batch.input_ids.split(lengths), batch_first=True),
        "token_type_ids": pad(batch.token_type_ids.split(lengths), batch_first=True),
        "attention_mask": pad(
            [torch.ones(length, dtype=torch.int64) for length in lengths], batch_first=True
        ),
        "labels": pad(labels.split(lengths), batch_first=True, padding_value=-100),
    }


def our_loss(model: MultiTaskNet, batch: PackedBatch, spec: TaskSpec) -> torch.Tensor:
    losses = build_losses(model.layout, (spec,), "cpu")
    coefficients = term_coefficients(np.array([1.0]), batch.unit_counts, model.layout.task_of_term)
    sums = losses.sums(losses.of_batch(model(batch), batch.targets))
    return micro_batch_loss(sums, torch.tensor(coefficients, dtype=torch.float32))


def their_name(ours: str) -> str:
    if ours.startswith("encoder.model."):
        return "bert." + ours.removeprefix("encoder.model.")
    parts = {
        "encoder.pooler": "bert.pooler",
        "heads.masked_lm.dense": "cls.predictions.transform.dense",
        "heads.masked_lm.norm": "cls.predictions.transform.LayerNorm",
        "heads.masked_lm": "cls.predictions",
        "heads.sequence": "cls.seq_relationship",
    }
    prefix = next(prefix for prefix in parts if ours.startswith(prefix + "."))
    return parts[prefix] + ours.removeprefix(prefix)


@pytest.mark.parametrize("next_sentence", [True, False], ids=["pretraining", "masked_lm"])
def test_loss_and_gradients_equal_hugging_face(
    pretrained: Path, corpus: Path, minilm: Path, next_sentence: bool
) -> None:
    batch, spec = batch_of(corpus, minilm, next_sentence=next_sentence)
    ours = build_model(encoder_path=str(pretrained), specs=[spec], layout=head_layout([spec]), dropout="none")
    cls = BertForPreTraining if next_sentence else BertForMaskedLM
    theirs = cls.from_pretrained(pretrained, dtype=torch.float32).eval()
    assert not any("masked" in note for note in ours.notes)
    inputs = their_inputs(batch)
    if next_sentence:
        with torch.no_grad():
            ours.heads["sequence"].weight.copy_(theirs.cls.seq_relationship.weight)
            ours.heads["sequence"].bias.copy_(theirs.cls.seq_relationship.bias)
        labels = batch.targets["class"]
        assert sorted(labels.rows.tolist()) == list(range(8)) and 0 < labels.labels.sum() < 8
        next_labels = torch.empty(8, dtype=torch.int64)
        next_labels[labels.rows] = labels.labels.long()
        inputs["next_sentence_label"] = next_labels
    expected = theirs(**inputs).loss
    loss = our_loss(ours, batch, spec)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    expected.backward()
    loss.backward()
    their_gradients = {
        name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None
    }
    our_gradients = {
        their_name(name): parameter.grad
        for name, parameter in ours.named_parameters()
        if parameter.requires_grad
    }
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(
            our_gradients[name],
            gradient,
            atol=1e-5 * scale,
            rtol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_the_tied_weights_gradient_is_the_sum_of_both_uses(
    pretrained: Path, corpus: Path, minilm: Path
) -> None:
    batch, spec = batch_of(corpus, minilm, next_sentence=False)
    model = build_model(
        encoder_path=str(pretrained), specs=[spec], layout=head_layout([spec]), dropout="none"
    )
    weight = model.encoder.get_parameter("model.embeddings.word_embeddings.weight")
    head = model.heads["masked_lm"]
    assert head.tied_weight is weight
    our_loss(model, batch, spec).backward()
    both = weight.grad.clone()
    separate = torch.nn.Embedding.from_pretrained(weight.detach().clone(), freeze=False)
    head.tie(separate)
    model.zero_grad()
    our_loss(model, batch, spec).backward()
    assert weight.grad.abs().sum() > 0 and separate.weight.grad.abs().sum() > 0
    torch.testing.assert_close(both, weight.grad + separate.weight.grad, atol=1e-7, rtol=1e-5)


def test_the_state_dict_holds_the_embeddings_once(pretrained: Path) -> None:
    model = build_model(encoder_path=str(pretrained), specs=[PRETRAINING], layout=head_layout([PRETRAINING]))
    names = [name for name, tensor in model.state_dict().items() if 30522 in tensor.shape]
    assert names == ["encoder.model.embeddings.word_embeddings.weight", "heads.masked_lm.bias"]
    other = build_model(
        encoder_path=str(pretrained),
        specs=[PRETRAINING],
        layout=head_layout([PRETRAINING]),
        random_init=True,
        seed=5,
    )
    assert other.notes[-1].startswith("encoder.random_init") and not other.heads["masked_lm"].bias.any()
    other.load_state_dict(model.state_dict())
    states = torch.randn(3, 32)
    assert torch.equal(other.heads["masked_lm"](states), model.heads["masked_lm"](states))


def test_every_parameter_has_a_gradient_without_masked_tokens(checkpoints: dict[str, Path]) -> None:
    nli = TaskSpec(name="nli", kind="classification", labels=("a", "b"), metrics=("accuracy",), splits={})
    text = TaskSpec(
        name="text",
        kind="masked_lm",
        labels=(),
        metrics=("masked_accuracy",),
        splits={},
        dropout=0.0,
        options={},
    )
    for name in ("bert", "electra"):
        model = build_model(
            encoder_path=str(checkpoints[name]), specs=[nli, text], layout=head_layout([nli, text])
        )
        batch = packed_batch([5, 7], rows=[0])
        batch = replace(
            batch,
            targets={
                "class": batch.targets["class"],
                "masked_token": packed_batch([5, 7], rows=[]).targets["class"],
            },
        )
        outputs = model(batch)
        assert outputs["masked_token"].shape == (0, 50)
        (outputs["class"].sum() + outputs["masked_token"].sum()).backward()
        for key, parameter in model.named_parameters():
            assert (
                parameter.requires_grad
                and parameter.grad is not None
                and bool(torch.isfinite(parameter.grad).all())
            ), key
        assert not any(parameter.grad.any() for parameter in model.heads["masked_lm"].parameters())


def test_with_soft_sharing_the_decoder_is_tied_to_the_copy_of_its_task(checkpoints: dict[str, Path]) -> None:
    nli = TaskSpec(name="nli", kind="classification", labels=("a", "b"), metrics=("accuracy",), splits={})
    text, more = (
        TaskSpec(name=name, kind="masked_lm", labels=(), metrics=("masked_accuracy",), splits={}, dropout=0.0)
        for name in ("text", "more")
    )
    names = ("nli", "text", "more")
    for groups, place in (
        ({"a": ["nli"], "b": ["text", "more"]}, 1),
        ({"b": ["text", "more"], "a": ["nli"]}, 0),
    ):
        sharing = share(names, mode="soft", groups=groups, penalty=0.1)
        model = build_model(
            encoder_path=str(checkpoints["bert"]),
            specs=[nli, text, more],
            layout=head_layout([nli, text, more]),
            sharing=sharing,
        )
        name = f"encoder.copies.{place}.model.embeddings.word_embeddings.weight"
        assert model.borrowed == ((model.heads["masked_lm"], model.get_parameter(name)),)
    with pytest.raises(
        ConfigError,
        match=r"sharing.groups: the masked_lm tasks text, more share a decoder tied to one copy's",
    ):
        build_model(
            encoder_path=str(checkpoints["bert"]),
            specs=[nli, text, more],
            layout=head_layout([nli, text, more]),
            sharing=share(names, mode="soft"),
        )
