"""Recipes: what is read is what was written, flags win over files, and a dumped recipe is the recipe."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from helpers.processes import ROOT

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import cross_check, dump_recipe, field_docs, load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.stages import dump_stages, load_runs
from mtdnn_ds.config.yaml_text import dump_yaml, parse_yaml

SMALL = "encoder: {path: enc}\ntasks: [cola, my-task]\ntrain: {steps: 10}\n"


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def load(folder: Path, text: str = SMALL, **flags: str) -> Recipe:
    return load_recipe(write(folder, text), {name.replace("__", "."): value for name, value in flags.items()})


def test_yaml_words_mean_what_they_look_like() -> None:
    text = "[1e-4, 5E3, 1.5, -2, 1_000, yes, no, on, 010, 1:30, 2020-01-01, true, null, '1e-4']"
    expected = [
        0.0001,
        5000.0,
        1.5,
        -2,
        1000,
        "yes",
        "no",
        "on",
        "010",
        "1:30",
        "2020-01-01",
        True,
        None,
        "1e-4",
    ]
    assert parse_yaml(text, "x") == expected


def test_defaults_and_task_lists(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert list(recipe.tasks) == ["cola", "my-task"]
    assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.optimizer.gradient_clipping) == (
        5e-5,
        (0.9, 0.999),
        1.0,
    )
    assert (recipe.train.steps, recipe.train.epochs, recipe.batch.examples_per_step) == (10, None, 32)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("train.steps", "1000", 1000),
        ("train.seed", "0", 0),
        ("optimizer.lr", "1e-4", 0.0001),
        ("optimizer.lr", "1", 1.0),
        ("optimizer.betas", "0.9,0.98", (0.9, 0.98)),
        ("optimizer.betas", "[0.9, 0.98]", (0.9, 0.98)),
        ("encoder.path", "123", "123"),
        ("encoder.path", "run#1, a: b", "run#1, a: b"),
        ("encoder.path", "'1e-4'", "1e-4"),
        ("encoder.random_init", "true", True),
        ("encoder.sha256", "null", None),
        ("data.glue_dir", "a,b", "a,b"),
        ("mixture.rates", "uniform", "uniform"),
        ("mixture.rates", "{cola: 2, my-task: 1.5}", {"cola": 2.0, "my-task": 1.5}),
    ],
)
def test_a_flag_is_typed_by_its_setting(tmp_path: Path, name: str, text: str, expected: object) -> None:
    section, key = name.split(".")
    assert getattr(getattr(load_recipe(write(tmp_path, SMALL), {name: text}), section), key) == expected


def test_flags_reach_inside_tasks(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        tasks__cola__dropout="0.3",
        tasks__my_task__labels="yes,no",
        tasks__my_task__files__train="a,b.csv",
    )
    assert recipe.tasks["cola"].dropout == 0.3
    assert recipe.tasks["my-task"].labels == ["yes", "no"]  # fire writes '-' as '_' in a flag's name
    assert recipe.tasks["my-task"].files == {"train": "a,b.csv"}


def test_tasks_flag_selects_and_adds(tmp_path: Path) -> None:
    text = "encoder: {path: enc}\ntasks: {cola: {dropout: 0.2}, rte: }\ntrain: {steps: 10}\n"
    recipe = load(tmp_path, text, tasks="cola, sst2")
    assert list(recipe.tasks) == ["cola", "sst2"]
    assert recipe.tasks["cola"].dropout == 0.2


def test_a_flag_replaces_what_it_contradicts_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "encoder: {path: enc}\ntasks: [a, b]\ntrain: {epochs: 3}\n"
        "mixture: {rates: temperature, temperature: 3}\nloss: {scale: {b: 2}}\n"
    )
    with caplog.at_level(logging.WARNING, logger="mtdnn_ds"):
        recipe = load(tmp_path, text, tasks="a", train__steps="7", mixture__rates="uniform")
    assert (recipe.train.steps, recipe.train.epochs, recipe.mixture.rates) == (7, None, "uniform")
    file = tmp_path / "recipe.yaml"
    assert caplog.messages == [
        f"--tasks a leaves out b: loss.scale.b=2 of {file} is not used",
        f"--train.steps replaces train.epochs=3 of {file}",
        f"--mixture.rates: mixture.temperature=3 of {file} has no effect with it and is not used",
    ]


def test_epochs_flag_replaces_steps(tmp_path: Path) -> None:
    recipe = load(tmp_path, train__epochs="2.5")
    assert (recipe.train.steps, recipe.train.epochs) == (None, 2.5)


def test_one_rate_as_a_flag(tmp_path: Path) -> None:
    text = SMALL + "mixture: {rates: {cola: 1, my-task: 1}}\n"
    assert load(tmp_path, text, mixture__rates__my_task="2").mixture.rates == {"cola": 1.0, "my-task": 2.0}


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_shipped_recipes_load_and_survive_a_dump(tmp_path: Path, recipe: str) -> None:
    stages = load_runs(str(ROOT / "recipes" / recipe), {})
    for stage in stages:
        assert cross_check(stage.recipe) == []
    text = dump_stages(stages) if stages[0].name else dump_recipe(stages[0].recipe)
    assert load_runs(write(tmp_path, text), {}) == stages


def test_a_dump_keeps_text_that_looks_like_something_else(tmp_path: Path) -> None:
    path = "1e-4"
    recipe = load(
        tmp_path,
        encoder__path=path,
        data__glue_dir="null#1",
        data__snli_dir="yes",
        tasks__cola__labels="1,0x10",
    )
    again = load(tmp_path, dump_recipe(recipe))
    assert again == recipe
    assert (again.encoder.path, again.data.glue_dir, again.data.snli_dir) == ("1e-4", "null#1", "yes")
    assert again.tasks["cola"].labels == ["1", "0x10"]


@pytest.mark.parametrize(
    "text",
    [
        *("?", "?a", "? a", ": a", "- a", "a: b", "a #b", "<<", "=", "y", "0o17", "2020-01-01", "a\nb"),
        *("", " ", "x " * 200, "é" * 90 + " ? " + "\u202e" * 90),
        *("'", '"', "\t", "{", "[", "*a", "&a", "!a", "%a", "@a", "`a", "|", ">"),
    ],
)
def test_a_dump_of_any_text_is_read_back(text: str) -> None:
    """A YAML library may write such a text so that even itself
    reads another one (ruamel.yaml 0.19: '?a', long escapes).
    """
    for value in ({"k": text}, {"k": [text, text]}, {text: [text]}, [{text: {"k": text}}]):
        assert parse_yaml(dump_yaml(value), "x") == value


def test_a_dump_is_fully_resolved_but_has_no_setting_without_effect(tmp_path: Path) -> None:
    text = dump_recipe(load(tmp_path))
    assert "weight_decay: 0.01\n" in text
    assert "temperature" not in text and "power" not in text


def test_field_docs_list_every_setting_with_type_and_default() -> None:
    docs = {doc.name: doc for doc in field_docs()}
    assert (docs["encoder.path"].type, docs["encoder.path"].default) == ("text", "required")
    assert (docs["optimizer.lr"].type, docs["optimizer.lr"].default) == ("number > 0", "5e-05")
    assert (docs["tasks.NAME.dropout"].type, docs["tasks.NAME.dropout"].default) == ("number >= 0 < 1", "-")
    assert (
        docs["mixture.rates"].type
        == "proportional | temperature | cap | uniform | annealed | {NAME: number > 0}"
    )
    assert docs["train.steps"].type == "whole number >= 1"


def test_all_problems_of_file_and_flags_come_in_one_message(tmp_path: Path) -> None:
    file = write(
        tmp_path, "encoder: {path: enc, max_lenght: 1}\ntasks: [a]\noptimizer: {lr: 0}\ntrain: {steps: 3}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, {"train.setps": "5", "train.steps": "0"})
    assert caught.value.problems == (
        "unknown setting '--train.setps'; did you mean '--train.steps'?",
        f"{file}: unknown setting 'encoder.max_lenght'; did you mean 'encoder.max_length'?",
        f"{file}: optimizer.lr=0: must be above 0",
        "--train.steps 0: must be at least 1",
    )
