"""A disk that fails: its errors in words, its free space, and a file that keeps what it cannot write. Decides nothing about the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtdnn_ds.config.errors import TrainingError


class SaveFailed(TrainingError):
    """Something of the run could not be written; what was there before is untouched. Raised on all ranks alike."""


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn an OSError of the block into SaveFailed."""
    try:
        yield
    except OSError as error:
        raise SaveFailed(
            f"{what} could not be written: {reason(error)}; free some space, and go on with --resume auto"
        ) from error


def reason(error: BaseException) -> str:
    """`No space left on device`, with the file if the error knows it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error).split("\n", 1)[0] or type(error).__name__


def free_bytes(path: Path) -> int | None:
    """What this user may still write to the disk of `path`, which may not exist yet; None where the file system does not say."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else None


def size(num_bytes: float) -> str:
    """`4.7 GB`, with three digits at most."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


class PatientFile:
    """A file that is appended to and never raises: what the disk does not take stays in memory, in order, until it does.

    `problem` says why the last attempt failed, None if all is written. A write that the disk takes in part is gone on with where it
    stopped, so that no line is torn or doubled.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be opened."""
        self._path, self._waiting = path, bytearray()
        self.problem: str | None = None
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.closed = False

    @property
    def num_waiting(self) -> int:
        """Bytes not yet written."""
        return len(self._waiting)

    def write(self, data: bytes) -> None:
        self._waiting += data

    def flush(self) -> None:
        """Write what waits, as far as the disk takes it."""
        self.problem = None
        while self._waiting:
            try:
                written = os.write(self._descriptor, self._waiting)
            except OSError as error:
                self.problem = f"{self._path}: {reason(error)}"
                return
            del self._waiting[:written]

    def close(self) -> None:
        """Try once more, and close. What still waits is lost; `problem` says so."""
        if not self.closed:
            self.flush()
            self.closed = True
            os.close(self._descriptor)
