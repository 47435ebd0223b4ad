"""What a task of each kind chooses from, counted by hand: the divisor of loss.scale=log_classes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.fake_gpu_tasks import OWN_KINDS, write_tasks
from helpers.predict_runs import CONTEXT
from helpers.processes import run_jobs, training_lines, write_json, zero_config
from transformers import AutoTokenizer

from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.runs.prediction_space import log_prediction_spaces
from mtdnn_ds.runs.setup import RunData, prepare_run_data
from mtdnn_ds.tasks.resolve import resolve_tasks

VOCABULARY = 30522  # of BERT


def write_recipe(folder: Path, encoder: Path, **changes: Any) -> Path:
    """All kinds, and one of the user's own with labels."""
    tasks = write_tasks(folder)
    (folder / "own_kinds.py").write_text(
        OWN_KINDS.replace('KINDS = [kind("stars")', 'KINDS = [kind("grades", has_labels=True), kind("stars")')
    )
    tasks["grades"] = {**tasks["stars"], "kind": "grades", "labels": ["a", "b", "c", "d", "e"]}
    recipe = {
        "encoder": {"path": str(encoder), "max_length": 48},
        "plugins": [str(folder / "own_kinds.py")],
        "tasks": tasks,
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 2 * len(tasks), "max_tokens_per_micro_batch": 1024},
        "loss": {"scale": "log_classes"},
        "train": {"steps": 2, "dropout": "none"},
        "data": {"cache_dir": str(folder / "cache")},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def data_of(path: Path) -> RunData:
    recipe = load_recipe(str(path), {})
    return prepare_run_data(recipe, resolve_tasks(recipe), splits=("train",))


def expected_sizes(encoder: Path) -> dict[str, tuple[float, ...]]:
    """Task -> the sizes of its terms' spaces, counted in the files that write_tasks makes."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    windows = [len(tokenizer(f"What closed in year {n}?", CONTEXT)["input_ids"]) for n in range(8)]
    # The second turn begins with the first and its answer.
    turns = ("What closed?", "What closed? harbour Was it old?")
    talks = [len(tokenizer(turn, CONTEXT)["input_ids"]) for turn in turns]
    return {
        "tags": (3,),
        "choice": (2.5,),  # two and three, in turn
        "ranking": (2,),  # candidates of a query
        "similar": (),
        "colours": (4,),
        "span": (sum(windows) / 8,),
        "words": (VOCABULARY,),
        "nli": (2,),
        "score": (),
        "pairwise": (2,),
        "contrastive": (),
        "talk": (sum(talks) / 2, 4),  # a place for start and end, a type of answer
        "documents": (VOCABULARY, 2),  # a token, the next sentence or not
        "stars": (),
        "lengths": (),
        "grades": (5,),
    }


def test_sizes_of_every_kind(tmp_path: Path, tiny_encoder: Path) -> None:
    data = data_of(write_recipe(tmp_path, tiny_encoder))
    found = dict(zip(data.layout.task_names, log_prediction_spaces(data, vocabulary=VOCABULARY), strict=True))
    expected = {task: sum(map(math.log, sizes)) for task, sizes in expected_sizes(tiny_encoder).items()}
    assert found == pytest.approx(expected)


def test_a_sample_counts_its_own_candidates(tmp_path: Path, tiny_encoder: Path) -> None:
    tasks = {"choice": {**write_tasks(tmp_path)["choice"], "train_fraction": 0.2}}
    path = write_recipe(tmp_path, tiny_encoder, tasks=tasks, batch={"examples_per_step": 2})
    data = data_of(path)
    (examples,) = data.train_sets
    rows = [examples.source_row(number) for number in range(3)]  # 3 of 16, counted from 1
    assert examples.num_examples == 3
    (space,) = log_prediction_spaces(data, vocabulary=VOCABULARY)
    assert space == pytest.approx(math.log(sum(2 + (row - 1) % 2 for row in rows) / 3))


@pytest.mark.distributed
def test_a_run_divides_each_tasks_loss_by_that_of_a_guess(tmp_path: Path, tiny_encoder: Path) -> None:
    """The objective is sum of N_t / N times the task's mean loss over its log; 1 where there is no space."""
    job = {
        "recipe": str(write_recipe(tmp_path, tiny_encoder)),
        "deepspeed_config": str(write_json(tmp_path / "zero0.json", zero_config(0))),
        "output_dir": str(tmp_path / "run"),
    }
    run_jobs([job], tmp_path, 1)
    sizes = expected_sizes(tiny_encoder)
    divisors = {task: sum(map(math.log, of_task)) or 1.0 for task, of_task in sizes.items()}
    for line in training_lines(tmp_path / "run"):
        assert set(line["task_loss"]) == set(divisors)
        num_examples = sum(line["task_examples"].values())
        objective = sum(
            line["task_examples"][task] / num_examples * loss / divisors[task]
            for task, loss in line["task_loss"].items()
        )
        assert line["loss"] == pytest.approx(objective, rel=1e-5)
