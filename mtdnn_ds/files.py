"""Files that outlive crashes and failing disks: written aside and renamed, synced, hashed; errors in words.

Decides nothing about a run, and knows no format.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtdnn_ds.config.errors import TrainingError


class SaveFailed(TrainingError):
    """Something of the run could not be written; what was there before is untouched.

    Raised on all ranks alike.
    """


# Whole or not at all


def sync(path: Path) -> None:
    """Make a file, or the entries of a folder, durable (fsync) before anything refers to them.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Another path in the same folder, for the block to write a file to, which is then synced and renamed to
    `path`.

    A reader of `path` sees the old file or the new one, never a part. What the block raises leaves `path` as
    it was, and nothing beside it. A rename is durable once its folder is synced, which is left to the caller.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def replace_file(path: Path, text: str) -> None:
    """Write a small text file (UTF-8) aside, and rename it. Raises OSError."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Disks that fail


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
    """`No space left on device`, with the file if the error knows it; of other errors the first line."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error).split("\n", 1)[0] or type(error).__name__

    if error.filename:
        return f"{error.filename}: {error.strerror}"
    return error.strerror


def free_bytes(path: Path) -> int | None:
    """What this user may still write to the disk of `path`, which may not exist yet.

    None where the file system does not say.
    """
    while not path.exists() and path != path.parent:
        path = path.parent

    try:
        disk = os.statvfs(path)
    except OSError:
        return None

    if not disk.f_blocks:
        return None
    return disk.f_bavail * disk.f_frsize


def size(num_bytes: float) -> str:
    """`4.7 GB`, with three digits at most."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


class PatientFile:
    """A file that is appended to and never raises.

    What the disk does not take stays in memory, in order, until it does. `problem` says why the last attempt
    failed, None if all is written. A write that the disk takes in part is gone on with where it stopped, so
    that no line is torn or doubled.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be opened."""
        self._path = path
        self._waiting = bytearray()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.problem: str | None = None
        self.closed = False

    @property
    def num_waiting(self) -> int:
        """Bytes not yet written."""
        return len(self._waiting)

    def write(self, data: bytes) -> None:
        """Take `data`; `flush` writes it."""
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
        if self.closed:
            return
        self.flush()
        self.closed = True
        os.close(self._descriptor)
