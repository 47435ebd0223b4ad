"""One run at a time in a run folder: the second is told who is there, and nothing keeps a folder locked once
its run is dead.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.fault_runs import (
    Outcome,
    exact,
    outcomes_of,
    run_forked,
    scenario,
    start_forked,
    write_run_files,
)
from helpers.processes import ROOT, wait_until
from helpers.warm import wait_for

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.runs.folder import create_private, refuse_used_folder
from mtdnn_ds.runs.lock import locked

HOLD = """
import os, signal, subprocess, sys
from pathlib import Path
from mtdnn_ds.runs.lock import locked
with locked(Path(sys.argv[1])):
    forked = os.fork()
    if forked == 0:
        signal.pause()
    started = subprocess.Popen(["sleep", "infinity"])
    print(forked, started.pid, flush=True)
    signal.pause()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Another process that holds the folder, and its forked and its started child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "4711"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    children = [int(pid) for pid in process.stdout.readline().split()]
    yield process, children
    process.kill()
    process.wait()
    process.stdout.close()
    for child in children:
        os.kill(child, signal.SIGKILL)


def test_the_second_is_told_who_holds_the_folder(
    tmp_path: Path, said: list[str], holder: tuple[subprocess.Popen[str], list[int]]
) -> None:
    process, _ = holder
    with pytest.raises(ConfigError) as error, locked(tmp_path / "run"):
        pass
    text, since = re.subn(r"since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", "since SOME TIME", str(error.value))
    assert since == 1
    assert text == (
        f"--output_dir {tmp_path / 'run'}: another run is at work there (host {platform.node()}, process "
        f"{process.pid}, SLURM job 4711, "
        "since SOME TIME); wait until it has ended, or give another --output_dir"
    )


def test_a_lock_dies_with_its_holder_and_not_with_its_holder_s_children(
    tmp_path: Path, said: list[str], holder: tuple[subprocess.Popen[str], list[int]]
) -> None:
    process, children = holder
    process.kill()
    process.wait()
    for child in children:
        os.kill(child, 0)  # both live
    assert (tmp_path / "run" / ".lock").is_file()
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / ".lock").read_text())["process"] == str(os.getpid())
    assert said == []


@pytest.mark.parametrize("text", ["", "{", '{"host": "elsewhere", "process": "1"}', "\0" * 5000])
def test_a_file_that_lies_there_refuses_nobody(tmp_path: Path, said: list[str], text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    with (
        locked(tmp_path),
        pytest.raises(ConfigError, match="another run is at work"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass
    assert said == []


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(descriptor: int, operation: int) -> None:  # what the kernel answers there
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", answer)
    with locked(tmp_path):
        pass
    assert said == [
        f"{tmp_path}: its file system has no locks (No locks available), so nothing keeps a second run "
        f"out of this folder"
    ]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"--output_dir .*/file/run: cannot be created \("),
        locked(tmp_path / "file" / "run"),
    ):
        pass


def test_a_new_folder_is_private_an_old_one_keeps_its_mode_and_an_unused_one_goes(
    tmp_path: Path, said: list[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    old.mkdir(mode=0o755)
    assert not create_private(old)
    with locked(new):
        assert new.stat().st_mode & 0o777 == 0o700
        refuse_used_folder(new, "none")  # the lock alone does not make it used
    assert old.stat().st_mode & 0o777 == 0o755
    assert old.is_dir() and not new.exists()


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    return write_run_files(
        tmp_path_factory.mktemp("lock"), official_files, tiny_encoder, save_every=3, eval_every=0
    )


@pytest.fixture(scope="module")
def outcomes(run_files: Path) -> dict[str, Outcome]:
    """A run that waits before step 8, and a second one in its folder; then the first, rank 0 killed, again.

    Of the first only rank 0 is killed with -9. It computes nothing while the others run.
    """
    waiting = {**scenario(run_files, "run", (0, "step_8", "hang")), "stall_seconds": 3600}
    first = start_forked({"run": waiting, "straight": scenario(run_files, "straight")}, run_files)
    others = run_files / "others"
    others.mkdir()

    try:
        wait_until(lambda: bool(list(run_files.glob("acted_*"))), [first])
        held_by = json.loads((run_files / "run" / ".lock").read_text())
        second = run_forked({"second": scenario(run_files, "run", resume="auto", world_size=1)}, others)

        os.kill(int(held_by["process"]), signal.SIGKILL)
        again = run_forked({"again": scenario(run_files, "run", resume="auto")}, others)
        assert wait_for([first]) and first.returncode == 0
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    return {**second, **again, **outcomes_of(run_files)}


@pytest.mark.distributed
def test_two_runs_in_one_folder_the_second_is_refused_and_changes_nothing(
    run_files: Path, outcomes: dict[str, Outcome]
) -> None:
    ended = outcomes["second"]
    assert ended.codes == [2], ended.said
    assert (
        f"error: --output_dir {run_files / 'run'}: another run is at work there (host {platform.node()}, "
        f"process " in ended.said[0]
    )
    assert "resuming" not in ended.said[0]


@pytest.mark.distributed
def test_after_a_kill_of_the_holder_the_run_goes_on_exactly(
    run_files: Path, outcomes: dict[str, Outcome]
) -> None:
    assert outcomes["run"].codes[0] == -signal.SIGKILL
    assert outcomes["again"].codes == [0, 0], outcomes["again"].said
    assert "resuming after step 6 of 12" in outcomes["again"].said[0]
    assert exact(run_files / "run") == exact(run_files / "straight")
