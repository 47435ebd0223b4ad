"""Folders of save_to_disk work as they are:
splits, columns and labels by their usual names, and what was chosen is said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.sources.tables import iterate_rows
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec

TEXT, NUMBER = datasets.Value("string"), datasets.Value("float32")
NLI = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
TAGS = datasets.Sequence(datasets.ClassLabel(names=["O", "B-PER", "I-PER"]))

# As tasksource writes its three templates, and three datasets in columns of the hub.
FEATURES: dict[str, dict[str, Any]] = {
    "nli": {"sentence1": TEXT, "sentence2": TEXT, "labels": NLI},
    "choices": {
        "inputs": TEXT,
        "choice0": TEXT,
        "choice1": TEXT,
        "choice10": TEXT,
        "choice2": TEXT,
        "labels": datasets.Value("int64"),
    },
    "entities": {"tokens": datasets.Sequence(TEXT), "labels": TAGS},
    "likeness": {"idx": datasets.Value("int32"), "sentence1": TEXT, "sentence2": TEXT, "label": NUMBER},
    "reviews": {"text": TEXT, "label": datasets.ClassLabel(names=["bad", "good"])},
    "questions": {
        "id": TEXT,
        "question": TEXT,
        "context": TEXT,
        "answers": {
            "text": datasets.Sequence(TEXT),
            "answer_start": datasets.Sequence(datasets.Value("int32")),
        },
    },
}
ROWS: dict[str, dict[str, Any]] = {
    "nli": {"sentence1": "A man eats.", "sentence2": "Nobody eats.", "labels": 2},
    "choices": {
        "inputs": "It rains.",
        "choice0": "Dry.",
        "choice1": "Wet.",
        "choice2": "Hot.",
        "choice10": None,
        "labels": 1,
    },
    "entities": {"tokens": ["Ada", "ran"], "labels": [1, 0]},
    "likeness": {"idx": 1, "sentence1": "A dog.", "sentence2": "A hound.", "label": 4.5},
    "reviews": {"text": "Fine.", "label": 1},
    "questions": {
        "id": "a",
        "question": "What runs?",
        "context": "The river runs.",
        "answers": {"text": ["river"], "answer_start": [4]},
    },
}
SPLITS = ("train", "validation_matched", "validation_mismatched", "test")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("saved")
    for name, features in FEATURES.items():
        one = datasets.Dataset.from_list([ROWS[name]], features=datasets.Features(features))
        datasets.DatasetDict(
            dict.fromkeys(SPLITS if name == "nli" else ("train", "validation"), one)
        ).save_to_disk(str(root / name))
    return {name: str(root / name) for name in FEATURES}


def specs_of(tasks: dict[str, Any]) -> dict[str, TaskSpec]:
    recipe = Recipe.model_validate({"encoder": {"path": "x"}, "tasks": tasks, "train": {"steps": 1}})
    return {spec.name: spec for spec in resolve_tasks(recipe)}


def test_a_folder_alone_is_a_task(folders: dict[str, str]) -> None:
    specs = specs_of({name: {"dataset": folder} for name, folder in folders.items()})
    assert {name: spec.kind for name, spec in specs.items()} == {
        "nli": "classification",
        "choices": "multiple_choice",
        "entities": "token_classification",
        "likeness": "regression",
        "reviews": "classification",
        "questions": "span",
    }
    assert {split: source.split for split, source in specs["nli"].splits.items()} == {
        "train": "train",
        "dev": "validation_matched",
        "dev_mismatched": "validation_mismatched",
        "test": "test",
    }
    assert specs["nli"].labels == ("entailment", "neutral", "contradiction") and specs["reviews"].labels == (
        "bad",
        "good",
    )
    assert specs["entities"].labels == ("O", "B-PER", "I-PER")
    assert {name: next(iter(iterate_rows(spec.splits["train"])))[1] for name, spec in specs.items()} == {
        "nli": ("A man eats.", "Nobody eats.", "contradiction"),
        "choices": ("It rains.", "Dry.", "Wet.", "Hot.", None, 1),
        "entities": (["Ada", "ran"], ["B-PER", "O"]),
        "likeness": ("A dog.", "A hound.", 4.5),
        "reviews": ("Fine.", "good"),
        "questions": ("What runs?", "The river runs.", {"text": ["river"], "answer_start": [4]}),
    }


def test_what_a_recipe_says_is_kept(folders: dict[str, str]) -> None:
    own = {
        "dataset": folders["nli"],
        "text_columns": ["sentence2"],
        "labels": ["neutral", "contradiction", "entailment"],
        "splits": {"train": "test"},
    }
    spec = specs_of({"nli": own})["nli"]
    assert (spec.splits["train"].text_columns, spec.labels) == (
        ("sentence2",),
        ("neutral", "contradiction", "entailment"),
    )
    assert {split: source.split for split, source in spec.splits.items()} == {"train": "test"}
    similar = specs_of(
        {"likeness": {"dataset": folders["likeness"], "kind": "similarity", "score_range": [0, 5]}}
    )["likeness"]
    assert (similar.kind, similar.splits["dev"].text_columns) == ("similarity", ("sentence1", "sentence2"))


def test_what_is_not_recognised_is_asked_for(tmp_path: Path) -> None:
    features = datasets.Features({"body": TEXT, "stars": datasets.Value("int64")})
    one = datasets.Dataset.from_list([{"body": "Fine.", "stars": 4}], features=features)
    datasets.DatasetDict({"train": one}).save_to_disk(str(tmp_path / "stars"))
    with pytest.raises(ConfigError) as refused:
        specs_of({"stars": {"dataset": str(tmp_path / "stars")}})
    assert refused.value.problems == (
        "tasks.stars.kind: missing; every task of your own needs it",
        "tasks.stars.text_columns: missing; every task of your own needs it",
        "tasks.stars.label_column: missing; every task of your own needs it",
    )


def test_choices_are_said_and_rows_are_prepared(
    folders: dict[str, str], tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {name: {"dataset": folder} for name, folder in folders.items()}
    recipe = {
        "encoder": {"path": str(tiny_encoder)},
        "tasks": tasks,
        "train": {"steps": 1},
        "data": {"cache_dir": str(tmp_path / "cache")},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for verb in ("prepare", "tasks"):
        assert main([verb, str(tmp_path / "recipe.yaml")]) == 0
        said = capsys.readouterr().out
        assert (
            f"tasks.nli: as {folders['nli']} names them: kind: classification; "
            "splits: train = train, dev = validation_matched, "
            "dev_mismatched = validation_mismatched, test = test; "
            "text_columns: sentence1, sentence2; label_column: labels; "
            "labels: entailment, neutral, contradiction\n"
        ) in said
        assert (
            "text_columns: inputs; label_column: labels; "
            "choice_columns: choice0, choice1, choice2, choice10\n"
        ) in said
    assert len(list((tmp_path / "cache").glob("*/tokens.arrow"))) == 14  # no two splits share a folder
