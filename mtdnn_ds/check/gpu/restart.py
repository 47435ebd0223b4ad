"""Parts saves and resume: how long BERT-large's checkpoints take, and whether a killed run goes on as if
nothing had been.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.large_run import LargeRun, large_run
from mtdnn_ds.check.gpu.results import Row, RowStatus, last_lines
from mtdnn_ds.check.tiny_runs import losses_of, tiny_recipe, trained
from mtdnn_ds.check.verify.jobs import rank_environment
from mtdnn_ds.checkpoint.saver import Saver
from mtdnn_ds.config.launch import free_port
from mtdnn_ds.faults.heartbeat import on_heartbeat
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.train.engine import start_distributed

NUM_STEPS, SAVED_STEP = 6, 3
SETTINGS = {
    "train.steps": str(NUM_STEPS),
    "train.save_every": str(SAVED_STEP),
    "train.dropout": "model",
    "train.keep_last": "3",
}
TOLERANCE = 3e-2  # of bf16, as between two straight runs
DEEPSPEED: dict[str, object] = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}


# Saves


def look_at_saves(bench: Bench) -> None:
    """At once, then in the background."""
    run = large_run(bench, "eager")
    if run is None:
        return
    for name, in_background in (("at once", False), ("in the background", True)):
        bench.tried(name, partial(_save, bench, run, name, in_background))


def _save(bench: Bench, run: LargeRun, name: str, in_background: bool) -> Row:
    folder = bench.scratch / "saves"
    folder.mkdir()
    saver = Saver(
        run.run.engine,
        folder,
        keep_last=1,
        on_error="stop",
        in_background=in_background,
        step=0,
    )
    try:
        begin = time.perf_counter()
        saver.save(step=1, run_state={})
        paused = time.perf_counter() - begin
        saver.wait()
        whole = time.perf_counter() - begin
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(folder)
    figures = {"GB": round(num_bytes / 1e9, 2), "pause_s": paused, "whole_s": whole}
    return Row(name=name, figures={**figures, "GB/s": num_bytes / 1e9 / whole})


# Kill and resume


def look(bench: Bench) -> None:
    """A run that is killed after a checkpoint and resumed, against one that is not."""
    start_distributed()
    bench.tried("killed and resumed", partial(_resumed, bench))


def _resumed(bench: Bench) -> Row:
    whole, killed = bench.scratch / "resume_whole", bench.scratch / "resume_killed"
    recipe = tiny_recipe(bench.scratch)
    expected = losses_of(trained(whole, recipe, DEEPSPEED, SETTINGS))

    words = [sys.executable, "-m", "mtdnn_ds.check.gpu.restart", str(killed), str(bench.scratch)]
    ended = subprocess.run(words, env=rank_environment(0, 1, free_port()), capture_output=True, text=True)
    if ended.returncode != -signal.SIGKILL:
        raise RuntimeError(
            f"the run that was to be killed ended with code {ended.returncode}: {last_lines(ended.stderr, 3)}"
        )

    before = losses_of(RunFolder(killed / "run"))
    after = losses_of(trained(killed, recipe, DEEPSPEED, SETTINGS, resume="auto"))
    if len(before) != SAVED_STEP + 1 or len(after) != NUM_STEPS:
        raise RuntimeError(f"{len(before)} steps before the kill and {len(after)} at the end")

    difference = float(np.max(np.abs(after - expected) / np.abs(expected)))
    figures = {"largest_difference": difference, "steps_repeated": len(before) - SAVED_STEP}
    status, found = verdict(difference)
    what = f"losses of all steps against the undisturbed run, relative: {found}"
    return Row(name="killed and resumed", status=status, figures=figures, what=what)


def verdict(difference: float) -> tuple[RowStatus, str]:
    """Of a resumed run, by the largest relative difference of its losses."""
    if difference == 0:
        return "ok", "equal bit for bit"
    if difference < TOLERANCE:  # not so of NaN
        return "missed", "close"
    return "failed", "not the same run"


def train_and_die(folder: Path, shared: Path) -> None:
    """Train in `folder`, and kill this process before the step after the one that follows the checkpoint."""
    place = f"step {SAVED_STEP + 2}, beginning"

    def die(text: str) -> None:
        if text == place:
            os.kill(os.getpid(), signal.SIGKILL)

    on_heartbeat(die)
    trained(folder, tiny_recipe(shared), DEEPSPEED, SETTINGS)


if __name__ == "__main__":
    train_and_die(Path(sys.argv[1]), Path(sys.argv[2]))
