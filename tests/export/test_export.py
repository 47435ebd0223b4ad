"""Exported folders answer as the run does:
raw texts through the folder's own tokenizer and plain transformers, onnxruntime, or opened by us.

One small run of all nine GLUE tasks, SNLI, WNUT-17 and SQuAD on the tiny encoder,
trained at several ZeRO stages and on 2 ranks.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.fault_runs import run_forked
from helpers.glue_rows import COLUMNS, cut_glue
from helpers.processes import free_port, write_json, zero_config
from helpers.tiny_encoders import write_tiny_encoder
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.export.run import ExportedFolder, export_run
from mtdnn_ds.runs.evaluate import predict
from mtdnn_ds.runs.model_folder import default_checkpoint, open_model
from mtdnn_ds.runs.setup import prepare_run_data

MAX_LENGTH = 64
BAR = 1e-5  # the largest difference of two logits in float32
CPU = torch.device("cpu")
TASKS = [*COLUMNS, "snli", "wnut17", "squad"]
RUNS = {"ranks1_zero1": (1, 1), "ranks2_zero2": (2, 2), "ranks2_zero3": (2, 3)}  # ranks, ZeRO stage


def write_data(shared: Path, folder: Path) -> dict[str, str]:
    """Small cuts of the official files in their own layouts."""
    glue = cut_glue(shared / "glue", folder / "glue", train_rows=30, dev_rows=8)
    for name in ("snli", "wnut", "squad"):
        (folder / name).mkdir()
    for split in ("train", "dev"):
        rows = (shared / "SNLI" / f"{split}.tsv").read_bytes().split(b"\n")[:31]
        (folder / "snli" / f"{split}.tsv").write_bytes(b"\n".join(rows) + b"\n")
        words = (shared / "WNUT17" / f"{split}.conll").read_text(encoding="utf-8").split("\n")[:140]
        (folder / "wnut" / f"{split}.conll").write_text("\n".join(words) + "\n", encoding="utf-8")
        squad = json.loads((shared / "SQuAD" / "dev-v1.1-partB.json").read_text(encoding="utf-8"))
        squad["data"] = [
            {**article, "paragraphs": article["paragraphs"][:1]} for article in squad["data"][:1]
        ]
        (folder / "squad" / f"{split}-v1.1.json").write_text(json.dumps(squad), encoding="utf-8")
    return {
        "glue_dir": str(glue),
        **{f"{name}_dir": str(folder / name) for name in ("snli", "wnut", "squad")},
    }


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, official_files: Path, minilm: Path) -> Path:
    folder = tmp_path_factory.mktemp("export")
    # Weights larger than usual: without training those of 0.02 answer all rows nearly alike.
    encoder = write_tiny_encoder(folder / "encoder", minilm, initializer_range=0.15)
    recipe = {
        "encoder": {"path": str(encoder), "max_length": MAX_LENGTH},
        "tasks": {name: {"dropout": 0.3} if name == "rte" else {} for name in TASKS},
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 24, "max_tokens_per_micro_batch": 2048},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 3, "seed": 4},
        "data": {**write_data(official_files, folder), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    scenarios = {}
    for name, (ranks, stage) in RUNS.items():
        config = write_json(folder / f"{name}.json", zero_config(stage))
        flags = {
            "recipe": str(folder / "recipe.yaml"),
            "deepspeed_config": str(config),
            "output_dir": str(folder / name),
        }
        scenarios[name] = {"flags": flags, "world_size": ranks, "port": free_port()}
    for name, outcome in run_forked(scenarios, folder).items():
        assert outcome.codes == [0] * RUNS[name][0], outcome.said
    return folder


@dataclass(frozen=True)
class Export:
    run: Path
    folder: Path
    made: Mapping[str, ExportedFolder]
    ours: Mapping[str, np.ndarray]  # task -> the run's own outputs for all dev rows, in their order


@pytest.fixture(scope="module")
def exports(trained_runs: Path) -> dict[str, Export]:
    """Each run's checkpoint `latest` exported, beside what `evaluate` computes with it."""
    result = {}
    for name in RUNS:
        made = export_run(
            str(trained_runs / name), str(trained_runs / f"exported_{name}"), checkpoint="latest"
        )
        loaded = open_model(str(trained_runs / name), "latest", device=CPU)
        data = prepare_run_data(loaded.recipe, loaded.specs)
        wanted = [(task, "dev") for task in range(len(loaded.specs))]
        outputs = predict(loaded.model, wanted, data, loaded.settings, CPU)
        ours = {spec.name: own[0].values for spec, own in zip(loaded.specs, outputs, strict=True)}
        result[name] = Export(
            trained_runs / name, trained_runs / f"exported_{name}", {each.name: each for each in made}, ours
        )
    return result


def dev_texts(trained_runs: Path, task: str) -> list[list[str]]:
    """The texts of the dev rows of a GLUE task or SNLI, read without the project's readers."""
    if task == "snli":
        path, columns, has_header = trained_runs / "snli" / "dev.tsv", ("sentence1", "sentence2"), True
    else:
        folder, texts, _, _ = COLUMNS[task]
        path, columns, has_header = (
            trained_runs / "glue" / folder / ("dev_matched.tsv" if task == "mnli" else "dev.tsv"),
            texts,
            task != "cola",
        )  # type: ignore[assignment]
    rows = list(
        csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    )
    header, body = (rows[0], rows[1:]) if has_header else ([], rows)
    places = [header.index(column) if isinstance(column, str) else column for column in columns]
    kept = [row for row in body if task != "snli" or row[header.index("gold_label")] != "-"]
    return [[row[place] for place in places] for row in kept]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("task", [*COLUMNS, "snli"])
def test_plain_classifiers_give_our_logits_for_raw_texts(
    trained_runs: Path, exports: Mapping[str, Export], run: str, task: str
) -> None:
    export = exports[run]
    folder, texts = export.folder / "tasks" / task, dev_texts(trained_runs, task)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
    )
    columns = list(zip(*texts, strict=True))
    inputs = tokenizer(
        *(list(column) for column in columns),
        padding=True,
        truncation=True,
        max_length=MAX_LENGTH,
        return_tensors="pt",
    )
    with torch.no_grad():
        theirs = model(**inputs).logits.numpy()
    assert theirs.shape == export.ours[task].shape
    assert np.abs(theirs - export.ours[task]).max() < BAR
    assert np.ptp(theirs, axis=0).max() > 1e-3  # rows differ, so a wrong order would show


@pytest.mark.parametrize("run", RUNS)
def test_plain_token_classifier_gives_our_logits_of_every_word(
    trained_runs: Path, exports: Mapping[str, Export], run: str
) -> None:
    folder = exports[run].folder / "tasks" / "wnut17"
    sentences: list[list[str]] = [[]]
    for line in (trained_runs / "wnut" / "dev.conll").read_text(encoding="utf-8").split("\n"):
        if line.strip():
            sentences[-1].append(line.split("\t")[0])
        elif sentences[-1]:
            sentences.append([])
    words = [sentence for sentence in sentences if sentence]
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForTokenClassification.from_pretrained(folder).eval(),
    )
    inputs = tokenizer(
        words,
        is_split_into_words=True,
        padding=True,
        truncation=True,
        max_length=MAX_LENGTH,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    firsts = []
    for row in range(len(words)):
        ids = inputs.word_ids(row)
        firsts += [
            logits[row, place].numpy()
            for place, word in enumerate(ids)
            if word is not None and ids[place - 1] != word
        ]
    assert np.abs(np.stack(firsts) - exports[run].ours["wnut17"]).max() < BAR
    assert model.config.id2label[0] == "O" and model.config.label2id["B-person"] == [
        *model.config.id2label.values()
    ].index("B-person")


@pytest.mark.parametrize("run", RUNS)
def test_plain_question_answering_gives_our_logits_of_every_window(
    trained_runs: Path, exports: Mapping[str, Export], run: str
) -> None:
    folder = exports[run].folder / "tasks" / "squad"
    paragraphs = json.loads((trained_runs / "squad" / "dev-v1.1.json").read_text(encoding="utf-8"))["data"][
        0
    ]["paragraphs"]
    pairs = [
        (question["question"], paragraph["context"])
        for paragraph in paragraphs
        for question in paragraph["qas"]
    ]
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForQuestionAnswering.from_pretrained(folder).eval(),
    )
    questions, contexts = ([*column] for column in zip(*pairs, strict=True))
    inputs = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=MAX_LENGTH,
        stride=MAX_LENGTH // 3,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )
    inputs.pop("overflow_to_sample_mapping")
    with torch.no_grad():
        output = model(**inputs)
    both = torch.stack([output.start_logits, output.end_logits], dim=-1)[
        inputs["attention_mask"].bool()
    ].numpy()
    assert both.shape == exports[run].ours["squad"].shape
    assert np.abs(both - exports[run].ours["squad"]).max() < BAR


def test_every_export_measures_itself_and_the_card_says_so(exports: Mapping[str, Export]) -> None:
    export = exports["ranks2_zero3"]
    assert [*export.made] == ["encoder", "multitask", *(f"tasks/{name}" for name in TASKS)]
    for name, each in export.made.items():
        assert (
            each.parity is not None
            and each.parity.difference < BAR
            and each.parity.rows >= 5
            and each.parity.source == "dev rows"
        ), name
        card = (each.folder / "README.md").read_text()
        front, _, body = card.removeprefix("---\n").partition("\n---\n")
        assert yaml.safe_load(front)["language"] == ["en"] and "license" not in front
        assert (
            f"**{each.parity.difference:.1e}** in float32, over {each.parity.rows} sequences (dev rows)"
            in body
        )
        assert "topology: world_size 2, zero_stage 3, precision fp32" in body and "| seed | 4 |" in body
    front = yaml.safe_load((export.folder / "tasks/rte/README.md").read_text().split("---\n")[1])
    assert (
        front["pipeline_tag"] == "text-classification"
        and "nyu-mll/glue" in front["datasets"]
        and front["metrics"] == ["accuracy"]
    )
    card = (export.folder / "tasks/rte/README.md").read_text()
    state = json.loads((export.run / "checkpoints/step_3/run_state.json").read_text())
    assert state["plan"]["fingerprint"] in card
    assert "| rte | nyu-mll/glue (rte) | 30 | 8 | 8.3% |" in card
    for task, values in state["evaluation"]["metrics"].items():
        for metric, value in values.items():
            assert f"| {task} | {metric} | {value:.4f} |" in card


def test_configs_are_plain_and_name_labels(exports: Mapping[str, Export]) -> None:
    folder = exports["ranks1_zero1"].folder
    rte, stsb, encoder = (
        json.loads((folder / name / "config.json").read_text())
        for name in ("tasks/rte", "tasks/stsb", "encoder")
    )
    assert rte["architectures"] == ["BertForSequenceClassification"] and encoder["architectures"] == [
        "BertModel"
    ]
    assert rte["id2label"] == {"0": "entailment", "1": "not_entailment"} and rte["label2id"] == {
        "entailment": 0,
        "not_entailment": 1,
    }
    assert (rte["problem_type"], rte["classifier_dropout"]) == ("single_label_classification", 0.3)
    assert (stsb["problem_type"], stsb["classifier_dropout"], stsb["id2label"]) == (
        "regression",
        None,
        {"0": "stsb"},
    )
    assert not any(
        "attn" in key or "mtdnn" in str(value)
        for config in (rte, stsb, encoder)
        for key, value in config.items()
    )
    files = {path.name for path in (folder / "tasks/rte").iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_encoder_alone_has_the_weights_and_hidden_states_of_the_run(exports: Mapping[str, Export]) -> None:
    folder = exports["ranks1_zero1"].folder / "encoder"
    weights = {
        name: tensor
        for name, tensor in open_model(str(exports["ranks1_zero1"].run), "latest", device=CPU)
        .model.state_dict()
        .items()
    }
    for name, tensor in AutoModel.from_pretrained(folder).state_dict().items():
        ours = weights[f"encoder.{name}" if name.startswith("pooler.") else f"encoder.model.{name}"]
        assert torch.equal(tensor, ours), name


def test_whole_model_opens_without_its_data_and_encoder(
    exports: Mapping[str, Export], tmp_path: Path
) -> None:
    moved = shutil.copytree(exports["ranks2_zero3"].folder / "multitask", tmp_path / "elsewhere")
    about = (moved / "mtdnn_ds.json").read_text()
    assert str(exports["ranks2_zero3"].run.parent) not in about and 'glue_dir": null' in about
    loaded = open_model(str(moved), device=CPU)
    assert [spec.name for spec in loaded.specs] == TASKS and all(spec.splits == {} for spec in loaded.specs)
    original = open_model(str(exports["ranks2_zero3"].run), "latest", device=CPU)
    data = prepare_run_data(original.recipe, original.specs)
    wanted = [(task, "dev") for task in range(len(TASKS))]
    outputs = predict(loaded.model, wanted, data, loaded.settings, CPU)
    for name, own in zip(TASKS, outputs, strict=True):
        assert np.array_equal(own[0].values, exports["ranks2_zero3"].ours[name]), name
    assert default_checkpoint(str(moved)) == "best/average" and default_checkpoint(str(tmp_path)) == "latest"


def test_damaged_and_foreign_folders_are_refused(exports: Mapping[str, Export], tmp_path: Path) -> None:
    export = exports["ranks1_zero1"]
    damaged = shutil.copytree(export.folder / "multitask", tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    weights["heads.sequence.bias"] += 1
    save_file(weights, damaged / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"model\.safetensors: is damaged \(its sha256 is [0-9a-f]{64}, mtdnn_ds\.json says",
    ):
        open_model(str(damaged), device=CPU)
    about = json.loads((damaged / "mtdnn_ds.json").read_text())
    (damaged / "mtdnn_ds.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2, and this version of mtdnn_ds reads 1"):
        open_model(str(damaged), device=CPU)
    (damaged / "mtdnn_ds.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"mtdnn_ds\.json: cannot be read"):
        open_model(str(damaged), device=CPU)
    with pytest.raises(ConfigError, match=r"holds several exported folders; give .*/multitask"):
        open_model(str(export.folder), device=CPU)
    with pytest.raises(ConfigError, match="a plain transformers model, which transformers loads"):
        open_model(str(export.folder / "tasks/rte"), device=CPU)
    with pytest.raises(ConfigError, match=r"--checkpoint step_3: .* is an exported folder, which holds one"):
        open_model(str(export.folder / "multitask"), "step_3", device=CPU)


def test_export_refuses_what_it_cannot_do_and_leaves_nothing(
    exports: Mapping[str, Export], tmp_path: Path
) -> None:
    run, taken = str(exports["ranks1_zero1"].run), exports["ranks1_zero1"].folder
    before = sorted(path for path in taken.rglob("*"))
    with pytest.raises(ConfigError) as refused:
        export_run(run, str(taken))
    assert len(refused.value.problems) == 2 + len(TASKS)
    assert (
        refused.value.problems[0]
        == f"--output_dir {taken}: encoder is there already; remove it, or give another folder"
    )
    assert sorted(path for path in taken.rglob("*")) == before
    with pytest.raises(ConfigError, match="--task mnil: the run has no such task; did you mean 'mnli'"):
        export_run(run, str(tmp_path / "no"), task="mnil")
    with pytest.raises(ConfigError, match="--format tflite: unknown"):
        export_run(run, str(tmp_path / "no"), format="tflite")
    with pytest.raises(CheckpointError, match="--checkpoint step_77: not in"):
        export_run(run, str(tmp_path / "no"), checkpoint="77")
    with pytest.raises(
        ConfigError, match="has no effect with --format sentence-transformers, whose encoder all tasks share"
    ):
        export_run(run, str(tmp_path / "no"), task="rte", format="sentence-transformers")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        export_run(run, str(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_export_that_differs_fails_with_both_figures_and_leaves_nothing(
    exports: Mapping[str, Export], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtdnn_ds.export import writers

    save = writers.save_plain

    def save_and_change(opened: Any, folder: Path, spec: Any) -> str | None:
        reason = save(opened, folder, spec)
        weights = load_file(folder / "model.safetensors")
        weights["classifier.bias"][1] += 0.01
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return reason

    monkeypatch.setattr(writers, "save_plain", save_and_change)
    with pytest.raises(
        CheckpointError,
        match=(
            r"export of tasks/rte: its outputs differ from the run's by 1\.00e-02 on 8 sample rows, "
            r"and at most 1e-04"
        ),
    ):
        export_run(str(exports["ranks1_zero1"].run), str(tmp_path / "out"), task="rte")
    assert list(tmp_path.iterdir()) == []


def test_onnx_graph_of_all_heads_gives_our_logits(
    trained_runs: Path, exports: Mapping[str, Export], tmp_path: Path
) -> None:
    import onnxruntime

    (made,) = export_run(str(exports["ranks2_zero2"].run), str(tmp_path), checkpoint="latest", format="onnx")
    assert made.parity is not None and made.parity.difference < 1e-4
    session = onnxruntime.InferenceSession(made.folder / "model.onnx")
    assert [each.name for each in session.get_outputs()] == TASKS
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    for task in ("cola", "stsb", "mnli"):
        texts = dev_texts(trained_runs, task)
        for rows in (texts[:1], texts):  # one text without padding, and a padded batch
            columns = [[*column] for column in zip(*rows, strict=True)]
            fed = dict(
                tokenizer(*columns, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
            )
            (theirs,) = session.run([task], fed)
            assert np.abs(theirs - exports["ranks2_zero2"].ours[task][: len(rows)]).max() < 1e-4, task


def test_sentence_transformers_folder_pools_the_mean(exports: Mapping[str, Export], tmp_path: Path) -> None:
    """By hand from the folder's own files: it is read as modules.json and 1_Pooling/config.json say."""
    (made,) = export_run(
        str(exports["ranks1_zero1"].run), str(tmp_path), format="sentence-transformers", checkpoint="latest"
    )
    modules = json.loads((made.folder / "modules.json").read_text())
    assert [(each["path"], each["type"].rsplit(".", 1)[1]) for each in modules] == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
    ]
    pooling = json.loads((made.folder / "1_Pooling/config.json").read_text())
    assert [name for name, value in pooling.items() if name.startswith("pooling_mode") and value] == [
        "pooling_mode_mean_tokens"
    ]
    assert pooling["word_embedding_dimension"] == 32
    assert json.loads((made.folder / "sentence_bert_config.json").read_text())["max_seq_length"] == MAX_LENGTH
    weights = open_model(str(exports["ranks1_zero1"].run), "latest", device=CPU).model.state_dict()
    theirs = AutoModel.from_pretrained(made.folder).eval()
    assert all(
        torch.equal(tensor, weights[f"encoder.model.{name}"])
        for name, tensor in theirs.state_dict().items()
        if "pooler" not in name
    )
    assert made.parity is not None and made.parity.difference < BAR


def test_command_prints_what_it_made(
    exports: Mapping[str, Export], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--task", "wnut17", "--checkpoint", "3", "--output_dir", str(tmp_path / "out")]
    assert main(["export", str(exports["ranks1_zero1"].run), *flags]) == 0
    said = capsys.readouterr().out
    assert (
        "tasks/wnut17" in said
        and "BertForTokenClassification" in said
        and f"written to {tmp_path / 'out'}" in said
    )
    assert "weights `step_3` of step 3" in (tmp_path / "out/tasks/wnut17/README.md").read_text()
    assert main(["export", str(exports["ranks1_zero1"].run), *flags]) == 2
    assert "tasks/wnut17 is there already" in capsys.readouterr().err
