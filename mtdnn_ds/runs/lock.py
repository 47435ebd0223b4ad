"""One run at a time in a run folder: a lock of the operating system on RUN/.lock, which ends with its holder.

It does so however that ends, and in a forked child it is not held. The file alone refuses nobody: it may lie
there from a run that was killed. Its text only says who holds the lock, if someone does.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import filelock

from mtdnn_ds import dist
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.runs.folder import LOCK, create_private

log = logging.getLogger(__name__)

# What file systems without locks answer.
NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder, which is created if it is missing, for the length of the block.

    Collective: rank 0 holds it for all ranks. Raises ConfigError on all ranks, saying who holds it, if
    another process does. A folder that is still empty at the end is removed.
    """
    created = dist.on_main(lambda: create_private(folder))
    locks: list[filelock.BaseFileLock] = []  # of rank 0
    dist.on_main(lambda: locks.append(_take(folder)))
    try:
        yield
    finally:
        for lock in locks:
            if created:
                _remove_unused(folder)
            lock.release()


def _remove_unused(folder: Path) -> None:
    """A folder of a run that was refused before it wrote anything."""
    with suppress(OSError):  # someone has removed it already
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def _take(folder: Path) -> filelock.BaseFileLock:
    path = folder / LOCK
    lock = filelock.FileLock(path, blocking=False, mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ConfigError(
            f"--output_dir {folder}: another run is at work there ({_holder(path)}); "
            "wait until it has ended, or give another --output_dir"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise ConfigError(
                f"--output_dir {folder}: cannot be written ({path}: {error.strerror}); give a folder that can"
            ) from error
        log.info(
            f"{folder}: its file system has no locks ({error.strerror}), "
            "so nothing keeps a second run out of this folder"
        )

    with suppress(OSError):  # a full disk: the lock holds without its text
        path.write_text(json.dumps(_ourselves()))
    return lock


def _ourselves() -> dict[str, str]:
    about = {"host": platform.node(), "process": str(os.getpid())}
    if "SLURM_JOB_ID" in os.environ:
        about["SLURM job"] = os.environ["SLURM_JOB_ID"]
    about["since"] = datetime.now(UTC).isoformat(timespec="seconds")
    return about


def _holder(path: Path) -> str:
    """What the lock's text says of who holds it."""
    try:
        about = json.loads(path.read_bytes()[:4096])
        return ", ".join(f"{name} {value}" for name, value in about.items())
    except (OSError, ValueError, AttributeError):
        return "it does not say who it is"
