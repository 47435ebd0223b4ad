"""The shipped train.sbatch on a real SLURM cluster of two nodes: equal losses, requeued stops, lost
processes, cancelled jobs, arrays.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml
from helpers.fault_runs import exact
from helpers.processes import ROOT, lines, training_lines, write_json, zero_config
from helpers.slurm_cluster import PACKAGES, missing_programs, running_cluster, wait_until

SCRIPT = ROOT / "launchers" / "train.sbatch"
STEPS = 200

# Jobs are SLURM's and no children of this process. What is waited for takes seconds, if busy minutes.
WAIT_SECONDS = 900

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@dataclass(frozen=True)
class Cluster:
    """A running cluster and the folder that jobs are submitted from."""

    environment: Mapping[str, str]
    folder: Path

    def command(self, *words: str, check: bool = True, **environment: str) -> str:
        ended = subprocess.run(
            words,
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
        assert not check or ended.returncode == 0, (
            f"{words}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        )
        return ended.stdout.strip()

    def submit(
        self, run: str, *overrides: str, options: tuple[str, ...] = ("--nodes=2",), **environment: str
    ) -> str:
        """sbatch of the shipped script; returns the job's number."""
        fixed = ("tiny.yaml", "--deepspeed_config", "fp32.json", "--output_dir", f"runs/{run}")
        return self.command("sbatch", "--parsable", *options, str(SCRIPT), *fixed, *overrides, **environment)

    def field(self, job: str, name: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", self.command("scontrol", "show", "job", job))
        assert found is not None
        return found[1]

    def wait_for(self, job: str, *states: str, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Until the job is in one of `states`; what it said, if it takes too long."""
        try:
            wait_until(
                lambda: self.field(job, "JobState") in states,
                f"job {job} is {' or '.join(states)}",
                timeout_seconds,
            )
        except TimeoutError as error:
            raise AssertionError(f"{error}; it is {self.field(job, 'JobState')}\n{self.said(job)}") from None

    def start_now(self, job: str) -> None:
        """Spare a requeued job SLURM's pause of two minutes."""
        self.wait_for(job, "PENDING")

        def begins() -> bool:
            eligible = self.field(
                job, "EligibleTime"
            )  # is set a moment after the state, when the earlier start of the job has ended
            if eligible != "Unknown" and datetime.fromisoformat(eligible) > datetime.now() + timedelta(
                seconds=10
            ):
                # Not at once: credentials of the second in which the job was requeued are revoked, and a
                # start then ends the job.
                self.command("scontrol", "update", f"JobId={job}", "StartTime=now+2", check=False)
            return self.field(job, "JobState") == "RUNNING"

        wait_until(begins, f"job {job} runs again", WAIT_SECONDS)

    def said(self, job: str) -> str:
        with suppress(FileNotFoundError):
            return (self.folder / f"slurm-{job}.out").read_text()
        return ""

    def wait_for_step(self, run: str, step: int) -> None:
        file = self.folder / "runs" / run / "metrics.jsonl"
        wait_until(
            lambda: file.exists() and file.read_bytes().count(b"\n") >= step,
            f"{run} is at step {step}",
            WAIT_SECONDS,
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Iterator[Cluster]:
    if missing_programs():
        needs = f"needs SLURM ({PACKAGES}); missing: {', '.join(missing_programs())}"
        if os.environ.get("CI") == "true":
            pytest.fail(needs)
        pytest.skip(needs)
    folder = tmp_path_factory.mktemp("slurm")
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 32},
        "tasks": ["quickstart_sentiment", "quickstart_entailment", "quickstart_similarity"],
        "batch": {"examples_per_step": 8, "max_tokens_per_micro_batch": 256},
        "optimizer": {"name": "adamw", "lr": 1e-4},
        "schedule": {"name": "constant", "warmup": 0},
        "train": {"steps": STEPS, "dropout": "none", "eval_every": 0},
        "data": {"cache_dir": str(folder / "cache")},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    write_json(folder / "fp32.json", zero_config(2))
    with running_cluster(folder / "cluster") as environment:
        yield Cluster({**environment, "MTDNN_PYTHON": sys.executable}, folder)


@pytest.fixture(scope="module")
def two_nodes(cluster: Cluster) -> Path:
    """The run folder of a job that nothing disturbed."""
    job = cluster.submit("two_nodes")
    cluster.wait_for(job, "COMPLETED", "FAILED")
    assert cluster.field(job, "ExitCode") == "0:0", cluster.said(job)
    return cluster.folder / "runs" / "two_nodes"


def test_tasks_of_a_step_find_their_places(cluster: Cluster) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR")
    code = (
        f"import os; from mtdnn_ds.config.launch import take_place; take_place(); "
        f"print(*(os.environ.get(name) for name in {names}))"
    )
    step = cluster.command(
        "srun", "-N2", "-n3", "-m", "block", sys.executable, "-c", code, PYTHONPATH=str(ROOT)
    )
    # The nodes' names mean nothing outside of SLURM, so rank 0's address is asked of it.
    assert sorted(step.splitlines()) == [
        "0 0 3 2 0 2 127.0.0.1",
        "1 1 3 2 0 2 127.0.0.1",
        "2 0 3 1 1 2 127.0.0.1",
    ]
    # A plain python in an allocation is a run of its own.
    assert cluster.command(
        "salloc", "-N2", "-n3", sys.executable, "-c", code, PYTHONPATH=str(ROOT)
    ) == " ".join(["None"] * len(names))


@pytest.fixture(scope="module")
def array(cluster: Cluster) -> dict[int, Path]:
    """Run folders of an array of two seeds, each on one node."""
    job = cluster.submit("array", "--train.steps", "30", options=("--nodes=1", "--array=0-1"))
    wait_until(
        lambda: not cluster.command("squeue", "--noheader", "--jobs", job),
        "the array has ended",
        WAIT_SECONDS,
    )
    for seed in (0, 1):
        assert cluster.field(f"{job}_{seed}", "ExitCode") == "0:0", cluster.said(f"{job}_{seed}")
    return {seed: cluster.folder / "runs" / f"array_seed_{seed}" for seed in (0, 1)}


def test_two_nodes_give_the_losses_of_one_process(two_nodes: Path, array: dict[int, Path]) -> None:
    one = array[0]
    ours, theirs = training_lines(two_nodes)[:30], training_lines(one)
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], abs=1e-4)
    assert [list(line) for line in ours] == [list(line) for line in theirs]
    assert list(lines(two_nodes)[-1]) == list(lines(one)[-1]) == ["step", "eval", "average"]
    assert json.loads((two_nodes / "environment.json").read_text())["topology"]["world_size"] == 2
    logs = sorted(path.name.split("_", 1)[1] for path in (two_nodes / "logs").iterdir())
    assert logs == ["rank_0.log", "rank_1.log"]
    assert "dev metrics after step" in next((two_nodes / "logs").glob("*_rank_0.log")).read_text()


def test_three_preemptions_repeat_no_step_and_change_no_loss(cluster: Cluster, two_nodes: Path) -> None:
    job, run = cluster.submit("preempted"), cluster.folder / "runs" / "preempted"
    for step in (15, 60, 110):
        cluster.wait_for_step("preempted", step)
        cluster.command(
            "scancel", "--signal=USR1", "--batch", job
        )  # as --signal=B:USR1@120 does before a limit
        cluster.start_now(job)
    cluster.wait_for(job, "COMPLETED", "FAILED")
    assert (cluster.field(job, "ExitCode"), cluster.field(job, "Restarts")) == ("0:0", "3"), cluster.said(job)
    assert cluster.said(job).count("stopped; a new checkpoint is saved; put back into the queue") == 3
    assert [line["step"] for line in training_lines(run)] == list(range(1, STEPS + 1))
    assert not (run / "metrics.discarded.jsonl").exists()
    assert exact(run) == exact(two_nodes)
    assert lines(run)[-1] == lines(two_nodes)[-1]  # the evaluation


def test_a_lost_process_is_started_again_and_a_cancelled_job_is_not(cluster: Cluster) -> None:
    job = cluster.submit("lost", "--train.save_every", "10", MTDNN_SETTLE_SECONDS="3")
    cluster.wait_for_step("lost", 15)
    os.kill(process_of(job, rank=1), signal.SIGKILL)
    cluster.wait_for(job, "PENDING")
    done = len(lines(cluster.folder / "runs" / "lost"))
    cluster.start_now(job)
    assert (
        "a process or node was lost (exit code 137); a new checkpoint is saved; put back into the queue"
        in cluster.said(job)
    )
    cluster.wait_for_step("lost", done + 5)  # past what was repeated
    log = cluster.folder / "runs" / "lost" / "logs" / f"{job}_rank_0.log"
    assert re.search(r"resuming after step [1-9]\d* of", log.read_text())
    cluster.command("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    assert cluster.field(job, "Restarts") == "1"
    assert re.search(
        r"SLURM ends it \((CANCELLED|COMPLETING)\); the same command goes on from the newest checkpoint",
        cluster.said(job),
    )
    stop = json.loads((cluster.folder / "runs" / "lost" / "stops.jsonl").read_text().splitlines()[-1])
    assert (
        cluster.folder / "runs" / "lost" / "checkpoints" / f"step_{stop['step']}" / "manifest.json"
    ).exists()


def test_an_array_trains_a_run_for_each_seed(array: dict[int, Path]) -> None:
    seeds = [yaml.safe_load((run / "recipe.yaml").read_text())["train"]["seed"] for run in array.values()]
    losses = [[line["loss"] for line in training_lines(run)] for run in array.values()]
    assert seeds == [0, 1]
    assert len(losses[0]) == len(losses[1]) == 30 and losses[0] != losses[1]


def test_the_deepspeed_launcher_on_each_node_trains_and_stops_alike(
    cluster: Cluster, two_nodes: Path
) -> None:
    job = cluster.submit("deepspeed", MTDNN_LAUNCHER="deepspeed")
    cluster.wait_for_step("deepspeed", 10)
    cluster.command("scancel", "--signal=USR1", "--batch", job)
    cluster.wait_for(job, "PENDING", "FAILED", "COMPLETED")
    assert "stopped; a new checkpoint is saved; put back into the queue" in cluster.said(job)
    ours = exact(cluster.folder / "runs" / "deepspeed")
    cluster.command("scancel", job)
    assert 10 <= len(ours) < STEPS and ours == exact(two_nodes)[: len(ours)]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {}, "the first argument must be a recipe: sbatch launchers/train.sbatch RECIPE"),
        (
            ("tiny.yaml", "--resume", "none"),
            {},
            "--resume: leave it out; a job always goes on from the newest checkpoint",
        ),
        (("tiny.yaml",), {"MTDNN_LAUNCHER": "mpirun"}, "MTDNN_LAUNCHER=mpirun: must be srun or deepspeed"),
        (
            ("tiny.yaml",),
            {"MTDNN_PROCESSES": "two"},
            "MTDNN_PROCESSES=two: must be a whole number, at least 1",
        ),
        (
            ("tiny.yaml", "--train.setps", "1"),
            {},
            "unknown setting '--train.setps'; did you mean '--train.steps'?",
        ),
    ],
)
def test_wrong_jobs_are_refused_and_not_started_again(
    cluster: Cluster, arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    job = cluster.command("sbatch", "--parsable", "--nodes=2", str(SCRIPT), *arguments, **environment)
    cluster.wait_for(job, "FAILED", "COMPLETED")
    assert (cluster.field(job, "ExitCode"), cluster.field(job, "Restarts")) == ("2:0", "0")
    assert cluster.said(job).count(message) == 1, cluster.said(job)


def process_of(job: str, rank: int) -> int:
    """The process of a job's rank: its task runs the command itself."""
    marks = {
        f"SLURM_JOB_ID={job}".encode(),
        f"SLURM_PROCID={rank}".encode(),
        f"SLURM_STEP_NUM_TASKS={2}".encode(),
    }
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and marks <= set((entry / "environ").read_bytes().split(b"\0")):
                return int(entry.name)
    raise AssertionError(f"job {job} has no rank {rank}")
