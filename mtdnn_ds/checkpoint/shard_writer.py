"""Writing this rank's files of a DeepSpeed checkpoint: hashed as they are written, at once or from a thread.

Chooses no folder. DeepSpeed hands its states to its checkpoint engine between barriers, where an exception on
one rank would leave the others waiting. ShardWriter stands in for that engine during one save: it records
what goes wrong, and the ranks agree afterwards (checkpoint/save.py).
"""

from __future__ import annotations

import copy
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from mtdnn_ds.faults.heartbeat import announce
from mtdnn_ds.files import reason


@dataclass(kw_only=True, slots=True)
class ShardReport:
    """What a rank has written, and how it went."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name: `bytes` and `sha256`
    problem: str | None = None  # the first one
    seconds: dict[str, float] = field(default_factory=dict)  # of snapshot, write (hashed meanwhile) and flush

    def spent(self, what: str, seconds: float) -> None:
        """Add to the seconds of `what`."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds


class HashingFile:
    """What torch.save writes to: hashes on a second thread what it writes on this one.

    Records an OSError instead of raising it.
    """

    def __init__(self, path: Path, pool: ThreadPoolExecutor) -> None:
        """Raises OSError if `path` cannot be opened."""
        self._pool, self._sha256, self.num_bytes = pool, hashlib.sha256(), 0
        self._place = f"writing {path.name}"
        self.error: OSError | None = None
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(self, data: memoryview) -> int:
        """Write `data`, and hash it meanwhile."""
        # An exception would have to pass through torch's C++ writer, which forgets it: the rest of a failed
        # file is dropped.
        if self.error is None:
            hashed = self._pool.submit(self._sha256.update, data)
            try:
                _write_all(self._descriptor, data)
            except OSError as error:
                self.error = error
            hashed.result()  # `data` is torch's own memory, and only until this returns
            self.num_bytes += len(data)
            announce(self._place)
        return len(data)

    def flush(self) -> None:
        """torch.save calls it; close() does it."""

    def close(self) -> float:
        """Put it on disk; returns the seconds that took."""
        begin = perf_counter()
        try:
            if self.error is None:
                os.fsync(self._descriptor)
        except OSError as error:
            self.error = error
        finally:
            os.close(self._descriptor)
        return perf_counter() - begin

    def sha256(self) -> str:
        """Of what was written, in hex."""
        return self._sha256.hexdigest()


class ShardWriter:
    """In place of DeepSpeed's checkpoint engine while it saves.

    `in_background`: states are copied to memory, and a thread writes them.
    """

    def __init__(self, *, in_background: bool) -> None:
        self._in_background = in_background
        self._jobs: list[tuple[Any, Path]] = []
        self._thread: threading.Thread | None = None
        self._report = ShardReport()
        self._theirs: Any = None

    @contextmanager
    def in_place_of(self, engine: Any) -> Iterator[None]:
        """For one engine.save_checkpoint."""
        self._theirs, copy_script = engine.checkpoint_engine, getattr(engine, "_copy_recovery_script", None)
        engine.checkpoint_engine = self
        if copy_script is not None:  # private: writes a script, zero_to_fp32, on rank 0, between two barriers
            engine._copy_recovery_script = self.guarded(copy_script)
        try:
            yield
        finally:
            engine.checkpoint_engine = self._theirs
            if copy_script is not None:
                del engine._copy_recovery_script

        if self._in_background:
            self._thread = threading.Thread(target=self._write_jobs, name="checkpoint writer")
            self._thread.start()

    def save(self, state_dict: Any, path: str) -> None:
        """What DeepSpeed calls with each of this rank's files."""
        if not self._in_background:
            self._write(state_dict, Path(path))
            return
        begin = perf_counter()
        self._jobs.append((in_memory(state_dict, {}), Path(path)))
        self._report.spent("snapshot", perf_counter() - begin)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """What DeepSpeed calls for the folder."""
        self.guarded(os.makedirs)(path, exist_ok=exist_ok)

    def __getattr__(self, name: str) -> Any:
        """Whatever else DeepSpeed asks its checkpoint engine."""
        return getattr(self._theirs, name)

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its OSError recorded instead of raised."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            try:
                return function(*arguments, **keywords)
            except OSError as error:
                self._failed(error)

        return call

    def is_done(self) -> bool:
        """Whether nothing is left to write; costs nothing."""
        return self._thread is None or not self._thread.is_alive()

    def wait(self) -> ShardReport:
        """What was written, when all is."""
        if self._thread is not None:
            self._thread.join()
        return self._report

    def _write_jobs(self) -> None:
        while self._jobs:
            state, path = self._jobs.pop(0)
            try:
                self._write(state, path)
            except Exception as error:  # a thread's exception would be printed and lost
                self._failed(error, path)
            del state  # its memory is free before the next file is written

    def _write(self, state: Any, path: Path) -> None:
        if self._report.problem is not None:
            return  # the checkpoint is lost already

        begin = perf_counter()
        try:
            with ThreadPoolExecutor(max_workers=1) as pool:
                file = HashingFile(path, pool)
                torch.save(state, file)  # type: ignore[arg-type]  # it calls write and flush only
        except OSError as error:  # it could not be opened
            self._failed(error, path)
            return
        self._report.spent("write", perf_counter() - begin)
        self._report.spent("flush", file.close())

        if file.error is not None:
            self._failed(file.error, path)
        else:
            self._report.files[path.name] = {"bytes": file.num_bytes, "sha256": file.sha256()}

    def _failed(self, error: Exception, path: Path | None = None) -> None:
        """Record the first problem, with the file's name where the error does not know it."""
        if self._report.problem is not None:
            return
        self._report.problem = reason(error)
        if path is not None and getattr(error, "filename", None) is None:
            self._report.problem = f"{path}: {reason(error)}"


def in_memory(value: Any, storages: dict[tuple[int, int], torch.UntypedStorage]) -> Any:
    """A copy of a state dict on the CPU, which training no longer changes.

    Tensors that share memory share it in the copy. `storages`: copies made so far, by the address and size of
    the original.
    """
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        key = (storage.data_ptr(), storage.nbytes())
        if key not in storages:
            storages[key] = torch.UntypedStorage(storage.nbytes())
            storages[key].copy_(storage)
        return torch.empty(0, dtype=value.dtype).set_(
            storages[key], value.storage_offset(), value.size(), value.stride()
        )

    if isinstance(value, dict):
        copied: Any = type(value)()
        if hasattr(value, "__dict__"):  # state_dict() hangs its _metadata there
            vars(copied).update(copy.deepcopy(vars(value)))
        copied.update({name: in_memory(item, storages) for name, item in value.items()})
        return copied

    if type(value) in (list, tuple, set):
        return type(value)(in_memory(item, storages) for item in value)
    return copy.deepcopy(value)


def _write_all(descriptor: int, data: memoryview) -> None:
    """Linux writes at most 2 GiB at a time, and less where a disk is nearly full."""
    while data:
        data = data[os.write(descriptor, data) :]
