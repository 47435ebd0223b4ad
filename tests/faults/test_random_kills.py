"""Promise 4 under torchrun: random ranks killed at random moments, started again, and nothing is lost.

Real processes, dropout on. Three kills in the default suite; the twenty of the bar with `-m bars`.
MTDNN_KILL_SEED chooses other moments; the seed is printed.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.fault_runs import evaluations, exact, flags, run_forked, scenario, write_run_files
from helpers.processes import ROOT, free_port, living_of_session, training_lines, wait_until
from helpers.warm import wait_for

SEED = int(os.environ.get("MTDNN_KILL_SEED", "20261124"))
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    """100 steps, saved every 4, and the undisturbed run."""
    folder = write_run_files(
        tmp_path_factory.mktemp("kills"), official_files, tiny_encoder, steps=100, save_every=4, eval_every=10
    )
    ended = run_forked({"straight": scenario(folder, "straight")}, folder)["straight"]
    assert ended.codes == [0, 0], ended.said
    return folder


def ranks_of(agent: int, run_folder: Path) -> dict[int, int]:
    """Rank -> pid of the living ranks of a run, by the environment that torchrun has given them."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode(errors="replace")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (
                parent == agent
                and f"--output_dir={run_folder}" in command
                and "launchers/train.py" in command
            ):
                environment = dict(
                    item.split("=", 1)
                    for item in (path / "environ").read_bytes().decode().split("\0")
                    if "=" in item
                )
                found[int(environment["RANK"])] = int(path.name)
        except (OSError, KeyError):  # it ends, or has not begun
            continue
    return found


@dataclass(frozen=True)
class Kill:
    rank: int
    step: int  # that the run had reached
    seconds: float  # since both ranks were there


def run_with_kills(
    run_files: Path, name: str, num_kills: int, seed: int, port: int
) -> tuple[list[Kill], str]:
    """Train under torchrun and kill random ranks; returns the kills, and all that was said."""
    print(f"seed of the kills: {seed}")
    random_ = random.Random(seed)
    folder, log = run_files / name, run_files / f"{name}.log"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--max_restarts", str(num_kills + 2), "--monitor_interval", "0.1"),
        *("--master_addr", "127.0.0.1", "--master_port", str(port), str(ROOT / "launchers/train.py")),
        *(f"--{flag}={value}" for flag, value in flags(run_files, name, resume="auto").items()),
    ]
    with log.open("w") as stream:
        agent = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    kills: list[Kill] = []
    seconds_to_begin = 0.0
    dead: set[int] = set()
    try:
        while len(kills) < num_kills:
            ranks = next_ranks(agent, folder, dead)
            begin, reached = time.monotonic(), last_step(folder)

            # Some kills come at any time of a start, also before there is anything to lose; most once it has
            # gone on by some steps.
            at_a_step = len(kills) < 2 or random_.random() < 0.7
            moment = math.inf if at_a_step else begin + random_.uniform(0, 1) * seconds_to_begin
            wanted, then = reached + random_.randint(1, 6), random_.uniform(0, 0.1)
            wait_until(is_reached(agent, folder, wanted, moment), [agent])
            if at_a_step:
                seconds_to_begin = time.monotonic() - begin
            time.sleep(then)

            rank = random_.choice(sorted(ranks))
            try:
                os.kill(ranks[rank], signal.SIGKILL)
            except ProcessLookupError:  # the run is done
                break
            kills.append(Kill(rank, last_step(folder), time.monotonic() - begin))
            dead |= set(ranks.values())

        assert wait_for([agent]) and agent.returncode == 0, log.read_text()[-4000:]
        assert living_of_session(agent.pid) == []
    finally:
        for pid in living_of_session(agent.pid):
            os.kill(pid, signal.SIGKILL)
        agent.wait()
    return kills, log.read_text()


def is_reached(agent: subprocess.Popen[bytes], folder: Path, step: int, moment: float) -> Callable[[], bool]:
    """Whether the run is at the step, or the moment has come."""
    return lambda: agent.poll() is not None or last_step(folder) >= step or time.monotonic() >= moment


def next_ranks(agent: subprocess.Popen[bytes], folder: Path, dead: set[int]) -> dict[int, int]:
    """Both ranks of the next start, once they are there."""
    ranks: dict[int, int] = {}

    def are_there() -> bool:
        ranks.clear()
        ranks.update((rank, pid) for rank, pid in ranks_of(agent.pid, folder).items() if pid not in dead)
        return len(ranks) == 2

    wait_until(are_there, [agent])
    return ranks


def last_step(folder: Path) -> int:
    """Of the log as it is now."""
    file = folder / "metrics.jsonl"
    found = (
        re.findall(r'^\{"step": (\d+), "loss"', file.read_text(), flags=re.MULTILINE) if file.exists() else []
    )
    return int(found[-1]) if found else 0


def check(run_files: Path, name: str, num_kills: int, seed: int) -> None:
    port = free_port()
    run, undisturbed = run_files / name, run_files / "straight"
    kills, log = run_with_kills(run_files, name, num_kills, seed, port)
    for kill in kills:
        print(f"rank {kill.rank} killed at step {kill.step}, {kill.seconds:.1f} s after the start")
    assert len(kills) == num_kills, kills

    ours, straight = exact(run), exact(undisturbed)
    assert [line["step"] for line in ours] == list(range(1, 101))
    assert ours == straight  # losses, gradient norms and the examples of each task, bit for bit
    assert evaluations(run) == evaluations(undisturbed)

    # Steps that were done again had the same examples and losses.
    repeated = repeated_steps(run)
    by_step = {line["step"]: line for line in training_lines(undisturbed)}
    for line in repeated:
        for field in ("loss", "task_examples", "grad_norm"):
            assert line[field] == by_step[line["step"]][field]

    # Every example of the plan was used: 16 a step, and of each task as many as the undisturbed run drew.
    used = Counter[str]()
    for line in ours:
        used.update(line["task_examples"])
    assert sum(used.values()) == 1600

    assert [path.name for path in SHARED_MEMORY.iterdir() if f"_{port}_" in path.name] == []
    assert [path.name for path in (run / "checkpoints").glob(".partial*")] == []

    # A lost rank is named whenever the watch had begun.
    named = log.count(" is lost: its process ended without a word")
    print(f"steps repeated: {len(repeated)}; named by the watch: {named}")


def repeated_steps(run: Path) -> list[dict[str, Any]]:
    """Lines of steps that were done and lost."""
    discarded = run / "metrics.discarded.jsonl"
    if not discarded.exists():
        return []
    return [line for line in map(json.loads, discarded.read_text().splitlines()) if "loss" in line]


@pytest.mark.slow
@pytest.mark.distributed
def test_three_random_kills_lose_nothing(run_files: Path) -> None:
    check(run_files, "three", 3, SEED)


@pytest.mark.bars
@pytest.mark.timeout(3600)
def test_twenty_random_kills_lose_nothing(run_files: Path) -> None:
    check(run_files, "twenty", 20, SEED)
