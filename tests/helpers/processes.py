"""Real runs for tests: the project's own commands in real processes, every one of them reaped.

Not a test file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from helpers import warm
from mtdnn_ds.config.launch import free_port

ROOT = Path(__file__).resolve().parents[2]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher sets for one rank of a single-node run."""
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "CROSS_RANK": "0",
        "CROSS_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }


@dataclass(frozen=True)
class Rank:
    """One process of a run.

    It writes to a file: a pipe that nobody reads yet would block a rank that says much.
    """

    process: subprocess.Popen[str] | warm.WarmProcess
    output: IO[str]

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read()


def start_ranks(arguments: Sequence[str], world_size: int, *, fresh: bool = False) -> list[Rank]:
    """`python ARGUMENTS` once per rank, each in a session of its own, forked from a warm process unless
    `fresh` (helpers/warm.py).
    """
    port = free_port()
    ranks = []

    for rank in range(world_size):
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by kill()
        environment = rank_environment(rank, world_size, port)
        process = warm.start(arguments, environment=environment, output=output, errors=output, fresh=fresh)
        ranks.append(Rank(process, output))

    return ranks


def kill(ranks: Sequence[Rank]) -> None:
    """kill -9 of every rank with all its children, and wait for them."""
    for rank in ranks:
        if rank.process.poll() is None:
            os.killpg(rank.process.pid, signal.SIGKILL)
        rank.process.wait()
        rank.output.close()


def wait_until(
    condition: Callable[[], bool], processes: Sequence[subprocess.Popen[Any] | warm.WarmProcess]
) -> None:
    """Wait for something that these processes do. Fails if all of them have ended without it, or hang."""
    progress = warm.Progress({process.pid for process in processes})

    while not condition():
        has_ended = all(process.poll() is not None for process in processes)
        if has_ended and condition():
            return
        assert not has_ended, f"ended before: {[process.returncode for process in processes]}"
        assert not progress.has_ended(), "nothing is computed any more"
        time.sleep(0.05)


def wait_for_death(ranks: Sequence[Rank]) -> None:
    """Rank 0 must have killed itself; then every other rank is killed too."""
    try:
        warm.wait_for([ranks[0].process])
        code, output = ranks[0].process.poll(), ranks[0].said()
    finally:
        kill(ranks)

    assert code == -signal.SIGKILL, output


def living_of_session(session: int) -> list[int]:
    """Living processes of a session: everything that a launcher, started in one of its own, has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


def wait_until_session_is_empty(session: int) -> None:
    """Wait for the end of what a launcher has left behind in its session. Fails if that hangs."""
    progress = warm.Progress([session])
    while living_of_session(session):
        assert not progress.has_ended(), f"still there: {living_of_session(session)}"
        time.sleep(0.05)


def run_ranks(arguments: Sequence[str], world_size: int, *, fresh: bool = False) -> str:
    """Run all ranks to a good end, killing what is left if one hangs; returns rank 0's output."""
    ranks = start_ranks(arguments, world_size, fresh=fresh)

    try:
        warm.wait_for([rank.process for rank in ranks])
        codes = [rank.process.poll() for rank in ranks]
        outputs = [rank.said() for rank in ranks]
    finally:
        kill(ranks)

    assert codes == [0] * world_size, f"exit codes {codes}\n" + "\n----\n".join(outputs)[-6000:]
    return outputs[0]


def run_jobs(
    jobs: Sequence[Mapping[str, Any]],
    folder: Path,
    world_size: int,
    worker: str = "train_jobs.py",
) -> dict[str, str]:
    """Train several runs in one process group (tests/workers/WORKER); returns what rank 0 said in each, by
    run folder name.
    """
    file = folder / f"jobs_{free_port()}.json"
    file.write_text(json.dumps(list(jobs)))
    output = run_ranks([str(ROOT / "tests/workers" / worker), str(file)], world_size)
    parts = output.split("== ")[1:]
    return {part.split("\n", 1)[0]: part for part in parts}


def run_command(
    arguments: Sequence[str], *, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` without a launcher, forked from the warm process unless `fresh`; killed if hung."""
    given = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    return warm.run(arguments, environment={**given, "PYTHONPATH": str(ROOT), **environment}, fresh=fresh)


def lines(run_folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def training_lines(run_folder: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run_folder) if "loss" in line]


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(values))
    return path


def zero_config(stage: int, precision: str = "fp32") -> dict[str, Any]:
    """A small DeepSpeed JSON of the given ZeRO stage; fp32, bf16, or autocast (bf16 by torch_autocast)."""
    config: dict[str, Any] = {"zero_optimization": {"stage": stage}}
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    if precision == "autocast":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config
