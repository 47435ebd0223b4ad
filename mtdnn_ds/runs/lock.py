"""One run at a time in a run folder: a lock of the operating system on RUN/.lock, which ends with its holder, however that ends.

The file alone refuses nobody: it may lie there from a run that was killed. Its text only says who holds the lock, if someone does.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from mtdnn_ds import dist
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.files import reason
from mtdnn_ds.runs.folder import LOCK, create_private

NO_LOCKS = (
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EINVAL,
)  # what file systems without locks answer

_descriptors: set[int] = set()  # of the locks that this process holds


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the run folder, which is created if it is missing, for the length of the block. Collective: rank 0 holds it for all ranks.

    Raises ConfigError on all ranks, saying who holds it, if another process does. A folder that is still empty at the end is removed.
    """
    created = dist.on_main(lambda: create_private(folder))
    descriptors: list[int] = []
    dist.on_main(lambda: descriptors.append(_take(folder, say)))
    try:
        yield
    finally:
        for descriptor in descriptors:  # rank 0
            with suppress(OSError):  # someone has removed it already
                if created and [path.name for path in folder.iterdir()] == [
                    LOCK
                ]:  # refused before it wrote anything
                    (folder / LOCK).unlink()
                    folder.rmdir()
            _descriptors.discard(descriptor)
            os.close(descriptor)


def _take(folder: Path, say: Callable[[str], None]) -> int:
    path = folder / LOCK
    try:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise ConfigError(
                    f"--output_dir {folder}: another run is at work there ({holder}); wait until it has ended, or give another --output_dir"
                ) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    os.close(descriptor)
                    raise
                say(
                    f"{folder}: its file system has no locks ({error.strerror}), so nothing keeps a second run out of this folder"
                )
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
            os.close(
                descriptor
            )  # its last holder has removed it meanwhile: a lock that nobody else would see
    except OSError as error:
        raise ConfigError(
            f"--output_dir {folder}: cannot be written ({reason(error)}); give a folder that can"
        ) from error
    if not _descriptors:
        os.register_at_fork(after_in_child=_forget)
    _descriptors.add(descriptor)
    with suppress(OSError):  # a full disk: the lock holds without its text
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_ourselves()).encode(), 0)
    return descriptor


def _forget() -> None:
    """In a forked child, which would otherwise keep the lock when its parent is dead."""
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


def _ourselves() -> dict[str, str]:
    job = {"SLURM job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}
    return {
        "host": platform.node(),
        "process": str(os.getpid()),
        **job,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _holder(descriptor: int) -> str:
    try:
        return ", ".join(
            f"{name} {value}" for name, value in json.loads(os.pread(descriptor, 4096, 0)).items()
        )
    except (OSError, ValueError, AttributeError):
        return "it does not say who it is"
