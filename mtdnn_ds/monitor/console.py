"""What a user sees while a run goes on: one moving line or plain lines, notes, the table of results; and quiet libraries.

Speaks on rank 0 only. Writes no file (monitor.py does) and decides nothing.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TextIO

from tqdm import tqdm

LogLevel = Literal["debug", "info", "warning", "error"]

# DeepSpeed's warnings that describe what this project does on purpose, or what a CPU run says anyway.
EXPECTED_DEEPSPEED_WARNINGS = ("Setting accelerator to CPU",)


class Progress:
    """Shows the steps of a run: a bar where `stream` is a terminal, else a plain line at most every `seconds_between_lines`.

    With `is_main` false every method is silent. `first_step`: steps done before this process (a resumed run).
    """

    def __init__(
        self,
        *,
        num_steps: int,
        first_step: int = 0,
        is_main: bool = True,
        stream: TextIO | None = None,
        seconds_between_lines: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_steps = num_steps
        self._is_main = is_main
        self._stream = stream or sys.stdout
        self._seconds_between_lines = seconds_between_lines
        self._clock = clock
        self._said: set[str] = set()
        self._first_update: tuple[int, float] | None = None
        self._last_line_at = -math.inf
        self._first_step = first_step
        self._bar: tqdm | None = None

    def update(self, *, step: int, loss: float, tokens_per_second: float) -> None:
        """Show that `step` steps are done."""
        if not self._is_main:
            return
        if self._stream.isatty():
            if (
                self._bar is None
            ):  # opened by the first step: notes said before it stand above, and a Progress that only speaks has none
                self._bar = tqdm(
                    total=self._num_steps,
                    initial=self._first_step,
                    file=self._stream,
                    unit="step",
                    dynamic_ncols=True,
                )
            self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s", refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = self._clock()
        if self._first_update is None:
            self._first_update = (
                step,
                now,
            )  # the clock starts after the first step, which warms caches up and compiles
        if now - self._last_line_at >= self._seconds_between_lines or step == self._num_steps:
            self._last_line_at = now
            left = self._time_left(step, now)
            parts = [
                f"step {step}/{self._num_steps}",
                f"loss {loss:.3f}",
                f"{tokens_per_second:,.0f} tokens/s",
                *([f"{left} left"] if left else []),
            ]
            print("  ".join(parts), file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """Print `text` above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._is_main:
            print(text, file=self._stream, flush=True)

    def say_once(self, text: str) -> None:
        """Print `text` unless this run has said it already."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def close(self) -> None:
        """Leave the bar as it is and free the line."""
        if self._bar is not None:
            self._bar.close()

    def _time_left(self, step: int, now: float) -> str:
        assert self._first_update is not None
        first_step, started = self._first_update
        if step == first_step or step == self._num_steps:
            return ""
        seconds_per_step = (now - started) / (step - first_step)
        return str(timedelta(seconds=round(seconds_per_step * (self._num_steps - step))))


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """One task's row in the table of results."""

    task: str
    num_rows: int  # of the dev split
    metrics: Mapping[str, float]  # final values, the main metric first
    majority_baseline: (
        float | None
    )  # main metric of always answering the most frequent label; None where that has no meaning
    best_value: float | None  # of the main metric during the run
    best_step: int | None


def format_results(results: Sequence[TaskResult], average: float) -> str:
    """The table of all tasks: final dev metrics beside what always answering the most frequent label would get."""
    header = ("task", "dev rows", "metric", "value", "majority", "best", "at step")
    rows: list[tuple[str, ...]] = []
    for result in results:
        for index, (metric, value) in enumerate(result.metrics.items()):
            if index == 0:
                best_step = "-" if result.best_step is None else f"{result.best_step:,}"
                rows.append(
                    (
                        result.task,
                        f"{result.num_rows:,}",
                        metric,
                        _value(value),
                        _value(result.majority_baseline),
                        _value(result.best_value),
                        best_step,
                    )
                )
            else:
                rows.append(("", "", metric, _value(value), "", "", ""))
    rows.append(("average", "", "", _value(average), "", "", ""))
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        _row(header, widths),
        "  ".join("-" * width for width in widths),
        *(_row(row, widths) for row in rows),
    ]
    return "\n".join(lines)


def configure_logging(log_level: LogLevel, rank: int) -> None:
    """Bring DeepSpeed's, transformers' and torch's own messages down to what a user needs. Call it before importing any of them.

    warning, error: this level on rank 0, errors alone on the others, and nothing that a healthy run says.
    info, debug: everything, on all ranks. An environment variable that the user has set wins.
    """
    level = getattr(logging, log_level.upper())
    if level <= logging.INFO:
        _show_deepspeed(level)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", log_level)
        return
    # deepspeed.utils.logging sets level and handler when it is imported, but a filter put on the logger before stays.
    logger = logging.getLogger("DeepSpeed")
    logger.filters = [known for known in logger.filters if not isinstance(known, _UsersLevel)]
    logger.addFilter(_UsersLevel(level if rank == 0 else logging.ERROR))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if rank != 0:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # one bar for a download, not one a rank
    # deepspeed 0.19 calls collectives by names that torch 2.13 is renaming, transformers its own old ones; a user can do nothing about it.
    for module in (r"torch\.distributed", r"deepspeed", r"transformers"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)


class _UsersLevel(logging.Filter):
    """Lets through what is at least at `level` and not expected."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level and not any(
            text in record.getMessage() for text in EXPECTED_DEEPSPEED_WARNINGS
        )


def _show_deepspeed(level: int) -> None:
    import deepspeed.utils.logging  # noqa: F401  # creates the logger, at WARNING

    logger = logging.getLogger("DeepSpeed")
    logger.filters = [known for known in logger.filters if not isinstance(known, _UsersLevel)]
    logger.setLevel(level)
    for handler in logger.handlers:
        handler.setLevel(level)


def _value(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Task and metric names to the left, numbers to the right."""
    return "  ".join(
        cell.ljust(width) if column in (0, 2) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()
