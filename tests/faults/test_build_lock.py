"""A lock that a killed process left in DeepSpeed's folder of built ops stops no run; that of a build or of a
load is waited for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.faults.op_build_lock import wait_for_lock


def locked(folder: Path, *, built: bool, seconds: float) -> Path:
    if built:
        (folder / "fused_adam.so").touch()
    lock = folder / "lock"
    lock.touch()
    os.utime(lock, (time.time() - seconds,) * 2)
    return lock


def hears(said: list[str], waiting: threading.Thread) -> bool:
    """Wait until something is said; False if the thread has ended without a word."""
    while not said and waiting.is_alive():
        time.sleep(0.01)
    return bool(said)


def test_without_a_lock_nothing_is_said(tmp_path: Path, said: list[str]) -> None:
    wait_for_lock(tmp_path, "fused_adam")
    assert said == []


def test_a_lock_that_nobody_holds_is_removed(tmp_path: Path, said: list[str]) -> None:
    lock = locked(tmp_path, built=True, seconds=61)
    wait_for_lock(tmp_path, "fused_adam")
    assert not lock.exists() and said == [f"{lock}: was left by a process that was killed; removed"]


@pytest.mark.parametrize(("built", "seconds"), [(True, 1), (False, 600)])
def test_a_lock_that_may_be_held_is_waited_for(
    tmp_path: Path, said: list[str], built: bool, seconds: float
) -> None:
    lock = locked(tmp_path, built=built, seconds=seconds)
    waiting = threading.Thread(
        target=wait_for_lock, args=(tmp_path, "fused_adam"), kwargs={"poll_seconds": 0.01}
    )
    waiting.start()
    assert hears(said, waiting) and waiting.is_alive() and lock.exists()
    lock.unlink()
    waiting.join()
    assert not waiting.is_alive() and said == [
        f"waiting for another process that builds or loads DeepSpeed's fused_adam (its lock: {lock})"
    ]


def test_a_build_that_runs_keeps_its_lock(tmp_path: Path, said: list[str]) -> None:
    lock = locked(tmp_path, built=True, seconds=120)
    (tmp_path / "build.ninja").write_text("rule wait\n  command = cat fifo > $out\nbuild out: wait\n")
    os.mkfifo(tmp_path / "fifo")
    ninja = subprocess.Popen(
        [str(Path(sys.executable).with_name("ninja"))], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    with (tmp_path / "fifo").open("w"):  # opens once the build reads it
        waiting = threading.Thread(
            target=wait_for_lock,
            args=(tmp_path, "fused_adam"),
            kwargs={"poll_seconds": 0.01},
        )
        waiting.start()
        assert hears(said, waiting) and waiting.is_alive() and lock.exists()
    assert ninja.wait() == 0
    waiting.join()
    assert not waiting.is_alive() and not lock.exists()


def test_a_lock_of_an_impossible_age_is_refused(tmp_path: Path) -> None:
    lock = locked(tmp_path, built=False, seconds=1860)
    with pytest.raises(
        ConfigError,
        match="is 31 minutes old, and no build of fused_adam takes that long; if none is going on, remove it",
    ):
        wait_for_lock(tmp_path, "fused_adam")
    assert lock.exists()
