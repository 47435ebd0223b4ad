"""The lock that torch holds while it builds or loads a C++ op: waited for in words, removed if nobody's.

Builds nothing. torch.utils.cpp_extension makes an empty file `lock` in the op's folder, also to load what is
built already, and waits for it without a word and without end (torch.utils.file_baton). A process that is
killed meanwhile leaves it, and every later run would hang.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import psutil

from mtdnn_ds.config.errors import ConfigError

SECONDS_TO_LOAD = 60.0  # a load takes milliseconds
SECONDS_TO_BUILD = 1800.0  # a build takes a minute, on a GPU machine some

log = logging.getLogger(__name__)


def wait_for_lock(folder: Path, op: str, *, poll_seconds: float = 0.2) -> None:
    """Return once nobody holds the lock of `op`, built in `folder`.

    Raises ConfigError if one has been there for too long. Where the op is built and no build of it runs on
    this machine, a lock older than a minute is nobody's, and is removed.
    """
    lock, said = folder / "lock", False
    while True:
        try:
            seconds = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            return

        is_built = (folder / f"{op}.so").exists()
        if is_built and seconds > SECONDS_TO_LOAD and not _builds_in(folder):
            lock.unlink(missing_ok=True)
            log.info(f"{lock}: was left by a process that was killed; removed")
            return

        if seconds > SECONDS_TO_BUILD:
            raise ConfigError(
                f"{lock}: is {seconds / 60:.0f} minutes old, and no build of {op} takes that long; "
                "if none is going on, remove it"
            )

        if not said:
            log.info(f"waiting for another process that builds or loads DeepSpeed's {op} (its lock: {lock})")
            said = True
        time.sleep(poll_seconds)


def _builds_in(folder: Path) -> bool:
    """Whether ninja, which builds from within the folder, runs there."""
    for process in psutil.process_iter(["name"]):
        try:
            if "ninja" in (process.info["name"] or "") and Path(process.cwd()) == folder.resolve():
                return True
        except (psutil.Error, OSError):
            continue
    return False
