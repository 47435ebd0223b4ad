"""Promise 4 with every kind of task, SMART with its averaged model, distillation and dropout on: kill it,
resume, the same numbers bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers.fault_runs import EXACT_FIELDS, die_at, evaluations
from helpers.mixture_files import write_mixture
from helpers.processes import run_jobs, training_lines, write_json, zero_config

RANKS = 2
STEPS, SAVED, KILLED = 5, 3, 5  # killed before step 5, so that step 4 is done twice


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    """A teacher, then its student twice: straight, and killed and resumed."""
    folder = tmp_path_factory.mktemp("resumed")
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 64},
        "tasks": write_mixture(official_files, folder),
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 22, "max_tokens_per_micro_batch": 800},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": STEPS, "save_every": SAVED, "seed": 5},
        "data": {"glue_dir": str(folder / "glue"), "cache_dir": str(folder / "cache")},
    }
    (folder / "teacher.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    student = {
        **recipe,
        "regularizer": {"name": "smart", "proximal_factor": 0.5, "proximal_momentum": 0.9},
        "distillation": {
            "teachers": [str(folder / "teacher")],
            "checkpoint": "latest",
            "tasks": ["cola", "stsb", "choices", "ner"],
        },
    }
    (folder / "student.yaml").write_text(yaml.safe_dump(student, sort_keys=False))
    json = str(write_json(folder / "zero2.json", zero_config(2)))
    jobs = {
        name: {
            "recipe": str(folder / f"{name.split('_')[0]}.yaml"),
            "deepspeed_config": json,
            "output_dir": str(folder / name),
        }
        for name in ("teacher", "student", "student_killed")
    }
    run_jobs([jobs["teacher"], jobs["student"]], folder, RANKS)
    die_at(f"before_step_{KILLED}", jobs["student_killed"], folder, RANKS)
    assert [line["step"] for line in training_lines(folder / "student_killed")] == [1, 2, 3, 4]
    said = run_jobs([{**jobs["student_killed"], "resume": "auto"}], folder, RANKS)
    assert f"resuming after step {SAVED} of {STEPS}" in said["student_killed"]
    return folder


@pytest.mark.distributed
def test_resume_is_bitwise_with_smart_and_distillation(resumed: Path) -> None:
    straight, ours = training_lines(resumed / "student"), training_lines(resumed / "student_killed")
    assert len(ours) == STEPS
    fields = (*EXACT_FIELDS, "regularizer")
    assert [{field: line[field] for field in fields} for line in ours] == [
        {field: line[field] for field in fields} for line in straight
    ]
    theirs, mine = evaluations(resumed / "student"), evaluations(resumed / "student_killed")
    assert theirs == mine and len(theirs) == 1


@pytest.mark.distributed
def test_the_teacher_and_smart_make_a_difference(resumed: Path) -> None:
    teacher, student = training_lines(resumed / "teacher")[0], training_lines(resumed / "student")[0]
    assert student["regularizer"] > 0
    changed = {
        task
        for task in teacher["task_loss"]
        if student["task_loss"][task] != pytest.approx(teacher["task_loss"][task], rel=1e-4)
    }
    assert changed == {"cola", "stsb", "choices", "ner"}, (
        "only the taught tasks have another loss in the first step"
    )
