"""Stopping on request: all ranks stop after the same step, saved, with exit code 85.

The run that goes on is the undisturbed one.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.fault_runs import (
    Outcome,
    evaluations,
    exact,
    flags,
    run_forked,
    scenario,
    stops,
    write_run_files,
)
from helpers.processes import (
    ROOT,
    free_port,
    living_of_session,
    training_lines,
    wait_until,
    wait_until_session_is_empty,
)
from helpers.warm import wait_for

from mtdnn_ds.config.errors import Stopped
from mtdnn_ds.faults import stop_requests
from mtdnn_ds.faults.exit import STOPPED
from mtdnn_ds.faults.slurm_time_limit import TimeLimit, job_end, parse_time_left

pytestmark = pytest.mark.slow

# name: (acts, last step done when it stops, what is said of saving)
STOPS = {
    "sigterm_on_rank_1": ([(1, "step_5", "SIGTERM")], 4, "saved in"),
    "sigusr1_inside_a_step": ([(0, "inside_step_5", "SIGUSR1")], 5, "saved in"),
    "sigusr1_in_an_evaluation": ([(1, "evaluating_6", "SIGUSR1")], 6, "saved in"),
    "sigterm_in_a_save": ([(1, "saving_6", "SIGTERM")], 6, "saved before"),
    "on_both_and_again": (
        [(0, "inside_step_8", "SIGUSR1"), (1, "inside_step_8", "SIGTERM"), (0, "saving_8", "SIGTERM")],
        8,
        "saved in",
    ),
    "before_the_first_step": ([(1, "step_1", "SIGTERM")], 0, "nothing was to be saved"),
}


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    folder = write_run_files(tmp_path_factory.mktemp("stopping"), official_files, tiny_encoder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["stages"] = [
        {"name": "all"},
        {"name": "tune", "from": "all", "tasks": ["cola"], "train": {"steps": 4}},
    ]
    (folder / "stages.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def straight(run_files: Path) -> Outcome:
    return run_forked({"straight": scenario(run_files, "straight")}, run_files)["straight"]


@pytest.fixture(scope="module")
def outcomes(run_files: Path, straight: Outcome) -> dict[str, Outcome]:
    """The other runs, in two lanes: every second one is in the same, one after the other."""
    lanes: list[dict[str, Any]] = [{}, {}]
    for number, (name, (acts, *_)) in enumerate(STOPS.items()):
        lane = lanes[number % 2]
        lane[name] = scenario(run_files, name, *acts)
        lane[f"{name}_resumed"] = scenario(run_files, name, resume="auto")

    stages = {"recipe": str(run_files / "stages.yaml"), "resume": "auto"}
    lanes[0]["first_stage"] = scenario(run_files, "staged", (1, "step_9", "SIGTERM"), **stages)
    lanes[0]["second_stage"] = scenario(run_files, "staged", (0, "inside_step_2", "SIGUSR1"), **stages)
    lanes[0]["both_stages"] = scenario(run_files, "staged", **stages)

    lanes[1]["last_step"] = scenario(run_files, "last_step", (1, "inside_step_12", "SIGTERM"))
    lanes[1]["interrupted"] = scenario(run_files, "interrupted", (0, "step_3", "SIGINT"))

    # The first is run alone.
    scenarios = {"tokenizing": scenario(run_files, "tokenizing", (0, "tokenizing", "SIGUSR1"))}
    for names in zip_longest(*lanes):
        scenarios |= {name: lane[name] for name, lane in zip(names, lanes, strict=True) if name is not None}
    return run_forked(scenarios, run_files, at_once=2)


@pytest.mark.distributed
@pytest.mark.parametrize("name", STOPS)
def test_all_ranks_stop_after_the_same_step_and_nothing_is_lost(
    run_files: Path, outcomes: dict[str, Outcome], name: str
) -> None:
    acts, step, saving = STOPS[name]
    stopped, resumed = outcomes[name], outcomes[f"{name}_resumed"]
    assert stopped.codes == [85, 85], stopped.said
    (line,) = [line for line in stopped.said[0].splitlines() if line.startswith("stopped ")]
    first = {rank: action for rank, _, action in reversed(acts)}
    reasons = "; ".join(f"rank {rank}: signal {first[rank]}" for rank in sorted(first))
    assert line.startswith(f"stopped after step {step} of 12 ({reasons}); {saving}")
    assert "stopped" not in stopped.said[1] and "Traceback" not in "".join(stopped.said)
    assert [entry["step"] for entry in stops(run_files / name)] == [step]
    assert resumed.codes == [0, 0], resumed.said
    assert exact(run_files / name) == exact(run_files / "straight") and len(exact(run_files / name)) == 12
    assert evaluations(run_files / name) == evaluations(run_files / "straight")
    discarded = run_files / name / "metrics.discarded.jsonl"
    assert not discarded.exists() or discarded.read_text() == ""  # no step was repeated


@pytest.mark.distributed
def test_a_signal_before_training_ends_all_ranks_at_once(
    run_files: Path, straight: Outcome, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes["tokenizing"]
    assert outcome.codes == [85, 85], outcome.said
    assert "stopped before training (rank 0: signal SIGUSR1); nothing was to be saved" in outcome.said[0]
    at_once = max(5, straight.seconds)
    assert outcome.seconds_after_act is not None and outcome.seconds_after_act < at_once
    assert not (run_files / "tokenizing" / "checkpoints").exists()


@pytest.mark.distributed
def test_a_signal_in_the_last_step_changes_nothing(run_files: Path, outcomes: dict[str, Outcome]) -> None:
    assert outcomes["last_step"].codes == [0, 0], outcomes["last_step"].said
    assert exact(run_files / "last_step") == exact(run_files / "straight")
    assert (run_files / "last_step/checkpoints/step_12").is_dir()


@pytest.mark.distributed
def test_a_run_in_stages_stops_as_a_whole_and_goes_on(run_files: Path, outcomes: dict[str, Outcome]) -> None:
    ended = [outcomes[name] for name in ("first_stage", "second_stage", "both_stages")]
    assert [outcome.codes for outcome in ended] == [[85, 85], [85, 85], [0, 0]], ended
    first, second = run_files / "staged/stages/01_all", run_files / "staged/stages/02_tune"
    assert [stop["step"] for stop in stops(first)] == [8] and [stop["step"] for stop in stops(second)] == [2]
    assert exact(first) == exact(run_files / "straight")
    assert [line["step"] for line in training_lines(second)] == [1, 2, 3, 4]


@pytest.mark.distributed
def test_an_interrupted_rank_ends_with_130_and_the_other_says_who_it_was(
    outcomes: dict[str, Outcome],
) -> None:
    outcome = outcomes["interrupted"]
    assert outcome.codes == [130, 75], outcome.said
    assert "interrupted" in outcome.said[0]
    assert (
        "error: rank 0 on " in outcome.said[1] and "failed: interrupted from the keyboard" in outcome.said[1]
    )


@pytest.mark.distributed
def test_a_run_stops_before_the_job_s_time_limit(run_files: Path, straight: Outcome) -> None:
    outcome, run, job_seconds = run_with_a_time_limit(run_files, straight)
    assert outcome.codes == [85, 85], outcome.said
    (stop,) = stops(run)
    assert "the run saves and stops 1 s before that" in outcome.said[0]
    assert stop["step"] > 0 and stop["step"] == len(training_lines(run))
    assert stop["reasons"][0].startswith("rank 0: the job's time limit ends at ")
    assert (run / "checkpoints" / f"step_{stop['step']}").is_dir()
    assert outcome.seconds < job_seconds + max(4, straight.seconds)  # its steps would take hours


def run_with_a_time_limit(run_files: Path, straight: Outcome) -> tuple[Outcome, Path, int]:
    """A long run in a job that ends after some steps: a busy machine gets more time until it takes any."""
    long = {"train__steps": "100000", "train__eval_every": "0", "train__save_every": "0"}
    job_seconds = max(8, math.ceil(straight.seconds))

    while True:
        name = f"time_limit_{job_seconds}"
        limited = scenario(run_files, name, train__time_margin="1", **long)
        outcome = run_forked({name: {**limited, "job_seconds": job_seconds}}, run_files)[name]
        if outcome.codes != [85, 85] or training_lines(run_files / name):
            return outcome, run_files / name, job_seconds
        job_seconds *= 2


@pytest.mark.distributed
def test_a_deepspeed_runner_that_is_terminated_leaves_no_rank_and_loses_nothing(run_files: Path) -> None:
    given = flags(run_files, "runner", train__steps="100000", train__eval_every="0", train__save_every="0")
    run, output = run_files / "runner", run_files / "runner.log"
    command = [
        str(Path(sys.executable).with_name("deepspeed")),
        *("--num_accelerators", "2", "--master_port", str(free_port()), str(ROOT / "launchers/train.py")),
        *(f"--{name}={value}" for name, value in given.items()),
    ]
    with output.open("w") as stream:
        runner = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        wait_until(lambda: (run / "metrics.jsonl").exists() and len(training_lines(run)) > 2, [runner])
        runner.terminate()
        assert wait_for([runner]) and runner.returncode != 0, output.read_text()
        wait_until_session_is_empty(runner.pid)
    finally:
        for pid in living_of_session(runner.pid):
            os.kill(pid, signal.SIGKILL)
        runner.wait()

    (stop,) = stops(run)
    assert "the launcher is gone (deepspeed, process " in " ".join(stop["reasons"])
    assert stop["step"] == len(training_lines(run))
    assert "stopped after step" in output.read_text()


def test_handlers_are_put_back_and_a_request_is_forgotten() -> None:
    before = {number: signal.getsignal(number) for number in stop_requests.SIGNALS}
    with pytest.raises(Stopped), stop_requests.listening():
        stop_requests.set_policy(stop_requests.StopPolicy.BETWEEN_STEPS)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requests.requested() == "signal SIGUSR1"  # the first
        with stop_requests.listening():  # nested: a run within a command
            pass
        assert {number: signal.getsignal(number) for number in stop_requests.SIGNALS} != before
        raise Stopped("as a run does")
    assert {number: signal.getsignal(number) for number in stop_requests.SIGNALS} == before
    assert stop_requests.requested() is None


def test_a_forked_worker_dies_of_its_own_signals() -> None:
    with stop_requests.listening():
        stop_requests.set_policy(stop_requests.StopPolicy.BETWEEN_STEPS)
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(1)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert stop_requests.requested() is None


def test_before_training_a_process_without_others_leaves_at_once() -> None:
    code = (
        "import time; from mtdnn_ds.faults.stop_requests import listening\nwith listening(): "
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate()
    assert process.returncode == STOPPED
    assert said == "stopped before training: signal SIGUSR1; nothing is lost: the same command goes on\n"


@pytest.mark.parametrize(
    ("verb", "flags", "advice"),
    [
        ("predict", "--model m --input i.csv --output o.csv", "goes on where it was"),
        ("evaluate", "--run_dir r", "begins anew"),
        ("embed", "--model m --input i.csv --output o.npy", "begins anew"),
    ],
)
def test_a_verb_that_is_stopped_says_what_it_was(verb: str, flags: str, advice: str) -> None:
    code = f"""
import sys, time
from mtdnn_ds import cli
from mtdnn_ds.commands import {verb}
{verb}.run = lambda **_: print("ready", flush=True) or time.sleep(60)
sys.exit(cli.main({[verb, *flags.split()]!r}))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == STOPPED
    assert said == f"stopped during {verb}: signal SIGTERM; the same command {advice}\n"


def test_what_all_ranks_of_a_verb_say() -> None:
    """One rank under the watch, as `evaluate` has it."""
    code = """
import time
from mtdnn_ds.faults.stop_requests import listening, work_of_verb
from mtdnn_ds.faults.watchdog.watch import watching
with listening(work=work_of_verb("evaluate", goes_on=False)), watching(0):
    print("ready", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == STOPPED
    assert said == "stopped during evaluate (rank 0: signal SIGTERM); the same command begins anew\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04\n", 93_784.0),
        ("02:03:04", 7_384.0),
        ("3:04\n", 184.0),
        ("0:00", 0.0),
        ("UNLIMITED\n", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_time_left_as_squeue_writes_it(text: str, seconds: float | None) -> None:
    assert parse_time_left(text) == seconds


def test_the_end_of_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert job_end() is None
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without SLURM's commands
    assert job_end() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1800000000")
    assert job_end() == 1_800_000_000.0


def test_a_step_and_a_save_must_still_fit_in() -> None:
    now = time.time()
    limit = TimeLimit(end=now + 100, margin=20, longest_step=30, longest_save=40)
    assert not limit.is_near()
    limit.longest_save = 51
    assert limit.is_near()
    assert not TimeLimit(end=None, margin=20, longest_step=1e9).is_near()
