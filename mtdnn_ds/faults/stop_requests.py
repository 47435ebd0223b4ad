"""Requests to stop this process: signals, a launcher that is gone, a time limit.

Keeps them, notes stops; saves no state. SIGTERM and SIGUSR1 ask; what follows depends on where the run is.
AT_ONCE, while there is nothing to save: the process (through the watchdog, every rank) ends with exit code
85. BETWEEN_STEPS: the training loop asks `requested()` and saves. IGNORE: the last step is done, and the run
ends as it would have. SIGINT keeps its meaning; a second one ends the process at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from mtdnn_ds.config.errors import Stopped
from mtdnn_ds.config.launch import rank_of
from mtdnn_ds.faults.exit import STOPPED, exit_now
from mtdnn_ds.faults.parent_launcher import gone, launchers_above

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SECONDS_BETWEEN_LOOKS = 1.0  # at the launcher
SECONDS_TO_SECOND_INTERRUPT = 1.0  # torchrun hands one Ctrl-C on as a second SIGINT


class StopPolicy(Enum):
    """What a request to stop does now."""

    AT_ONCE = "end the process"
    BETWEEN_STEPS = "finish the step, save, end"
    IGNORE = "nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a stop AT_ONCE ends, and what its user can do then: for the text that the process ends with."""

    when: str
    alone: str  # said by a process without other ranks
    together: str  # said for all ranks

    def text_alone(self, reason: str) -> str:
        """What a process says that ends alone."""
        return f"stopped {self.when}: {reason}; {self.alone}"

    def text_together(self, reason: str) -> str:
        """What rank 0 says when all ranks end."""
        return f"stopped {self.when} ({reason}); {self.together}"


BEFORE_TRAINING = Work(
    when="before training",
    alone="nothing is lost: the same command goes on",
    together="nothing was to be saved; the same command with --resume auto goes on",
)


def work_of_verb(verb: str, *, goes_on: bool) -> Work:
    """What a verb does. `goes_on`: stopped and called again, it goes on where it was."""
    if verb == "train":
        return BEFORE_TRAINING

    after = "the same command begins anew"
    if goes_on:
        after = "the same command goes on where it was"
    return Work(when=f"during {verb}", alone=after, together=after)


def _exit_alone(reason: str) -> None:
    exit_now(STOPPED, _process.work.text_alone(reason), speaks=rank_of() == 0)


class _Process:
    """What this process has been asked. One for all runs of a process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reason: str | None = None
        self.policy = StopPolicy.AT_ONCE
        self.work = BEFORE_TRAINING
        self.listeners = 0  # nested `listening`s
        self.old_handlers: dict[signal.Signals, Any] = {}
        self.old_wakeup = -1
        self.pipe: tuple[int, int] | None = None
        self.interrupted_at: float | None = None
        self.exit: Callable[[str], None] = _exit_alone


_process = _Process()


def request(reason: str) -> None:
    """Ask this process to stop. The first reason is kept. Any thread may call this."""
    with _process.lock:
        if _process.reason is None:
            _process.reason = reason
            _exit_if_at_once()


def requested() -> str | None:
    """Why this rank shall stop, or None."""
    return _process.reason


def set_policy(policy: StopPolicy) -> None:
    """From now on a request, also one that has come before, does this."""
    with _process.lock:
        _process.policy = policy
        _exit_if_at_once()


def exit_through(function: Callable[[str], None] | None) -> None:
    """How the process ends AT_ONCE: by `function`, which takes the other ranks along, or alone (None)."""
    _process.exit = function or _exit_alone


def text_for_all_ranks(reason: str) -> str:
    """What is said when all ranks end AT_ONCE."""
    return _process.work.text_together(reason)


def _exit_if_at_once() -> None:
    if _process.reason is not None and _process.policy is StopPolicy.AT_ONCE:
        _process.exit(_process.reason)


@contextmanager
def listening(*, to_the_end: bool = False, work: Work = BEFORE_TRAINING) -> Iterator[None]:
    """Take signals and watch the launcher; the outermost one puts everything back.

    Outside the main thread no signal is taken. `to_the_end`: the process ends after it. If it was stopped,
    further signals are ignored then, so that its exit code stays 85. `work`: of the outermost one, what is
    said to have been stopped.
    """
    if _process.listeners == 0:
        _process.work = work
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
        for number in SIGNALS:
            _process.old_handlers[number] = signal.signal(number, lambda number, frame: _received(number))
        # The thread learns of a signal at once, also while the main thread waits in a collective and cannot
        # run a handler.
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
        _process.reason, _process.policy, _process.interrupted_at = None, StopPolicy.AT_ONCE, None
        _process.work = BEFORE_TRAINING


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
    """The thread: reads numbers of signals until the other side of `reading` closes; watches the launcher."""
    launchers = launchers_above()
    while True:
        ready = select.select([reading], [], [], SECONDS_BETWEEN_LOOKS)[0]
        if ready:
            numbers = os.read(reading, 64)
            if not numbers:
                os.close(reading)
                return
            for number in numbers:
                with _process.lock:
                    if _reads(reading):
                        _received(number)

        lost = gone(launchers)
        if lost is not None:
            launchers = ()
            with _process.lock:
                if _reads(reading):
                    request(f"the launcher is gone ({lost.name}, process {lost.pid})")


def _reads(reading: int) -> bool:
    """Whether this is still the pipe of the present `listening`."""
    return _process.pipe is not None and _process.pipe[0] == reading


def _received(number: int) -> None:
    """From the handler and from the thread, whichever comes first."""
    if number in SIGNALS:
        request(f"signal {signal.Signals(number).name}")
        return

    if number == signal.SIGINT:
        now = time.monotonic()
        if _process.interrupted_at is None:
            _process.interrupted_at = now
        elif now - _process.interrupted_at > SECONDS_TO_SECOND_INTERRUPT:
            exit_now(130, "interrupted", speaks=rank_of() == 0)


def write_stop(run_folder: Path, *, step: int, reasons: Sequence[str], save_seconds: float | None) -> None:
    """Add a line to RUN/stops.jsonl: when, after which step, why, and how long saving took.

    Rank 0 only. `save_seconds` None: the step was saved before, or there was none. Raises OSError.
    """
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "reasons": list(reasons),
        "save_seconds": save_seconds,
    }
    with (run_folder / "stops.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
