"""Promise 4: kill it anywhere, resume, and the losses are the same bit for bit. Real kills of real ranks, dropout on."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from glue_rows import cut_glue
from processes import ROOT, kill, lines, run_ranks, start_ranks, training_lines, write_json, zero_config
from workers.train_and_die import SAVE_POINTS

RANKS = 2
EXACT_FIELDS = ("step", "loss", "task_loss", "task_examples", "lr", "grad_norm", "tokens", "micro_batches")
CASES = [(stage, precision) for stage in (1, 2, 3) for precision in ("fp32", "bf16")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, tiny_encoder: Path) -> Path:
    """Recipe, data, and the uninterrupted runs of every case (12 steps, checkpoints at 6 and 12)."""
    folder = tmp_path_factory.mktemp("resume")
    glue = cut_glue(shared_data / "glue", folder / "glue", train_rows=60, dev_rows=8)
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 48},
        "tasks": {"cola": {"dropout": 0.3}, "stsb": {}, "rte": {}},
        "batch": {"examples_per_step": 16, "max_tokens_per_micro_batch": 200},
        "optimizer": {"name": "torch_adamw", "lr": 1e-3},
        "train": {"steps": 12, "save_every": 6, "eval_every": 3, "keep_last": 1, "seed": 3},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    jobs = []
    for stage, precision in CASES:
        config = write_json(folder / f"zero{stage}_{precision}.json", zero_config(stage, precision))
        jobs.append({"recipe": str(folder / "recipe.yaml"), "deepspeed_config": str(config), "output_dir": str(folder / f"straight{stage}{precision}")})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_ranks([str(ROOT / "tests/workers/train_jobs.py"), str(folder / "jobs.json")], RANKS, timeout_seconds=600)
    return folder


def job_of(base: Path, name: str, stage: int, precision: str, **changes: Any) -> dict[str, Any]:
    return {"recipe": str(base / "recipe.yaml"), "deepspeed_config": str(base / f"zero{stage}_{precision}.json"), "output_dir": str(base / name), **changes}


def train_and_die(job: dict[str, Any], point: str, base: Path, ranks: int) -> None:
    file = write_json(base / "job.json", job)
    processes = start_ranks([str(ROOT / "tests/workers/train_and_die.py"), str(file), point], ranks)
    try:
        processes[0].wait(timeout=240)
    finally:
        output = "" if processes[0].poll() is None or processes[0].stdout is None else processes[0].stdout.read()
        kill(processes)
    assert processes[0].returncode == -signal.SIGKILL, output


def resumed(job: dict[str, Any], base: Path, ranks: int) -> str:
    file = write_json(base / "resume.json", [{**job, "resume": "auto"}])  # type: ignore[arg-type]
    return run_ranks([str(ROOT / "tests/workers/train_jobs.py"), str(file)], ranks)


def exact(run_folder: Path) -> list[dict[str, Any]]:
    return [{field: line[field] for field in EXACT_FIELDS} for line in training_lines(run_folder)]


def evaluations(run_folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run_folder) if "eval" in line]


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_resume_is_bitwise(base: Path, stage: int, precision: str) -> None:
    job = job_of(base, f"killed{stage}{precision}", stage, precision)
    train_and_die(job, "before_step_8", base, RANKS)
    assert [line["step"] for line in exact(Path(job["output_dir"]))] == [1, 2, 3, 4, 5, 6, 7]
    output = resumed(job, base, RANKS)
    assert "resuming after step 6 of 12" in output
    straight = base / f"straight{stage}{precision}"
    assert exact(Path(job["output_dir"])) == exact(straight)
    assert evaluations(Path(job["output_dir"])) == evaluations(straight)


@pytest.mark.distributed
@pytest.mark.parametrize("point", SAVE_POINTS)
def test_a_kill_while_saving_leaves_a_run_that_resumes(base: Path, point: str) -> None:
    """One rank, ZeRO 2: killed inside its second checkpoint (step 6); the straight run has one rank too."""
    straight = base / "straight_one_rank"
    changes = {"overrides": {"train.save_every": "3", "train.steps": "9", "schedule.name": "constant", "schedule.warmup": "0"}}
    if not straight.exists():
        write_json(base / "one.json", [job_of(base, straight.name, 2, "fp32", **changes)])  # type: ignore[arg-type]
        run_ranks([str(ROOT / "tests/workers/train_jobs.py"), str(base / "one.json")], 1)
    job = job_of(base, f"killed_{point}", 2, "fp32", **changes)
    train_and_die(job, point, base, 1)
    output = resumed(job, base, 1)
    whole = point in ("before_latest", "inside_latest", "inside_pruning")
    assert f"resuming after step {6 if whole else 3} of 9" in output
    if not whole and point != "before_shards":  # there is nothing half-written yet at that point
        assert ".partial_step_6: an unfinished checkpoint (killed while it was saved); ignored" in output
    assert exact(Path(job["output_dir"])) == exact(straight)
    checkpoints = Path(job["output_dir"]) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir() if path.is_dir()) == ["step_9"]
    assert (checkpoints / "latest").read_text() == "step_9"
