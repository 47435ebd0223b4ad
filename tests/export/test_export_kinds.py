"""Exports of every kind of task, of several encoders,
of shared encoders, and of what plain transformers has no class for.

The run folders hold weights drawn at random, as a run would have saved them; their data files do not exist.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.processes import ROOT
from helpers.tiny_encoders import write_tiny_encoder
from safetensors.torch import save_file
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.export.opened import open_run
from mtdnn_ds.export.run import ExportedFolder, export_run
from mtdnn_ds.export.samples import take_samples, with_outputs
from mtdnn_ds.runs.model_folder import open_model
from mtdnn_ds.runs.setup import RunData, run_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import resolve_tasks

CPU = torch.device("cpu")
SIZES: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, initializer_range=0.1
)
GONE = {"train": "gone/train.jsonl", "dev": "gone/dev.jsonl"}
PLAIN: dict[str, dict[str, Any]] = {
    "cola": {"dropout": 0.25},
    "stsb": {},
    "wnut17": {},
    "squad": {},
    "choices": {
        "kind": "multiple_choice",
        "files": GONE,
        "text_columns": ["a"],
        "choice_columns": ["b"],
        "label_column": "right",
    },
    "ranked": {
        "kind": "ranking",
        "files": GONE,
        "text_columns": ["a", "b"],
        "label_column": "fits",
        "labels": ["no", "yes"],
    },
    "words": {"kind": "masked_lm", "files": GONE, "text_columns": ["text"]},
}
GROUPS = {"first": ["rte", "coqa", "cola"], "second": ["mnli", "embedded", "reviews"]}
OTHERS: dict[str, dict[str, Any]] = {
    "rte": {"head": "san"},
    "mnli": {"head": "san"},
    "coqa": {},
    "embedded": {"kind": "similarity", "files": GONE, "text_columns": ["a", "b"], "label_column": "score"},
    "reviews": {
        "kind": "ordinal",
        "files": {"train": "gone/train.csv"},
        "text_columns": ["text"],
        "label_column": "stars",
        "labels": ["poor", "fair", "good", "excellent"],
    },
}


def write_run(folder: Path, encoder: Path, tasks: Mapping[str, Any], **sections: Any) -> str:
    """A run folder with best/average weights: every one of them drawn, biases and low-rank changes too."""
    recipe = {
        "encoder": {"path": str(encoder), "max_length": 48},
        "tasks": dict(tasks),
        "train": {"steps": 1},
        **sections,
    }
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    loaded = load_recipe(str(folder / "recipe.yaml"), {})
    specs = resolve_tasks(loaded, needs_files=False)
    model = run_model(
        loaded,
        RunData(specs=specs, layout=head_layout(specs), examples={}),
        device=CPU,
        compute_dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(7)
    weights = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }
    (folder / "best/average").mkdir(parents=True)
    save_file(weights, folder / "best/average/model.safetensors")
    sha256 = hashlib.sha256((folder / "best/average/model.safetensors").read_bytes()).hexdigest()
    (folder / "best/average/best.json").write_text(json.dumps({"step": 1, "metrics": {}, "sha256": sha256}))
    return str(folder)


def write_encoder(folder: Path, model: PreTrainedModel, minilm: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    small = {**SIZES, "vocab_size": 30522}
    models: dict[str, PreTrainedModel] = {
        "roberta": RobertaModel(
            RobertaConfig(**small, pad_token_id=0, max_position_embeddings=514, type_vocab_size=2)
        ),
        "electra": ElectraModel(ElectraConfig(**small, embedding_size=16)),
        "albert": AlbertModel(AlbertConfig(**small, embedding_size=16, pad_token_id=0)),
        "deberta": DebertaV2Model(
            DebertaV2Config(
                **small,
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                position_buckets=16,
                pad_token_id=0,
                type_vocab_size=2,
            )
        ),
        "distilbert": DistilBertModel(
            DistilBertConfig(
                vocab_size=30522,
                dim=32,
                n_layers=2,
                n_heads=4,
                hidden_dim=64,
                initializer_range=0.1,
                pad_token_id=0,
            )
        ),
    }
    written = {name: write_encoder(folder / name, model, minilm) for name, model in models.items()}
    return {"bert": write_tiny_encoder(folder / "bert", minilm, initializer_range=0.1), **written}


def by_name(made: list[ExportedFolder]) -> dict[str, ExportedFolder]:
    assert all(each.parity is None or each.parity.difference < 1e-5 for each in made), made
    return {each.name: each for each in made}


CLASSES = {
    "roberta": "Roberta",
    "electra": "Electra",
    "bert": "Bert",
}


@pytest.mark.parametrize("family", CLASSES)
def test_every_kind_becomes_its_plain_class(
    encoders: Mapping[str, Path], family: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", encoders[family], PLAIN)
    made, name = by_name(export_run(run, str(tmp_path / "out"))), CLASSES[family]
    assert {task: made[f"tasks/{task}"].loads_with for task in PLAIN} == {
        "cola": f"{name}ForSequenceClassification",
        "stsb": f"{name}ForSequenceClassification",
        "wnut17": f"{name}ForTokenClassification",
        "squad": f"{name}ForQuestionAnswering",
        "choices": f"{name}ForMultipleChoice",
        "ranked": f"{name}ForSequenceClassification",
        "words": f"{name}ForMaskedLM",
    }
    assert all(
        each.parity is not None and each.parity.source == "built-in sentences" for each in made.values()
    )
    config = json.loads((tmp_path / "out/tasks/cola/config.json").read_text())
    assert config["classifier_dropout"] == 0.25


def test_plain_choices_and_ranking_answer_raw_texts_as_the_run(
    encoders: Mapping[str, Path], tmp_path: Path
) -> None:
    """Two texts through the folder's own tokenizer;
    ours from the run's weights by hand: W_head pooler(h) + b.
    """
    run = write_run(tmp_path / "run", encoders["bert"], PLAIN)
    export_run(run, str(tmp_path / "out"))
    loaded = open_model(run, device=CPU)
    weights, layout = loaded.model.state_dict(), loaded.layout
    folder = tmp_path / "out/tasks"
    tokenizer = AutoTokenizer.from_pretrained(folder / "choices")
    inputs = tokenizer(
        ["a cat"] * 2, ["it sleeps", "the number seven is large"], padding=True, return_tensors="pt"
    )
    from transformers import AutoModel

    with torch.no_grad():
        pooled = AutoModel.from_pretrained(tmp_path / "out/encoder").eval()(**inputs).pooler_output
        choices = (
            AutoModelForMultipleChoice.from_pretrained(folder / "choices")
            .eval()(**{k: v[None] for k, v in inputs.items()})
            .logits[0]
        )
        ranked = (
            AutoModelForSequenceClassification.from_pretrained(folder / "ranked")
            .eval()(**inputs)
            .logits[:, 0]
        )
    for task, theirs in (("choices", choices), ("ranked", ranked)):
        column = layout.terms[layout.terms_of(layout.task_names.index(task))[0]].first_column
        ours = pooled @ weights["heads.sequence.weight"][column] + weights["heads.sequence.bias"][column]
        assert torch.allclose(ours, theirs, atol=1e-5) and abs(float(theirs[0] - theirs[1])) > 1e-3


def test_other_encoders_are_plain_or_say_why(encoders: Mapping[str, Path], tmp_path: Path) -> None:
    tasks = {name: PLAIN[name] for name in ("cola", "wnut17", "choices")}
    found = {}
    for family in ("albert", "deberta", "distilbert"):
        made = by_name(
            export_run(write_run(tmp_path / family, encoders[family], tasks), str(tmp_path / f"{family}_out"))
        )
        found[family] = [made[f"tasks/{task}"].loads_with for task in tasks]
        if family == "distilbert":
            assert made["tasks/cola"].note == (
                "no plain transformers class: "
                "DistilBertForSequenceClassification has relu before its last layer, "
                "and this model was trained with Tanh"
            )
    assert found == {
        "albert": [
            "AlbertForSequenceClassification",
            "AlbertForTokenClassification",
            "AlbertForMultipleChoice",
        ],
        "deberta": [
            "DebertaV2ForSequenceClassification",
            "DebertaV2ForTokenClassification",
            "DebertaV2ForMultipleChoice",
        ],
        "distilbert": ["MultiTaskModel", "DistilBertForTokenClassification", "MultiTaskModel"],
    }


@pytest.fixture(scope="module")
def others(
    encoders: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, ExportedFolder]]:
    """A run of tasks without a plain class, beside one that has one,
    in two groups with changes of their own; exported.
    """
    folder = tmp_path_factory.mktemp("others")
    plugins = [str(ROOT / "recipes/own_kind/ordinal.py")]
    run = write_run(
        folder / "run",
        encoders["bert"],
        {**OTHERS, "cola": {}},
        plugins=plugins,
        sharing={"mode": "low_rank", "groups": GROUPS},
    )
    return run, folder / "out", by_name(export_run(run, str(folder / "out")))


def test_what_has_no_plain_class_says_so_and_is_ours(
    others: tuple[str, Path, dict[str, ExportedFolder]],
) -> None:
    _, folder, made = others
    assert {task: (made[f"tasks/{task}"].loads_with, made[f"tasks/{task}"].note) for task in OTHERS} == {
        "rte": (
            "MultiTaskModel",
            "no plain transformers class: transformers has no stochastic answer network (head: san)",
        ),
        "mnli": (
            "MultiTaskModel",
            "no plain transformers class: transformers has no stochastic answer network (head: san)",
        ),
        "coqa": (
            "MultiTaskModel",
            "no plain transformers class: transformers has no class with both a span and an answer type",
        ),
        "embedded": (
            "MultiTaskModel",
            (
                "no plain transformers class: it has no head: its scores are cosines "
                "of mean-pooled embeddings, which --format sentence-transformers exports"
            ),
        ),
        "reviews": (
            "MultiTaskModel",
            "no plain transformers class: its kind 'ordinal' is one of its maker's own",
        ),
    }
    card = (folder / "tasks/mnli/README.md").read_text()
    assert "No plain transformers class: transformers has no stochastic answer network (head: san)." in card


def test_folders_of_ours_answer_as_the_run(others: tuple[str, Path, dict[str, ExportedFolder]]) -> None:
    """All terms of all tasks, of the whole model and of each task's own folder."""
    run, folder, _ = others
    opened = open_run(run, "best/average")
    layout, specs = opened.loaded.layout, opened.loaded.specs
    samples = take_samples(opened.loaded.recipe, specs, layout, {}, opened.tokenizer, opened.specials)
    whole = open_model(str(folder / "multitask"), device=CPU, trust_plugins=True)
    for task_id, spec in enumerate(specs):
        ours = with_outputs(samples[spec.name], opened.loaded, task_id).outputs
        folders = [(whole, task_id)]
        if spec.name in OTHERS:
            folders.append((open_model(str(folder / "tasks" / spec.name), device=CPU, trust_plugins=True), 0))
        for loaded, number in folders:
            theirs = with_outputs(samples[spec.name], loaded, number).outputs
            for mine, other in zip(ours, theirs, strict=True):
                assert np.ptp(mine, axis=0).max() > 1e-3
                assert np.abs(mine - other).max() < 1e-5, spec.name


def test_python_files_of_a_folder_run_only_when_trusted(
    others: tuple[str, Path, dict[str, ExportedFolder]], tmp_path: Path
) -> None:
    _, folder, _ = others
    moved = shutil.copytree(folder / "tasks/reviews", tmp_path / "reviews")
    with pytest.raises(ConfigError) as refused:
        open_model(str(moved), device=CPU)
    assert str(refused.value) == (
        f"MODEL {moved}: holds task kinds of its maker's own, "
        f"in Python files that opening it runs: {moved}/plugins/ordinal.py; read them, "
        "and give --trust_plugins (in Python trust_plugins=True) if you trust them"
    )
    assert open_model(str(moved), device=CPU, trust_plugins=True).specs[0].kind == "ordinal"
    (moved / "plugins/ordinal.py").write_text("raise SystemExit('run')\n")
    with pytest.raises(Exception, match=r"plugins/ordinal\.py: is not the file that was exported"):
        open_model(str(moved), device=CPU, trust_plugins=True)


@pytest.mark.parametrize("mode", ["soft", "low_rank"])
def test_tasks_of_shared_encoders_have_their_own(
    encoders: Mapping[str, Path], mode: str, tmp_path: Path
) -> None:
    tasks = {name: {**PLAIN, **OTHERS}[name] for name in ("cola", "wnut17", "words", "rte")}
    run = write_run(
        tmp_path / "run",
        encoders["bert"],
        tasks,
        sharing={"mode": mode, "groups": {"a": ["cola", "rte"], "b": ["wnut17", "words"]}},
    )
    made = by_name(export_run(run, str(tmp_path / "out"), format="hf"))
    assert made["encoder"].parity is None and "through which no task runs" in made["encoder"].note
    compared = ["multitask", "tasks/cola", "tasks/wnut17", "tasks/words", "tasks/rte"]
    assert [name for name, each in made.items() if each.parity is not None] == compared
    (own,) = export_run(run, str(tmp_path / "own"), format="sentence-transformers", task="words")
    assert (
        own.name == "sentence-transformers_words" and own.parity is not None and own.parity.difference < 1e-5
    )
    first, second = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/tasks/cola")
        .bert.encoder.layer[0]
        .output.dense.weight,
        AutoModelForMaskedLM.from_pretrained(tmp_path / "out/tasks/words")
        .bert.encoder.layer[0]
        .output.dense.weight,
    )
    assert float((first - second).detach().abs().max()) > 0.01


def test_onnx_of_other_kinds(others: tuple[str, Path, dict[str, ExportedFolder]], tmp_path: Path) -> None:
    (made,) = export_run(others[0], str(tmp_path / "others"), format="onnx")
    assert made.parity is not None and made.parity.difference < 1e-4
    assert [*json.loads((made.folder / "tasks.json").read_text())] == [
        "coqa",
        "embedded",
        "reviews",
        "cola",
    ]  # through two encoders
    assert json.loads((made.folder / "tasks.json").read_text())["coqa"]["outputs"] == [
        "coqa",
        "coqa_answer_type",
    ]
    assert "rte is not in the graph: its stochastic answer network (head: san)" in made.note
    with pytest.raises(
        ConfigError,
        match=r"--format onnx: rte cannot be in a graph: its stochastic answer network .* use --format hf",
    ):
        export_run(others[0], str(tmp_path / "san"), format="onnx", task="rte")
    assert not (tmp_path / "san").exists()


@pytest.mark.parametrize("format", ["onnx", "all"])
def test_without_its_packages_no_graph_is_begun(
    others: tuple[str, Path, dict[str, ExportedFolder]],
    tmp_path: Path,
    format: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ConfigError,
        match=rf"--format {format}: the package onnxscript is missing; .*pip install 'mtdnn_ds\[export\]'",
    ):
        export_run(others[0], str(tmp_path / "out"), format=format)
    assert not (tmp_path / "out").exists()


def test_onnx_of_one_task_has_its_output_alone(encoders: Mapping[str, Path], tmp_path: Path) -> None:
    """RoBERTa, whose positions depend on where the padding is."""
    import onnxruntime

    run = write_run(tmp_path / "run", encoders["roberta"], PLAIN)
    (made,) = export_run(run, str(tmp_path / "out"), format="onnx", task="cola")
    assert made.name == "onnx_cola" and made.parity is not None and made.parity.difference < 1e-4
    assert [each.name for each in onnxruntime.InferenceSession(made.folder / "model.onnx").get_outputs()] == [
        "cola"
    ]
    assert json.loads((made.folder / "tasks.json").read_text())["cola"]["labels"] == [
        "unacceptable",
        "acceptable",
    ]
