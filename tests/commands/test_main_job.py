"""The main job as a user runs it:
`deepspeed launchers/train.py` on the quickstart recipe, then resuming, evaluating, and a wrong flag.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import warm
from helpers.processes import free_port, lines, run_command, training_lines

TASKS = [
    f"quickstart_{name}" for name in ("acceptability", "sentiment", "paraphrase", "entailment", "similarity")
]
# What always answering the most frequent label gets on the generated dev splits; 0 for correlations.
BASELINES = {"quickstart_sentiment": 0.516, "quickstart_paraphrase": 0.536, "quickstart_entailment": 0.377}


def deepspeed(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The real launcher, from the environment the tests run in."""
    tools = str(Path(sys.executable).parent)
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")
    }
    env["PATH"] = f"{tools}:{env['PATH']}"
    command = [f"{tools}/deepspeed", "--master_port", str(free_port()), *arguments]
    return warm.run(command, environment=env, fresh=True)


SHORT = ["--train.steps", "20", "--train.eval_every", "20", "--train.save_every", "20"]


def train_quickstart(folder: Path, *settings: str) -> Path:
    """The first command of README.md, with its output beside the run."""
    arguments = ["launchers/train.py", "--deepspeed_config", "ds_configs/zero2.json"]
    ended = deepspeed([*arguments, "--output_dir", str(folder), *settings])
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    (folder.parent / "output.txt").write_text(ended.stdout)
    return folder


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_quickstart(tmp_path_factory.mktemp("main_job") / "quickstart", *SHORT)


@pytest.fixture(scope="module")
def whole_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_quickstart(tmp_path_factory.mktemp("whole_job") / "quickstart")


@pytest.mark.slow
@pytest.mark.distributed
def test_every_quickstart_task_is_clearly_above_its_majority_baseline(whole_quickstart: Path) -> None:
    assert [line["step"] for line in training_lines(whole_quickstart)] == list(range(1, 251))
    metrics = [line for line in lines(whole_quickstart) if "eval" in line][-1]["eval"]
    assert sorted(metrics) == sorted(TASKS)
    for task in TASKS:
        assert next(iter(metrics[task].values())) > BASELINES.get(task, 0.0) + 0.15, (task, metrics[task])


@pytest.mark.distributed
def test_the_run_says_where_it_is_and_shows_every_task(quickstart: Path) -> None:
    output = (quickstart.parent / "output.txt").read_text()
    assert f"run folder: {quickstart}\nTensorBoard: tensorboard --logdir {quickstart}" in output
    assert all(f"\n{task} " in output for task in TASKS)
    assert "FutureWarning" not in output


@pytest.mark.distributed
def test_every_task_has_its_own_curve_in_tensorboard(quickstart: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(quickstart / "tensorboard")).Reload()
    tags = set(board.Tags()["scalars"])
    assert {f"loss/{task}" for task in TASKS} <= tags
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 21))
    assert {name.split("/")[1] for name in tags if name.startswith("eval/")} == {*TASKS, "average"}


@pytest.mark.distributed
def test_metrics_lines_have_the_documented_fields(quickstart: Path) -> None:
    fields = (
        "step loss task_loss task_examples lr grad_norm loss_scale skipped tokens "
        "tokens_per_second padding_efficiency rank_imbalance micro_batches seconds wait_fraction"
    )
    assert all(list(line) == fields.split() for line in training_lines(quickstart))
    assert all(sum(line["task_examples"].values()) == 32 for line in training_lines(quickstart))


@pytest.mark.distributed
def test_a_finished_run_is_not_trained_again_nor_overwritten(quickstart: Path) -> None:
    before = (quickstart / "metrics.jsonl").read_bytes()
    arguments = ["launchers/train.py", "--output_dir", str(quickstart), *SHORT]
    again = run_command([*arguments, "--resume", "auto"])
    assert again.returncode == 0, again.stderr
    assert "resuming after step 20 of 20" in again.stdout
    refused = run_command(arguments)
    assert refused.returncode == 2
    assert (
        f"--output_dir {quickstart}: is not empty; "
        "add --resume auto to go on with that run, or give another --output_dir"
    ) in refused.stderr
    assert (quickstart / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.distributed
def test_evaluate_gives_what_training_reported(whole_quickstart: Path) -> None:
    reported = [line for line in lines(whole_quickstart) if "eval" in line][-1]
    ended = run_command(["-m", "mtdnn_ds", "evaluate", str(whole_quickstart), "--checkpoint", "latest"])
    assert ended.returncode == 0, ended.stderr
    last = next(line for line in ended.stdout.splitlines() if line.startswith("average"))
    assert float(last.split()[1]) == pytest.approx(reported["average"], abs=1e-4)


@pytest.mark.distributed
def test_runs_leave_nothing_in_shared_memory(quickstart: Path) -> None:
    before = set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*"))
    ended = run_command(["launchers/train.py", "--output_dir", str(quickstart), "--resume", "auto", *SHORT])
    assert ended.returncode == 0
    assert set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*")) == before


@pytest.mark.distributed
def test_a_wrong_flag_under_the_launcher_is_refused_once(tmp_path: Path) -> None:
    ended = deepspeed(
        [
            "--num_accelerators",
            "2",
            "launchers/train.py",
            "--output_dir",
            str(tmp_path / "run"),
            "--train.setps",
            "5",
        ]
    )
    assert ended.returncode == 2
    assert (ended.stdout + ended.stderr).count("did you mean '--train.steps'?") == 1
    assert not (tmp_path / "run").exists()
