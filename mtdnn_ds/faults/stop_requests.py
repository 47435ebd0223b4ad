"""Requests to stop this process: signals, a launcher that is gone, a time limit. Keeps them until the run can heed them; saves nothing.

SIGTERM and SIGUSR1 ask; what follows depends on where the run is. AT_ONCE, while there is nothing to save: the process (through the
watchdog, every rank) leaves with exit code 85. BETWEEN_STEPS: the training loop asks `requested()` and saves. NO_MORE: the last step is
done, and the run ends as it would have. SIGINT keeps its meaning; a second one ends the process at once.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from mtdnn_ds.config.errors import Stopped
from mtdnn_ds.config.launch import rank_of
from mtdnn_ds.faults.exit import leave
from mtdnn_ds.faults.exit_codes import STOPPED
from mtdnn_ds.faults.parent_launcher import gone, launchers_above

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SECONDS_BETWEEN_LOOKS = 1.0  # at the launcher
SECONDS_TO_SECOND_INTERRUPT = 1.0  # torchrun hands one Ctrl-C on as a second SIGINT


class Heed(Enum):
    """What a request to stop does now."""

    AT_ONCE = "leave"
    BETWEEN_STEPS = "finish the step, save, leave"
    NO_MORE = "nothing"


def _leave_alone(reason: str) -> None:
    leave(
        STOPPED,
        f"stopped before training: {reason}; nothing is lost: the same command goes on",
        speaks=rank_of() == 0,
    )


class _Process:
    """What this process has been asked. One for all runs of a process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reason: str | None = None
        self.heed = Heed.AT_ONCE
        self.listeners = 0  # nested `listening`s
        self.old_handlers: dict[signal.Signals, Any] = {}
        self.old_wakeup = -1
        self.pipe: tuple[int, int] | None = None
        self.interrupted_at: float | None = None
        self.leave: Callable[[str], None] = _leave_alone


_process = _Process()


def request(reason: str) -> None:
    """Ask this process to stop. The first reason is kept. Any thread may call this."""
    with _process.lock:
        if _process.reason is None:
            _process.reason = reason
            _heed_now()


def requested() -> str | None:
    """Why this rank shall stop, or None."""
    return _process.reason


def heed(how: Heed) -> None:
    """From now on a request, also one that has come before, does this."""
    with _process.lock:
        _process.heed = how
        _heed_now()


def leave_through(function: Callable[[str], None] | None) -> None:
    """How the process leaves AT_ONCE: by `function`, which takes the other ranks along, or alone (None)."""
    _process.leave = function or _leave_alone


def _heed_now() -> None:
    if _process.reason is not None and _process.heed is Heed.AT_ONCE:
        _process.leave(_process.reason)


@contextmanager
def listening(*, to_the_end: bool = False) -> Iterator[None]:
    """Take signals and watch the launcher; the outermost one puts everything back. Outside the main thread no signal is taken.

    `to_the_end`: the process ends after it. If it was stopped, further signals are ignored then, so that its exit code stays 85.
    """
    if _process.listeners == 0:
        _begin()
    _process.listeners += 1
    stopped = False
    try:
        yield
    except Stopped:
        stopped = True
        raise
    finally:
        _process.listeners -= 1
        if _process.listeners == 0:
            _end(ignore=stopped and to_the_end)


def _begin() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _process.pipe = (reading, writing)
    threading.Thread(target=_listen, args=(reading,), name="mtdnn_ds-signals", daemon=True).start()
    if threading.current_thread() is threading.main_thread():
        _process.old_handlers = {
            number: signal.signal(number, lambda number, frame: _received(number)) for number in SIGNALS
        }
        # The thread learns of a signal at once, also while the main thread waits in a collective and cannot run a handler.
        _process.old_wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)


def _end(*, ignore: bool) -> None:
    if _process.old_handlers:
        signal.set_wakeup_fd(_process.old_wakeup)
        for number, handler in _process.old_handlers.items():
            signal.signal(number, signal.SIG_IGN if ignore else handler)
    with _process.lock:  # what the thread has not read by now concerns nobody any more
        assert _process.pipe is not None
        os.close(_process.pipe[1])  # the thread ends, and closes the other side
        _process.pipe, _process.old_handlers = None, {}
        _process.reason, _process.heed, _process.interrupted_at = None, Heed.AT_ONCE, None


def _before_a_fork() -> None:
    if _process.old_handlers:  # a signal to the child waits until its own handlers are in place
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_a_fork() -> None:
    if _process.old_handlers:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _in_a_fork() -> None:
    """A forked worker is no rank: it dies of signals as it would, and its signals are not its parent's."""
    if _process.old_handlers:
        signal.set_wakeup_fd(-1)
        for number in _process.old_handlers:
            signal.signal(number, signal.SIG_DFL)
        _process.old_handlers = {}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


os.register_at_fork(before=_before_a_fork, after_in_parent=_after_a_fork, after_in_child=_in_a_fork)


def _listen(reading: int) -> None:
    launchers = launchers_above()
    while True:
        if select.select([reading], [], [], SECONDS_BETWEEN_LOOKS)[0]:
            numbers = os.read(reading, 64)
            if not numbers:
                os.close(reading)
                return
            for number in numbers:
                with _process.lock:
                    if _process.pipe is not None and _process.pipe[0] == reading:
                        _received(number)
        lost = gone(launchers)
        if lost is not None:
            launchers = ()
            with _process.lock:
                if _process.pipe is not None and _process.pipe[0] == reading:
                    request(f"the launcher is gone ({lost.name}, process {lost.pid})")


def _received(number: int) -> None:
    """From the handler and from the thread, whichever comes first."""
    if number in SIGNALS:
        request(f"signal {signal.Signals(number).name}")
    elif number == signal.SIGINT:
        now = time.monotonic()
        if _process.interrupted_at is None:
            _process.interrupted_at = now
        elif now - _process.interrupted_at > SECONDS_TO_SECOND_INTERRUPT:
            leave(130, "interrupted", speaks=rank_of() == 0)
