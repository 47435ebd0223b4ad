"""Promise 4 inside a save: killed at every point of its second checkpoint, a run goes on from a whole one.

Real kills of a real rank, dropout on, saving at once and beside the steps.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.fault_runs import Outcome, exact, run_forked, scenario, write_run_files
from workers.train_and_die import SAVE_POINTS

pytestmark = pytest.mark.slow

KILLS = [(mode, point) for mode in ("sync", "async") for point in SAVE_POINTS]

SAVED = {
    "world_size": 1,
    "train__save_every": "3",
    "train__steps": "9",
    "schedule__name": "constant",
    "schedule__warmup": "0",
}


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    return write_run_files(tmp_path_factory.mktemp("saves"), official_files, tiny_encoder, keep_last=1)


@pytest.fixture(scope="module")
def outcomes(run_files: Path) -> dict[str, Outcome]:
    """One rank, ZeRO 2: straight; then killed in its second checkpoint (step 6) and resumed, in two lanes."""

    def saved(name: str, *acts: tuple[int, str, str], mode: str = "sync", **changes: Any) -> dict[str, Any]:
        beside = str(mode == "async").lower()
        return scenario(run_files, name, *acts, **{**SAVED, "train__async_save": beside, **changes})

    scenarios = {"straight": saved("straight")}
    for pair in zip(KILLS[::2], KILLS[1::2], strict=True):
        for mode, point in pair:
            name = f"{mode}_{point}"
            scenarios[name] = saved(name, (0, f"second_save {point}", ""), mode=mode)
        for mode, point in pair:
            name = f"{mode}_{point}"
            scenarios[f"{name}_resumed"] = saved(name, mode=mode, resume="auto")
    return run_forked(scenarios, run_files, at_once=2)


@pytest.mark.distributed
@pytest.mark.parametrize(("mode", "point"), KILLS)
def test_a_kill_while_saving_leaves_a_run_that_resumes(
    run_files: Path, outcomes: dict[str, Outcome], mode: str, point: str
) -> None:
    run = run_files / f"{mode}_{point}"
    killed, resumed = outcomes[run.name], outcomes[f"{run.name}_resumed"]
    assert killed.codes == [-signal.SIGKILL], killed.said
    assert resumed.codes == [0], resumed.said
    said = resumed.said[0]

    whole = point in ("before_latest", "inside_latest", "inside_pruning")
    assert f"resuming after step {6 if whole else 3} of 9" in said

    left_over = {"before_latest": None, "inside_latest": None, "inside_pruning": "3"}.get(
        point, r"6\.[0-9a-f]{6}"
    )
    if left_over is not None:
        ignored = (
            rf"\.partial_step_{left_over}: an unfinished checkpoint \(killed while it was saved or "
            rf"removed\); ignored"
        )
        assert re.search(ignored, said)

    assert exact(run) == exact(run_files / "straight")
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir()) == ["step_9"]
    assert (run / "checkpoints" / "latest").read_text() == "step_9"
