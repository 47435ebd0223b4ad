"""tasks.NAME.standardize: regressions learn in standard units and answer in those of their users.

Expected losses are computed here, from answers and labels alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.processes import run_command, run_jobs, training_lines, write_json, zero_config
from helpers.tiny_encoders import write_tiny_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mtdnn_ds.check.cuts import cut_batches, run_cut
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.export.run import export_run
from mtdnn_ds.losses.distillation import soft_score_losses
from mtdnn_ds.losses.divergence import score_divergence
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.losses.sums import term_table
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.runs.evaluate import predict
from mtdnn_ds.runs.model_folder import open_model
from mtdnn_ds.runs.setup import RunData, loader_settings, prepare_run_data, run_model
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.init.from_hf_heads import begin_with_heads
from mtdnn_ds.train.init.from_run import begin_with, find_source

CPU = torch.device("cpu")
SCORES = [0.0, 2.0, 3.0, 5.0] * 6  # mean 2.5, population deviation sqrt(3.25)
MEAN, DEVIATION = 2.5, 1.80278
EXACT = ("step", "loss", "grad_norm", "task_loss")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """Rows, and an encoder whose answers differ from row to row."""
    folder = tmp_path_factory.mktemp("scores")
    write_tiny_encoder(folder / "encoder", minilm, initializer_range=0.15)
    sentence = "the red cat saw nine large boats near old trees while it rained on many small houses"
    words = sentence.split()
    rows = []
    for number, score in enumerate(SCORES):
        texts = {"a": " ".join(words[number % 9 : number % 9 + 6]), "b": " ".join(words[number % 5 :][:7])}
        rows.append({**texts, "score": score, "label": "no" if score < 2.5 else "yes"})
    for name, own in {
        "five": rows,
        "hundred": [{**row, "score": 20 * row["score"]} for row in rows],
        "equal": [{**row, "score": 3.0} for row in rows],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return folder


def regression(files: Path, rows: str = "five", **settings: Any) -> dict[str, Any]:
    file = str(files / f"{rows}.jsonl")
    common = {"kind": "regression", "text_columns": ["a", "b"], "label_column": "score"}
    return {**common, "files": {"train": file, "dev": file}, **settings}


def classes(files: Path) -> dict[str, Any]:
    own = {"kind": "classification", "label_column": "label", "labels": ["no", "yes"]}
    return {**regression(files), **own}


def recipe_of(files: Path, folder: Path, tasks: dict[str, Any], **more: Any) -> Recipe:
    values = {
        "encoder": {"path": str(files / "encoder"), "max_length": 40},
        "tasks": tasks,
        "batch": {"examples_per_step": 8},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 4, "save_every": 2, "dropout": "none", "seed": 3},
        "data": {"cache_dir": str(files / "cache")},
        **more,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return load_recipe(str(folder / "recipe.yaml"), {})


def opened(recipe: Recipe) -> tuple[RunData, MultiTaskNet]:
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    return data, run_model(recipe, data, device=CPU, compute_dtype=torch.float32)


def answers(recipe: Recipe, data: RunData, model: MultiTaskNet, task: int = 0) -> np.ndarray:
    settings = loader_settings(recipe, hidden_size=32, rank=0, world_size=1, device=CPU)
    ((own,),) = predict(model, [(task, "dev")], data, settings, CPU)
    return own.values[:, 0]


# Numbers


def test_the_numbers_are_those_of_the_examples_used(files: Path, tmp_path: Path) -> None:
    tasks = {
        "whole": regression(files, standardize=True),
        "half": regression(files, standardize=True, train_fraction=0.5),
        "given": regression(files, standardize=[3, 0.5]),
        "plain": regression(files),
    }
    data, _ = opened(recipe_of(files, tmp_path, tasks))
    scales = {spec.name: spec.score_scale for spec in data.specs}
    half = data.examples["half"]["train"]
    used = half.split.labels[half.rows].astype(np.float64)
    assert len(used) == 12
    assert scales == {
        "whole": (MEAN, DEVIATION),
        "half": (float(f"{used.mean():.6g}"), float(f"{np.sqrt(((used - used.mean()) ** 2).mean()):.6g}")),
        "given": (3, 0.5),
        "plain": None,
    }


@pytest.mark.parametrize(("flag", "value"), [("true", True), ("false", False), ("[1.5, 2]", [1.5, 2.0])])
def test_it_is_a_flag_too(files: Path, tmp_path: Path, flag: str, value: Any) -> None:
    recipe_of(files, tmp_path, {"x": regression(files)})
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), {"tasks.x.standardize": flag})
    assert recipe.tasks["x"].standardize == value


def test_what_cannot_be_standardized_is_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as equal:
        opened(recipe_of(files, tmp_path, {"x": regression(files, "equal", standardize=True)}))
    assert equal.value.problems == (
        "tasks.x.standardize: all 24 training scores are 3, which has no deviation; remove it, or look at "
        "the data",
    )
    with pytest.raises(ConfigError) as classification:
        resolve_tasks(recipe_of(files, tmp_path, {"x": {**classes(files), "standardize": True}}))
    assert classification.value.problems == (
        "tasks.x.standardize: has no effect on a classification; it belongs to regression; remove it",
    )
    with pytest.raises(ConfigError, match=r"the second number, the deviation, must be above 0"):
        recipe_of(files, tmp_path, {"x": regression(files, standardize=[1.0, 0.0])})


# Losses and gradients


def test_answers_and_losses_are_those_computed_by_hand(files: Path, tmp_path: Path) -> None:
    """The head's weights are those of the plain task; what they add to the mean is a deviation larger."""
    plain = recipe_of(files, tmp_path, {"x": regression(files)})
    expected = MEAN + DEVIATION * (answers(plain, *opened(plain)) - MEAN)

    recipe = recipe_of(files, tmp_path, {"x": regression(files, standardize=True)})
    data, model = opened(recipe)
    ours = answers(recipe, data, model)
    assert expected.std() > 0.01
    np.testing.assert_allclose(ours, expected, atol=1e-5)

    settings = loader_settings(recipe, hidden_size=32, rank=0, world_size=1, device=CPU)
    losses = build_losses(data.layout, data.specs, CPU)
    by_hand = sum(((ours - np.array(SCORES)) / DEVIATION) ** 2)
    for batches in cut_batches(data.train_sets, data.layout, settings):  # one, six and more micro-batches
        found = run_cut(model, losses, batches, [len(SCORES)])
        assert found.totals[0] == pytest.approx(by_hand, rel=1e-5)


def encoder_gradient(files: Path, folder: Path, task: dict[str, Any]) -> float:
    """Norm of the encoder's gradient of the mean loss over all examples, before training."""
    recipe = recipe_of(files, folder, {"x": task})
    data, model = opened(recipe)
    settings = loader_settings(recipe, hidden_size=32, rank=0, world_size=1, device=CPU)
    (whole, *_) = cut_batches(data.train_sets, data.layout, settings)
    found = run_cut(model, build_losses(data.layout, data.specs, CPU), whole, [len(SCORES)])
    own = [each for name, each in found.gradients.items() if name.startswith("encoder.")]
    return float(torch.cat([each.reshape(-1) for each in own]).norm())


def test_the_encoders_gradient_is_like_a_classifications(files: Path, tmp_path: Path) -> None:
    of_classes = encoder_gradient(files, tmp_path, classes(files))
    five, hundred = (
        encoder_gradient(files, tmp_path, regression(files, name, standardize=True))
        for name in ("five", "hundred")
    )
    assert hundred == pytest.approx(five, rel=1e-3)
    assert 1 / 5 < five / of_classes < 5
    assert encoder_gradient(files, tmp_path, regression(files, "hundred")) > 5 * max(five, of_classes)


def test_teachers_and_regularizers_compare_in_the_same_units(files: Path, tmp_path: Path) -> None:
    tasks = {"x": regression(files, standardize=[10.0, 4.0]), "y": regression(files)}
    data, _ = opened(recipe_of(files, tmp_path, tasks))
    table = term_table(data.layout, CPU, data.specs)
    outputs, others = torch.tensor([[8.0, 0.0], [0.0, 3.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])

    class Rows:
        term_ids = torch.tensor([0, 1])

    rows: Any = Rows()
    soft = torch.tensor([[2.0], [1.0]])
    assert soft_score_losses(outputs, soft, rows, table, 1.0).tolist() == [(6 / 4) ** 2, 2.0**2]
    assert score_divergence(outputs, others, rows, table).tolist() == [(6 / 4) ** 2, 2.0**2]


# Runs


@pytest.fixture(scope="module")
def runs(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks under ZeRO 3: a run, and one resumed from its middle; one rank under ZeRO 1."""
    folder = tmp_path_factory.mktemp("runs")
    tasks = {
        "five": regression(files, standardize=True),
        "hundred": regression(files, "hundred", standardize=True),
    }
    recipe_of(files, folder, {**tasks, "nli": classes(files)})

    def job(name: str, stage: int, resume: str = "none") -> dict[str, Any]:
        config = write_json(folder / f"zero{stage}.json", zero_config(stage))
        paths = {"recipe": str(folder / "recipe.yaml"), "deepspeed_config": str(config)}
        return {**paths, "output_dir": str(folder / name), "overrides": {}, "resume": resume}

    run_jobs([job("whole", 3)], folder, 2)
    shutil.copytree(folder / "whole", folder / "resumed")
    shutil.rmtree(folder / "resumed/checkpoints/step_4")
    run_jobs([job("resumed", 3, "auto")], folder, 2)
    run_jobs([job("alone", 1)], folder, 1)
    return folder


@pytest.mark.distributed
def test_the_run_folder_has_the_numbers(runs: Path) -> None:
    written = yaml.safe_load((runs / "whole/recipe.yaml").read_text())["tasks"]
    assert written["five"]["standardize"] == [MEAN, DEVIATION]
    assert written["hundred"]["standardize"] == [50.0, 36.0555]


@pytest.mark.distributed
def test_ranks_and_resuming_change_no_number(runs: Path) -> None:
    whole, resumed, alone = (training_lines(runs / name) for name in ("whole", "resumed", "alone"))
    assert len(whole) == 4 and (runs / "resumed/metrics.discarded.jsonl").exists()
    for ours, theirs in zip(whole, resumed, strict=True):
        assert {key: ours[key] for key in EXACT if key in ours} == {
            key: theirs[key] for key in EXACT if key in theirs
        }
    assert [line["loss"] for line in alone] == pytest.approx([line["loss"] for line in whole], rel=1e-4)


def test_stages_go_on(files: Path, tmp_path: Path) -> None:
    """What a finished stage was trained with is compared with what the recipe says now."""
    tasks = {"five": regression(files, standardize=True)}
    recipe_of(files, tmp_path, tasks, train={"steps": 1, "dropout": "none"}, schedule={"warmup": 0})
    with (tmp_path / "recipe.yaml").open("a") as file:
        file.write("stages: [{name: first}, {name: second, from: first}]\n")
    config = write_json(tmp_path / "zero1.json", zero_config(1))
    train = [
        "-m",
        "mtdnn_ds",
        "train",
        "--recipe",
        str(tmp_path / "recipe.yaml"),
        "--deepspeed_config",
        str(config),
    ]
    for resume in ("none", "auto"):
        ended = run_command([*train, "--output_dir", str(tmp_path / "run"), "--resume", resume])
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.distributed
def test_exported_folders_answer_in_the_users_units(files: Path, runs: Path, tmp_path: Path) -> None:
    """Plain transformers and ONNX, made and opened without the training data."""
    moved = tmp_path / "run"
    shutil.copytree(runs / "whole", moved)
    text = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(text.replace(str(files / "five.jsonl"), str(files / "gone.jsonl")))
    loaded = open_model(str(moved), "latest", device=CPU)
    assert loaded.specs[0].score_scale == (MEAN, DEVIATION)

    recipe = load_recipe(str(runs / "whole/recipe.yaml"), {})
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    made = {
        each.name: each
        for each in export_run(str(moved), str(tmp_path / "out"), checkpoint="latest", format="all")
    }
    again = open_model(str(tmp_path / "out/multitask"), device=CPU)
    rows = [json.loads(line) for line in (files / "five.jsonl").read_text().splitlines()]
    for task, name in enumerate(("five", "hundred")):
        ours = answers(recipe, data, loaded.model, task)
        np.testing.assert_array_equal(answers(recipe, data, again.model, task), ours)

        folder = tmp_path / "out/tasks" / name
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        pairs = [[row[column] for row in rows] for column in ("a", "b")]
        with torch.no_grad():
            theirs = model(**tokenizer(*pairs, padding=True, return_tensors="pt")).logits[:, 0].numpy()
        size = (1, 20)[task]
        np.testing.assert_allclose(theirs, ours, atol=2e-5 * size)
        assert abs(ours.mean() - MEAN * size) < 2 * DEVIATION * size and ours.std() > 0.01 * size
    graph = next(each for each in made.values() if "onnx" in each.name)
    assert graph.parity is not None


# Heads taken over


@pytest.mark.distributed
@pytest.mark.parametrize("standardize", [False, True, [100.0, 7.0]])
def test_a_head_taken_over_answers_the_same(
    files: Path, runs: Path, tmp_path: Path, standardize: Any
) -> None:
    before = open_model(str(runs / "whole"), "latest", device=CPU)
    recipe = load_recipe(str(runs / "whole/recipe.yaml"), {})
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    theirs = answers(recipe, data, before.model, 1)

    init = {"run": str(runs / "whole"), "checkpoint": "latest"}
    ours = recipe_of(
        files, tmp_path, {"hundred": regression(files, "five", standardize=standardize)}, init=init
    )
    own_data, model = opened(ours)
    source = find_source(ours)
    assert source is not None
    assert "heads of hundred carried" in begin_with(model, own_data.specs, source)
    np.testing.assert_allclose(answers(ours, own_data, model), theirs, rtol=1e-5, atol=1e-3)


def test_a_plain_checkpoints_head_answers_the_same(files: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = AutoModelForSequenceClassification.from_pretrained(files / "encoder", num_labels=1).eval()
    with torch.no_grad():
        theirs.classifier.bias.fill_(1.25)
    theirs.save_pretrained(tmp_path / "theirs")
    for file in (files / "encoder").glob("*.*"):
        if "token" in file.name or file.name == "vocab.txt":
            shutil.copy(file, tmp_path / "theirs" / file.name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    rows = [json.loads(line) for line in (files / "five.jsonl").read_text().splitlines()]
    pairs = [[row[column] for row in rows] for column in ("a", "b")]
    with torch.no_grad():
        expected = theirs(**tokenizer(*pairs, padding=True, return_tensors="pt")).logits[:, 0].numpy()

    path = str(tmp_path / "theirs")
    recipe = recipe_of(
        files,
        tmp_path,
        {"x": regression(files, standardize=True)},
        encoder={"path": path, "max_length": 40},
        heads={"x": path},
    )
    data, model = opened(recipe)
    begin_with_heads(model, data.specs, recipe)
    np.testing.assert_allclose(answers(recipe, data, model), expected, atol=1e-5)
