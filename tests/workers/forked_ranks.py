"""Runs of many ranks, each rank a forked process: `forked_ranks.py SCENARIOS.json RESULTS.json [AT_ONCE]`.

The first run is alone; after it AT_ONCE of them run beside each other. A scenario: `flags` of
`launchers/train.py`, `world_size`, `port`, `job_seconds` (SLURM's time limit), `stall_seconds` (how long its
ranks may compute nothing), and `acts`: [rank, point, action] each.

Points: `tokenizing`, `step_N` (before it), `inside_step_N` (before its update), `evaluating_N`, `saving_N`,
and `second_save POINT`, one of train_and_die.py, where rank 0 kills itself.

Actions: `file_limit N` (no file of this rank grows beyond N bytes; -1: any size), `fill FOLDER` and
`free FOLDER` (its disk), `hang`, `raise`, `pause` (all ranks are stopped for `pause_seconds`), or the name
of a signal that the rank sends itself.

Results: exit codes (negative: the signal; none: it hung and was killed), what each rank said, seconds in
all and from the first act to the end.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers.warm import Progress

from mtdnn_ds import cli
from mtdnn_ds.faults.heartbeat import on_heartbeat
from workers.train_and_die import die_in_second_save

# Ranks that compute next to nothing in this time hang, and those that compute more go round in circles.
STALL_SECONDS = 60
CPU_SECONDS_AT_MOST = 900


def act(action: str, acted: Path) -> None:
    acted.write_text(str(time.time()))
    if action == "hang":
        while True:
            signal.pause()
    elif action == "raise":
        raise RuntimeError("a fault of this rank's own")
    elif action == "pause":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action.startswith("file_limit "):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(action.split()[1]), resource.RLIM_INFINITY))
    elif action.startswith("fill "):
        fill(Path(action.split()[1]))
    elif action.startswith("free "):
        (Path(action.split()[1]) / "filler").unlink()
    else:
        os.kill(os.getpid(), signal.Signals[action])


def fill(folder: Path) -> None:
    """Leave no byte on the folder's disk, which should be small."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        for length in (2**20, 2**12, 1):
            with suppress(OSError):
                while filler.write(bytes(length)) == length:
                    pass


PLACES = {  # by mtdnn_ds/faults/heartbeat.py
    "step": "step {}, beginning",
    "inside_step": "step {}, update",
    "evaluating": "evaluating step {}",
    "saving": "saving step {}",
}


def arm(point: str, action: str, acted: Path) -> None:
    if point.startswith("second_save "):
        die_in_second_save(point.removeprefix("second_save "))
        return

    there = point
    if point != "tokenizing":
        name, _, step = point.rpartition("_")
        there = PLACES[name].format(step)

    def listen(place: str) -> None:
        if place == there:
            act(action, acted)

    on_heartbeat(listen)


def become_rank(rank: int, scenario: dict[str, Any], output: Any, acted: Path) -> int:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    # A shell's background job, and what it starts, ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    size = scenario.get("world_size", 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_SIZE": str(size),
    }
    os.environ |= {"CROSS_RANK": "0", "CROSS_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(scenario["port"])}
    if "job_seconds" in scenario:
        os.environ["SLURM_JOB_END_TIME"] = str(int(time.time() + scenario["job_seconds"]))

    for who, point, action in scenario.get("acts", []):
        if who == rank:
            arm(point, action, acted)
    return cli.train_main([f"--{name}={value}" for name, value in scenario["flags"].items()])


def run(scenario: dict[str, Any], folder: Path) -> dict[str, Any]:
    acted, begin = folder / f"acted_{scenario['port']}", time.time()
    acted.unlink(missing_ok=True)
    outputs = [tempfile.TemporaryFile("w+") for _ in range(scenario.get("world_size", 2))]  # noqa: SIM115

    pids = []
    for rank, output in enumerate(outputs):
        pid = os.fork()
        if pid == 0:
            sys.exit(become_rank(rank, scenario, output, acted))
        pids.append(pid)
    codes = wait_for_ranks(pids, scenario)
    end = time.time()

    said = []
    for output in outputs:
        output.seek(0)
        said.append(output.read())
        output.close()
    return {
        "codes": codes,
        "said": said,
        "seconds": end - begin,
        "seconds_after_act": end - float(acted.read_text()) if acted.exists() else None,
    }


def wait_for_ranks(pids: list[int], scenario: dict[str, Any]) -> list[int | None]:
    """Exit codes of all ranks, None of those that had to be killed.

    Where one has stopped itself to `pause`, all are stopped for that long.
    """
    codes: dict[int, int | None] = {}
    # While all ranks are paused, nothing is computed.
    stall_seconds = scenario.get("stall_seconds", STALL_SECONDS) + scenario.get("pause_seconds", 0)
    progress = Progress(pids, stall_seconds=stall_seconds, cpu_seconds_at_most=CPU_SECONDS_AT_MOST)
    pause = scenario.get("pause_seconds")

    while len(codes) < len(pids):
        living = [pid for pid in pids if pid not in codes]
        if pause and any(os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG) for pid in living):
            for pid in living:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(pause)
            for pid in living:
                os.kill(pid, signal.SIGCONT)
            pause = None

        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)

        if progress.has_ended():
            break
        time.sleep(0.02)

    for pid in pids:
        if pid not in codes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            codes[pid] = None
    return [codes[pid] for pid in pids]


def main(scenarios_file: str, results_file: str, at_once: str = "1") -> None:
    folder, scenarios = Path(results_file).parent, json.loads(Path(scenarios_file).read_text())
    first, *others = scenarios
    results = {first: run(scenarios[first], folder)}  # it fills the data cache

    lanes = [others[lane :: int(at_once)] for lane in range(int(at_once))]
    files = [folder / f"lane_{lane}.json" for lane in range(len(lanes))]
    pids = []
    for names, file in zip(lanes[1:], files[1:], strict=True):
        pid = os.fork()
        if pid == 0:
            file.write_text(json.dumps({name: run(scenarios[name], folder) for name in names}))
            os._exit(0)
        pids.append(pid)
    results |= {name: run(scenarios[name], folder) for name in lanes[0]}

    for pid, file in zip(pids, files[1:], strict=True):
        assert os.waitpid(pid, 0)[1] == 0
        results |= json.loads(file.read_text())
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
