"""How far a run or a file is: a moving bar by rich in a terminal, else plain lines. Writes no file."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TextIO

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FRAMES = 0.1

log = logging.getLogger(__name__)

_open_bars: list[_Bar] = []


def print_above_bar(text: str) -> bool:
    """Print `text` above the bar that is moving; False, and nothing printed, where none is."""
    if not _open_bars:
        return False
    _open_bars[-1].print_above(text)
    return True


class Progress:
    """Shows the steps of a run: a bar where `stream` is a terminal, else a plain line at most every
    `seconds_between_lines`.

    With `is_main` false every method is silent. `first_step`: steps done before this process (a resumed run).
    """

    def __init__(
        self,
        *,
        num_steps: int,
        first_step: int = 0,
        is_main: bool = True,
        stream: TextIO | None = None,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_steps = num_steps
        self._first_step = first_step
        self._is_main = is_main
        self._stream = stream or sys.stdout
        self._seconds_between_lines = seconds_between_lines
        self._clock = clock

        self._said: set[str] = set()
        self._first_update: tuple[int, float] | None = None
        self._last_line_at = -math.inf
        self._bar: _Bar | None = None

    def update(self, *, step: int, loss: float, tokens_per_second: float) -> None:
        """Show that `step` steps are done."""
        if not self._is_main:
            return

        figures = (f"loss {loss:.3f}", f"{tokens_per_second:,.0f} tokens/s")
        if _is_terminal(self._stream):
            if self._bar is None:  # opened by the first step: notes said before it stand above
                self._bar = _Bar(self._stream, total=self._num_steps, done=self._first_step)
            self._bar.update(step, ", ".join(figures))
            return

        now = self._clock()
        if self._first_update is None:
            self._first_update = (step, now)  # the first step warms caches up and compiles: it is not timed
        if now - self._last_line_at >= self._seconds_between_lines or step == self._num_steps:
            self._last_line_at = now
            parts = [f"step {step}/{self._num_steps}", *figures, *self._time_left(step, now)]
            print("  ".join(parts), file=self._stream, flush=True)

    def say_once(self, text: str) -> None:
        """Log `text` unless this run has said it already."""
        if self._is_main and text not in self._said:
            self._said.add(text)
            log.info(text)

    def close(self) -> None:
        """Leave the bar as it is and free the line."""
        if self._bar is not None:
            self._bar.close()

    def _time_left(self, step: int, now: float) -> list[str]:
        assert self._first_update is not None
        first_step, started = self._first_update
        if step == first_step or step == self._num_steps:
            return []

        seconds_per_step = (now - started) / (step - first_step)
        left = timedelta(seconds=round(seconds_per_step * (self._num_steps - step)))
        return [f"{left} left"]


class RowProgress:
    """Shows how far a file is read, as `Progress` does: a bar, or a plain line at most every `seconds`. Must
    be closed.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        done: int = 0,
        is_main: bool = True,
        stream: TextIO | None = None,
        seconds: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self._num_rows = num_rows
        self._first = done
        self._is_main = is_main
        self._stream = stream or sys.stdout
        self._seconds = seconds

        self._began = self._last_line_at = time.monotonic()
        self._bar: _Bar | None = None
        if is_main and _is_terminal(self._stream):
            self._bar = _Bar(self._stream, total=num_rows, done=done)

    def update(self, done: int) -> None:
        """Show that `done` rows are done."""
        now = time.monotonic()
        speed = (done - self._first) / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(done, f"{speed:,.0f} rows/s")
        elif self._is_main and now - self._last_line_at >= self._seconds:
            self._last_line_at = now
            print(f"{done:,} of {self._num_rows:,} rows  {speed:,.0f} rows/s", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is and free the line."""
        if self._bar is not None:
            self._bar.close()


class _Bar:
    """A bar by rich at the foot of a terminal. It moves when it is updated, and needs no thread for that."""

    def __init__(self, stream: TextIO, *, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._console = Console(file=stream)
        self._bar = RichProgress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._total = total
        self._drawn_at = -math.inf
        self._task = self._bar.add_task("", total=total, completed=done, note="")
        self._bar.start()
        self._console.show_cursor()  # a process that ends at once would leave the terminal without
        _open_bars.append(self)

    def update(self, done: int, note: str) -> None:
        self._bar.update(self._task, completed=done, note=note)
        now = time.monotonic()
        if now - self._drawn_at >= SECONDS_BETWEEN_FRAMES or done == self._total:
            self._drawn_at = now
            self._bar.refresh()

    def print_above(self, text: str) -> None:
        self._console.out(text, highlight=False)

    def close(self) -> None:
        if self in _open_bars:
            _open_bars.remove(self)
            self._bar.stop()


def _is_terminal(stream: TextIO) -> bool:
    """Whether a bar can move there: a dumb terminal cannot go back in a line."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
