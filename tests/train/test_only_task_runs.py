"""mixture.only_task in real runs on two ranks: the updates of the whole mixture that draw the task, with its
own schedule, evaluation and best weights; killed and resumed bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.fault_runs import EXACT_FIELDS, die_at, evaluations
from helpers.processes import run_command, run_jobs, training_lines, write_json, zero_config

TASKS = ["quickstart_similarity", "quickstart_sentiment", "quickstart_entailment"]
RARE = TASKS[0]  # 6 * 0.9 / 12 = 0.45 examples a step: 6 of 12 steps, one example each, on two ranks
STEPS, OWN_STEPS = 12, 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Together; the rare task's part, straight and killed before its step 5."""
    folder = tmp_path_factory.mktemp("only_task")
    recipe: dict[str, Any] = {
        "encoder": {"path": str(tiny_encoder), "max_length": 32},
        "tasks": TASKS,
        "mixture": {"rates": dict(zip(TASKS, (0.9, 8, 3.1), strict=True))},
        "batch": {"examples_per_step": 6, "max_tokens_per_micro_batch": 512},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"warmup": 0.5},
        "train": {"steps": STEPS, "save_every": 3, "seed": 5, "dropout": "none"},
        "data": {"cache_dir": str(folder / "cache")},
    }
    (folder / "together.yaml").write_text(yaml.safe_dump(recipe))
    recipe["mixture"]["only_task"] = RARE
    (folder / "alone.yaml").write_text(yaml.safe_dump(recipe))

    deepspeed = str(write_json(folder / "zero2.json", zero_config(2)))
    jobs = {
        name: {
            "recipe": str(folder / f"{name.split('_')[0]}.yaml"),
            "deepspeed_config": deepspeed,
            "output_dir": str(folder / name),
        }
        for name in ("together", "alone", "alone_killed")
    }
    run_jobs([jobs["together"], jobs["alone"]], folder, 2)
    die_at("before_step_5", jobs["alone_killed"], folder, 2)
    said = run_jobs([{**jobs["alone_killed"], "resume": "auto"}], folder, 2)
    assert f"resuming after step 3 of {OWN_STEPS}" in said["alone_killed"]
    return folder


@pytest.mark.distributed
def test_the_run_has_the_tasks_updates_and_its_own_schedule(runs: Path) -> None:
    together = [line for line in training_lines(runs / "together") if RARE in line["task_examples"]]
    alone = training_lines(runs / "alone")
    assert len(together) == len(alone) == OWN_STEPS
    assert [line["task_examples"] for line in alone] == [{RARE: 1}] * OWN_STEPS
    assert [line["task_examples"][RARE] for line in together] == [1] * OWN_STEPS
    # 3 of 6 steps of warm-up to 1e-3, then 1 - 0/3, 1 - 1/3, 1 - 2/3 of it
    assert [line["lr"] for line in alone] == pytest.approx(
        [1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3]
    )


@pytest.mark.distributed
def test_it_begins_with_the_heads_and_examples_of_the_whole_mixture(runs: Path) -> None:
    """The first step draws one of the rare task's examples: before any update its loss is the same."""
    together, alone = training_lines(runs / "together")[0], training_lines(runs / "alone")[0]
    assert alone["task_loss"][RARE] == pytest.approx(together["task_loss"][RARE], rel=1e-5)


@pytest.mark.distributed
def test_only_the_task_is_evaluated_and_kept(runs: Path) -> None:
    assert [set(line["eval"]) for line in evaluations(runs / "alone")] == [{RARE}]
    assert {path.name for path in (runs / "alone" / "best").iterdir()} == {RARE, "average"}
    assert set(evaluations(runs / "together")[0]["eval"]) == set(TASKS)

    plan = json.loads((runs / "alone" / "plan.json").read_text())
    assert (plan["total_steps"], plan["examples"]) == (OWN_STEPS, {RARE: [1, 2, 3, 4, 5, 6]})


@pytest.mark.distributed
def test_resume_is_bitwise(runs: Path) -> None:
    straight, resumed = training_lines(runs / "alone"), training_lines(runs / "alone_killed")
    assert [{field: line[field] for field in EXACT_FIELDS} for line in resumed] == [
        {field: line[field] for field in EXACT_FIELDS} for line in straight
    ]


@pytest.mark.distributed
def test_another_tasks_part_does_not_go_on_with_it(runs: Path) -> None:
    ended = run_command(
        [
            *("-m", "mtdnn_ds", "train", "--recipe", str(runs / "alone.yaml"), "--resume", "auto"),
            *("--output_dir", str(runs / "alone"), "--deepspeed_config", str(runs / "zero2.json")),
            *("--mixture.only_task", TASKS[1]),
        ]
    )
    assert ended.returncode == 2
    assert f"mixture.only_task was '{RARE}' when it was saved and is '{TASKS[1]}' now" in ended.stderr


@pytest.mark.distributed
def test_plan_shows_the_part(runs: Path) -> None:
    flags = ["--deepspeed_config", str(runs / "zero2.json")]
    ended = run_command(["-m", "mtdnn_ds", "plan", str(runs / "alone.yaml"), *flags])
    assert ended.returncode == 0, ended.stderr
    title = " ".join(ended.stdout.split())  # which is broken where the table ends
    assert "6 steps, those of 12 steps of 6 examples that draw quickstart_similarity" in title
    row = next(line for line in ended.stdout.splitlines() if RARE in line and "1.0000" in line)
    assert row.replace("│", " ").split()[2:4] == ["1.0000", "6"]
    assert TASKS[1] not in ended.stdout and "gets no example" not in ended.stdout
