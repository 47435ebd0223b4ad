"""Promise 4: kill it anywhere, resume, and the losses are the same bit for bit.

Real kills of real ranks, dropout on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.fault_runs import evaluations, exact, write_run_files
from helpers.processes import (
    ROOT,
    Rank,
    run_jobs,
    start_ranks,
    training_lines,
    wait_for_death,
    write_json,
    zero_config,
)

RANKS = 2
STAGES = (1, 2, 3)
Outputs = dict[str, str]


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    """A folder with recipe and data."""
    return write_run_files(tmp_path_factory.mktemp("resume"), official_files, tiny_encoder, keep_last=1)


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


# Without AVX512-BF16 a CPU takes 20 times as long for bf16.
@pytest.fixture(scope="module", params=["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def killed_runs(run_files: Path, precision: str) -> Outputs:
    """Every stage in one precision trained straight, and trained again on two ranks, killed before step 8 and
    resumed; what the resumed runs said.
    """
    for stage in STAGES:
        write_json(run_files / f"zero{stage}_{precision}.json", zero_config(stage, precision))
    straight, jobs = (
        [job_of(run_files, f"{name}_{stage}_{precision}", stage, precision) for stage in STAGES]
        for name in ("straight", "killed")
    )

    run_jobs(straight, run_files, RANKS)
    for job in jobs:
        wait_for_death(start_and_die(job, "before_step_8", run_files, RANKS))
        assert [line["step"] for line in training_lines(Path(job["output_dir"]))] == [1, 2, 3, 4, 5, 6, 7]
    return run_jobs([{**job, "resume": "auto"} for job in jobs], run_files, RANKS)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bitwise(run_files: Path, killed_runs: Outputs, stage: int, precision: str) -> None:
    ours, straight = run_files / f"killed_{stage}_{precision}", run_files / f"straight_{stage}_{precision}"
    assert "resuming after step 6 of 12" in killed_runs[ours.name]
    assert "1 lines after step 6 moved to metrics.discarded.jsonl" in killed_runs[ours.name]
    assert exact(ours) == exact(straight)
    assert len(exact(ours)) == 12
    assert evaluations(ours) == evaluations(straight)
