"""Processes of `python ARGUMENTS` that need not import torch, deepspeed and transformers: forked from one
warm process. Not a test file.

A new interpreter spends 5 to 10 seconds of a loaded core on imports before a run of one second begins.
`start` gives what subprocess.Popen gives, from a process that has imported them before
(helpers/warm_server.py). What a user types in a shell, and what launchers start, is tested with new
interpreters all the same: pass `fresh=True`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]

# A process that has computed less than half a second in this time hangs.
STALL_SECONDS = 120

# Variables that libraries read when they are imported: a process with other values of these must be a new
# one.
READ_AT_IMPORT = ("HF_", "DS_", "TRANSFORMERS_", "TOKENIZERS_", "LD_", "PYTHONHASHSEED", "CUDA_", "TORCH_")


class WarmProcess:
    """A forked process with the face of subprocess.Popen: pid, poll, wait, send_signal, returncode."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r")
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._read()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a warm process", timeout or 0)
            self._read()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _read(self) -> None:
        line = self._lines.readline()
        self.returncode = int(line) if line else -signal.SIGKILL  # no line: the warm process itself is gone
        self._lines.close()
        self._connection.close()


class _Server:
    """The warm process of this test process; started by the first request."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm_")
        self.address = f"{self._folder.name}/socket"
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/helpers/warm_server.py"), self.address],
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.close)
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self._folder.cleanup()


_servers: list[_Server] = []


def _server() -> _Server:
    if not _servers:
        _servers.append(_Server())
    return _servers[0]


def is_forkable(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a fork of the warm process is as good as a new interpreter for these arguments."""
    if arguments[0].startswith("-") and arguments[0] != "-m":
        return False
    warm = _server().environment
    names = {name for name in (*environment, *warm) if name.startswith(READ_AT_IMPORT)}
    return all(environment.get(name) == warm.get(name) for name in names)


def start(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path = ROOT,
    output: IO[Any] | None = None,
    errors: IO[Any] | None = None,
    fresh: bool = False,
) -> subprocess.Popen[str] | WarmProcess:
    """`python ARGUMENTS` in a session of its own, its output written to the given files (None: nowhere)."""
    if fresh or not is_forkable(arguments, environment):
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.DEVNULL,
            stderr=errors or subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_server().address)
    request = {"arguments": list(arguments), "environment": dict(environment), "folder": str(folder)}
    with Path(os.devnull).open("w") as nowhere:
        files = [(file or nowhere).fileno() for file in (output, errors)]
        message = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(connection, [message], files)
        connection.sendall(message[sent:])
        return WarmProcess(connection)


def cpu_seconds(pids: Collection[int]) -> float:
    """What these processes, their children and sessions have computed so far, in seconds of one core."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parent, session = int(fields[1]), int(fields[3])
        if not {int(path.parent.name), parent, session}.isdisjoint(pids):
            ticks += sum(int(field) for field in fields[11:15])  # its own and those of its reaped children

    return ticks / os.sysconf("SC_CLK_TCK")


class Progress:
    """Whether processes get on, however busy the machine is: those that hang compute next to nothing."""

    def __init__(
        self,
        pids: Collection[int],
        *,
        stall_seconds: float = STALL_SECONDS,
        cpu_seconds_at_most: float = math.inf,
    ) -> None:
        self._pids = frozenset(pids)
        self._stall_seconds = stall_seconds
        self._cpu_seconds_at_most = cpu_seconds_at_most
        self._computed, self._since = 0.0, time.monotonic()
        self._asked = self._since

    def has_ended(self) -> bool:
        """Whether they compute no more (half a second in `stall_seconds`), or have computed too much."""
        now = time.monotonic()
        if now - self._asked < 1:
            return False
        self._asked = now

        computed = cpu_seconds(self._pids)
        if abs(computed - self._computed) > 0.5:  # less than before: one of them has ended
            self._computed, self._since = computed, now
        return now - self._since > self._stall_seconds or computed > self._cpu_seconds_at_most


def wait_for(
    processes: Sequence[subprocess.Popen[Any] | WarmProcess], *, stall_seconds: float = STALL_SECONDS
) -> bool:
    """Wait until all have ended; False if they hang."""
    progress = Progress({process.pid for process in processes}, stall_seconds=stall_seconds)

    while any(process.poll() is None for process in processes):
        with contextlib.suppress(subprocess.TimeoutExpired):
            next(process for process in processes if process.returncode is None).wait(0.2)
        if progress.has_ended():
            return False

    return True


def run(
    arguments: Sequence[str], *, environment: Mapping[str, str], folder: Path = ROOT, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` to its end, with all that it wrote.

    TimeoutExpired, and no process left, if it hangs.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = start(
            arguments, environment=environment, folder=folder, output=output, errors=errors, fresh=fresh
        )
        try:
            ended = wait_for([process])
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read())

    if not ended:
        raise subprocess.TimeoutExpired(list(arguments), STALL_SECONDS, *texts)
    return subprocess.CompletedProcess([sys.executable, *arguments], process.wait(), *texts)
