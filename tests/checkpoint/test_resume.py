"""Promise 4: kill it anywhere, resume, and the losses are the same bit for bit.

Real kills of real ranks, dropout on.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.fault_runs import run_forked, write_run_files
from helpers.processes import (
    ROOT,
    Rank,
    free_port,
    kill,
    lines,
    run_jobs,
    start_ranks,
    training_lines,
    write_json,
    zero_config,
)
from workers.train_and_die import SAVE_POINTS

RANKS = 2
EXACT_FIELDS = ("step", "loss", "task_loss", "task_examples", "lr", "grad_norm", "tokens", "micro_batches")
CASES = [(stage, precision) for stage in (1, 2, 3) for precision in ("fp32", "bf16")]
KILLS = [(mode, point) for mode in ("sync", "async") for point in SAVE_POINTS]
Outputs = dict[str, str]


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    """A folder with recipe, data and DeepSpeed JSONs."""
    folder = write_run_files(tmp_path_factory.mktemp("resume"), official_files, tiny_encoder, keep_last=1)
    for stage, precision in CASES:
        write_json(folder / f"zero{stage}_{precision}.json", zero_config(stage, precision))
    return folder


def job_of(run_files: Path, name: str, stage: int, precision: str, **changes: Any) -> dict[str, Any]:
    return {
        "recipe": str(run_files / "recipe.yaml"),
        "deepspeed_config": str(run_files / f"zero{stage}_{precision}.json"),
        "output_dir": str(run_files / name),
        **changes,
    }


def start_and_die(job: dict[str, Any], point: str, run_files: Path, ranks: int) -> list[Rank]:
    file = write_json(run_files / f"{Path(job['output_dir']).name}.json", job)
    return start_ranks([str(ROOT / "tests/workers/train_and_die.py"), str(file), point], ranks)


def wait_for_death(ranks: list[Rank]) -> None:
    """Rank 0 must have killed itself; then every other rank is killed too."""
    try:
        code, output = ranks[0].process.wait(timeout=240), ranks[0].said()
    finally:
        kill(ranks)
    assert code == -signal.SIGKILL, output


def exact(run_folder: Path) -> list[dict[str, Any]]:
    return [{field: line[field] for field in EXACT_FIELDS} for line in training_lines(run_folder)]


def evaluations(run_folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run_folder) if "eval" in line]


@pytest.fixture(scope="module")
def killed_runs(run_files: Path) -> Outputs:
    """Every case trained straight, and trained again on two ranks, killed before step 8 and resumed; what the
    resumed runs said.
    """
    run_jobs(
        [job_of(run_files, f"straight_{stage}_{precision}", stage, precision) for stage, precision in CASES],
        run_files,
        RANKS,
    )
    jobs = [job_of(run_files, f"killed_{stage}_{precision}", stage, precision) for stage, precision in CASES]
    for job in jobs:
        wait_for_death(start_and_die(job, "before_step_8", run_files, RANKS))
        assert [line["step"] for line in training_lines(Path(job["output_dir"]))] == [1, 2, 3, 4, 5, 6, 7]
    return run_jobs([{**job, "resume": "auto"} for job in jobs], run_files, RANKS)


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_resume_is_bitwise(run_files: Path, killed_runs: Outputs, stage: int, precision: str) -> None:
    ours, straight = run_files / f"killed_{stage}_{precision}", run_files / f"straight_{stage}_{precision}"
    assert "resuming after step 6 of 12" in killed_runs[ours.name]
    assert "1 lines after step 6 moved to metrics.discarded.jsonl" in killed_runs[ours.name]
    assert exact(ours) == exact(straight)
    assert len(exact(ours)) == 12
    assert evaluations(ours) == evaluations(straight)


SAVING = {
    "overrides": {
        "train.save_every": "3",
        "train.steps": "9",
        "schedule.name": "constant",
        "schedule.warmup": "0",
    }
}


@pytest.fixture(scope="module")
def killed_saves(run_files: Path) -> Outputs:
    """One rank, ZeRO 2, killed inside its second checkpoint (step 6) at every point, saving at once and
    beside the steps; then all resumed.
    """
    jobs, scenarios = [job_of(run_files, "straight_saves", 2, "fp32", **SAVING)], {}
    for mode, point in KILLS:
        overrides = {**SAVING["overrides"], "train.async_save": str(mode == "async").lower()}
        job = job_of(run_files, f"killed_{mode}_{point}", 2, "fp32", overrides=overrides)
        flags = {name: job[name] for name in ("recipe", "deepspeed_config", "output_dir")} | overrides
        scenarios[f"{mode}_{point}"] = {
            "flags": flags,
            "acts": [(0, f"second_save {point}", "")],
            "world_size": 1,
            "port": free_port(),
        }
        jobs.append({**job, "resume": "auto"})
    ended = run_forked(scenarios, run_files)
    assert {name: outcome.codes for name, outcome in ended.items()} == {
        name: [-signal.SIGKILL] for name in scenarios
    }, ended
    return run_jobs(jobs, run_files, 1)


@pytest.mark.distributed
@pytest.mark.parametrize(("mode", "point"), KILLS)
def test_a_kill_while_saving_leaves_a_run_that_resumes(
    run_files: Path, killed_saves: Outputs, mode: str, point: str
) -> None:
    ours = run_files / f"killed_{mode}_{point}"
    whole = point in ("before_latest", "inside_latest", "inside_pruning")
    assert f"resuming after step {6 if whole else 3} of 9" in killed_saves[ours.name]
    left_over = {"before_latest": None, "inside_latest": None, "inside_pruning": "3"}.get(
        point, r"6\.[0-9a-f]{6}"
    )
    if left_over is not None:
        said = (
            rf"\.partial_step_{left_over}: an unfinished checkpoint \(killed while it was saved or "
            rf"removed\); ignored"
        )
        assert re.search(said, killed_saves[ours.name])
    assert exact(ours) == exact(run_files / "straight_saves")
    assert sorted(path.name for path in (ours / "checkpoints").iterdir() if path.is_dir()) == ["step_9"]
    assert (ours / "checkpoints" / "latest").read_text() == "step_9"
