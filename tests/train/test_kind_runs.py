"""A run of choices, a pairwise ranking, tagged words and contrastive pairs beside a classification: two ranks
learn what one rank learns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.processes import lines, run_jobs, training_lines, write_json, zero_config

COLOURS, ANIMALS = ["red", "blue", "green", "black"], ["dog", "cat", "horse", "bird"]
STEPS = 12


def write_rows(folder: Path) -> dict[str, Any]:
    """Easy rows: what is asked for stands in the texts. The dev rows are the training rows."""
    colour_and_animal = [(colour, animal) for colour in COLOURS for animal in ANIMALS]
    sentences = "\n\n".join(
        f"a\tO\n{colour}\tB-colour\nunbelievable\tI-colour\n{animal}\tO"
        for colour, animal in colour_and_animal
    )
    (folder / "tags.conll").write_text(sentences + "\n")
    rows: dict[str, list[dict[str, Any]]] = {
        "class": [
            {"a": f"a {animal} and a {colour} hat", "y": COLOURS.index(colour) % 2}
            for colour, animal in colour_and_animal
        ],
        "choice": [
            {"a": "which is a colour?", "c": [animal, colour, "seven"][: 2 + n % 2], "y": 1}
            for n, (colour, animal) in enumerate(colour_and_animal)
        ],
        "ranking": [
            {"a": f"query {n}", "c": word, "y": int(word == colour)}
            for n, (colour, animal) in enumerate(colour_and_animal)
            for word in (animal, colour, f"{animal} {animal} and {animal}")
        ],
        "similarity": [
            {"a": colour, "b": (animal, colour)[n % 2], "y": n % 2}
            for n, (colour, animal) in enumerate(colour_and_animal)
        ],
    }
    for name, of_task in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_task))

    def files(name: str) -> dict[str, str]:
        return {split: str(folder / name) for split in ("train", "dev")}

    one, two = {"text_columns": ["a"], "label_column": "y"}, {"text_columns": ["a", "b"], "label_column": "y"}
    return {
        "class": {"kind": "classification", "files": files("class.jsonl"), **one, "labels": ["even", "odd"]},
        "tags": {
            "kind": "token_classification",
            "files": files("tags.conll"),
            "labels": ["O", "B-colour", "I-colour"],
        },
        "choice": {"kind": "multiple_choice", "files": files("choice.jsonl"), **one, "choice_columns": ["c"]},
        "ranking": {
            "kind": "ranking",
            "files": files("ranking.jsonl"),
            **two,
            "text_columns": ["a", "c"],
            "labels": ["no", "yes"],
            "objective": "pairwise",
        },
        "similarity": {
            "kind": "similarity",
            "files": files("similarity.jsonl"),
            **two,
            "objective": "contrastive",
        },
    }


@pytest.mark.distributed
def test_two_ranks_train_all_of_them_as_one_does(tmp_path: Path, tiny_encoder: Path) -> None:
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 32},
        "tasks": write_rows(tmp_path),
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 20, "max_tokens_per_micro_batch": 1024},
        "optimizer": {"name": "adamw", "lr": 5e-3},
        "train": {"steps": STEPS, "dropout": "none", "eval_every": STEPS},
        "data": {"cache_dir": str(tmp_path / "cache")},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    settings = {"ranks1_zero0": (1, 0, 1024), "ranks2_zero3_tokens64": (2, 3, 64)}
    for name, (world_size, stage, max_tokens) in settings.items():
        job = {
            "recipe": str(tmp_path / "recipe.yaml"),
            "deepspeed_config": str(write_json(tmp_path / f"{name}.json", zero_config(stage))),
            "output_dir": str(tmp_path / name),
            "overrides": {"batch.max_tokens_per_micro_batch": str(max_tokens)},
        }
        run_jobs([job], tmp_path, world_size)
    one, two = (training_lines(tmp_path / name) for name in settings)
    assert min(line["micro_batches"] for line in two) >= 2
    assert set(one[0]["task_examples"]) == set(recipe["tasks"])
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3), ours["step"]
        assert ours["task_loss"] == pytest.approx(theirs["task_loss"], rel=1e-2, abs=1e-4), ours["step"]
    first, last = one[0]["task_loss"], one[-1]["task_loss"]
    assert all(last[name] < first[name] for name in recipe["tasks"]), (first, last)
    evaluations = [
        [line["eval"] for line in lines(tmp_path / name) if "eval" in line][-1] for name in settings
    ]
    assert {name: list(metrics) for name, metrics in evaluations[0].items()} == {
        "class": ["accuracy"],
        "tags": ["entity_f1"],
        "choice": ["accuracy"],
        "ranking": ["accuracy", "mrr"],
        "similarity": ["pearson", "spearman"],
    }
    assert evaluations[0]["tags"]["entity_f1"] > 0.9
    for name, metrics in evaluations[0].items():
        assert evaluations[1][name] == pytest.approx(metrics, abs=0.07), name
