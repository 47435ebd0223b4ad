"""What both sides of the watch share: a thread that beats, and is woken by the main thread.

Judges nothing.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.faults.exit import LOST, exit_now
from mtdnn_ds.faults.parent_launcher import start_time
from mtdnn_ds.faults.watchdog.diagnosis import Process

Request = tuple[str, str]  # ("stop" | "failed" | "end", why)
MOST_BEATS_PER_SECOND = 200  # that rank 0 hears, of all ranks together


def this_process() -> Process:
    """As the other ranks know it."""
    return Process(host=socket.gethostname(), pid=os.getpid(), started=start_time(os.getpid()) or "")


class WatchThread(ABC):
    """A side of the watch. `timeout` (seconds; 0: judge nothing) may change while it runs."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._requests: deque[Request] = deque()
        self._waking, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="mtdnn_ds-watchdog", daemon=True)

    @property
    def beat(self) -> float:
        """Seconds between two signs of life."""
        longest = max(1.0, dist.world_size() / MOST_BEATS_PER_SECOND)
        if not self.timeout:
            return longest
        return min(longest, max(0.2, self.timeout / 10))

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def request(self, kind: str, why: str = "") -> None:
        """Hand a request of the main thread to the watch's."""
        self._requests.append((kind, why))
        self._waking.send(b"!")

    def stop_all(self, reason: str) -> None:
        """Every rank ends with exit code 85, this one too. From the main thread it does not return."""
        self.request("stop", reason)
        if threading.current_thread() is threading.main_thread():
            time.sleep(10)  # the thread ends this process before
            self._stop_alone(reason)

    def end(self) -> None:
        """This rank has done its work. Returns when the others know."""
        self.request("end")
        self._thread.join(timeout=5.0)
        self._selector.close()
        self._waking.close()
        self._woken.close()

    def _run(self) -> None:
        last, goes_on = time.monotonic(), True
        while goes_on:
            ready = self._selector.select(timeout=self.beat)
            now = time.monotonic()

            # This process was itself stopped, or starved: it has heard nothing, whoever spoke.
            if now - last > 3 * self.beat + 2.0:
                self.reset(now)
            last = now

            for key, _events in ready:
                if key.data is None:
                    self._woken.recv(1024)
                else:
                    self.read(key.data, now)

            while self._requests:
                self.handle(*self._requests.popleft(), now)
            goes_on = self.tick(now)

    @abstractmethod
    def read(self, source: Any, now: float) -> None:
        """Take what has come from `source`, which was registered with the selector."""

    @abstractmethod
    def handle(self, kind: str, why: str, now: float) -> None:
        """Do what the main thread has requested."""

    @abstractmethod
    def reset(self, now: float) -> None:
        """Begin all counts of seconds anew."""

    @abstractmethod
    def tick(self, now: float) -> bool:
        """Say and judge; False when there is nothing more to watch. Called at least once a beat."""

    @abstractmethod
    def _stop_alone(self, reason: str) -> None:
        """End this process although the others could not be reached."""


def end_lost(text: str, silent: list[Process], *, speaks: bool) -> None:
    """End this process with exit code 75, and the silent ones of this node, which cannot end themselves.

    Never returns.
    """
    here = socket.gethostname()
    for process in silent:
        is_known = bool(process.started) and start_time(process.pid) == process.started
        if process.host == here and is_known and process.pid != os.getpid():
            os.kill(process.pid, signal.SIGKILL)

    advice = (
        "all ranks end with exit code 75; "
        "the same command with --resume auto goes on from the last checkpoint"
    )
    lines = [f"error: {line}" for line in (*text.split("\n"), advice)]
    exit_now(LOST, "\n".join(lines), speaks=speaks)


def speaks_without_rank_0() -> bool:
    """Whether this rank says what happened to rank 0: one of each node, as who else lives is not known."""
    return dist.rank() == 1 or dist.local_rank() == 0
