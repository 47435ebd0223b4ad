"""Runs that are stopped, killed and hung, for tests: their recipe, and how they are run and read.

Not a test file.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from helpers import warm
from helpers.glue_rows import cut_glue
from helpers.processes import (
    ROOT,
    free_port,
    lines,
    run_command,
    start_ranks,
    training_lines,
    wait_for_death,
    write_json,
    zero_config,
)

EXACT_FIELDS = ("step", "loss", "task_loss", "task_examples", "lr", "grad_norm", "tokens", "micro_batches")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How the ranks of a run ended."""

    codes: list[int | None]
    said: list[str]
    seconds: float
    seconds_after_act: float | None


def write_run_files(folder: Path, official_files: Path, tiny_encoder: Path, **train: Any) -> Path:
    """Recipe, data and DeepSpeed JSON of a small run with dropout: 12 steps, eval every 3, saved every 6."""
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=60, dev_rows=8)
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 48},
        "tasks": {"cola": {"dropout": 0.3}, "stsb": {}, "rte": {}},
        "batch": {"examples_per_step": 16, "max_tokens_per_micro_batch": 200},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 12, "save_every": 6, "eval_every": 3, "keep_last": 2, "seed": 3, **train},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }

    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_json(folder / "zero2.json", zero_config(2))
    return folder


def die_at(point: str, job: Mapping[str, Any], folder: Path, ranks: int) -> None:
    """Train `job` until rank 0 kills itself at `point` (workers/train_and_die.py) and all ranks are dead."""
    file = write_json(folder / "job.json", dict(job))
    wait_for_death(start_ranks([str(ROOT / "tests/workers/train_and_die.py"), str(file), point], ranks))


def flags(run_files: Path, name: str, **changes: str) -> dict[str, str]:
    """Flags of a run in the folder `name`; a name in `changes` may have __ for its dot."""
    given = {
        "recipe": str(run_files / "recipe.yaml"),
        "deepspeed_config": str(run_files / "zero2.json"),
        "output_dir": str(run_files / name),
    }
    return given | {flag.replace("__", "."): value for flag, value in changes.items()}


def scenario(
    run_files: Path, name: str, *acts: tuple[int, str, str], world_size: int = 2, **changes: str
) -> dict[str, Any]:
    return {
        "flags": flags(run_files, name, **changes),
        "acts": acts,
        "world_size": world_size,
        "port": free_port(),
    }


def run_forked(
    scenarios: Mapping[str, Mapping[str, Any]], folder: Path, at_once: int = 1
) -> dict[str, Outcome]:
    """Run all scenarios, the first alone and then `at_once` beside each other (workers/forked_ranks.py)."""
    ended = run_command(_worker(scenarios, folder, at_once), PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return outcomes_of(folder)


def start_forked(
    scenarios: Mapping[str, Mapping[str, Any]], folder: Path
) -> subprocess.Popen[str] | warm.WarmProcess:
    """As run_forked, but without waiting for the end; what came of them is `outcomes_of(folder)` then."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return warm.start(_worker(scenarios, folder, 1), environment=environment)


def _worker(scenarios: Mapping[str, Mapping[str, Any]], folder: Path, at_once: int) -> list[str]:
    given, results = write_json(folder / "scenarios.json", scenarios), folder / "results.json"
    return [str(ROOT / "tests/workers/forked_ranks.py"), str(given), str(results), str(at_once)]


def outcomes_of(folder: Path) -> dict[str, Outcome]:
    results = json.loads((folder / "results.json").read_text())
    return {name: Outcome(**values) for name, values in results.items()}


def exact(run_folder: Path) -> list[dict[str, Any]]:
    return [{field: line[field] for field in EXACT_FIELDS} for line in training_lines(run_folder)]


def evaluations(run_folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run_folder) if "eval" in line]


def stops(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "stops.jsonl").read_text().splitlines()]
