"""What a user sees: log lines and tables on stdout; and quiet libraries. Progress is in progress.py.

Modules say what they have to say by a logger of their own name (`log.info(text)`). Inside `speaking()` the
handler below prints these lines; without it a program that imports the package sees nothing of them. Writes
no file, decides nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TextIO

from mtdnn_ds.monitor.progress import print_above_bar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LogLevel = Literal["debug", "info", "warning", "error"]

PACKAGE = "mtdnn_ds"

# Columns of a table that is not read in a terminal: the same in every log.
LOG_WIDTH = 160

# DeepSpeed's warnings that describe what this project does on purpose, or what a CPU run says anyway.
EXPECTED_DEEPSPEED_WARNINGS = ("Setting accelerator to CPU",)


class ConsoleHandler(logging.Handler):
    """Prints log lines on `stream` (stdout, whatever that is by then), above the bar if one is moving, and
    warnings from `log_level` on on stderr. Rank 0 only.
    """

    def __init__(self, stream: TextIO | None, log_level: LogLevel) -> None:
        super().__init__()
        self.is_silent = False
        self._stream = stream
        self._least_warning = max(logging.WARNING, getattr(logging, log_level.upper()))

    def emit(self, record: logging.LogRecord) -> None:
        from mtdnn_ds import dist

        if self.is_silent or not dist.is_main():
            return

        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            if record.levelno >= self._least_warning:
                print(text, file=sys.stderr, flush=True)
        elif not print_above_bar(text):
            print(text, file=self._stream or sys.stdout, flush=True)


@contextmanager
def speaking(stream: TextIO | None = None, *, log_level: LogLevel = "warning") -> Iterator[None]:
    """What the package logs meanwhile is printed, but for warnings below `log_level`: verbs do their work
    inside it. Inside another one it changes nothing.
    """
    if _handler() is not None:
        yield
        return

    logger = logging.getLogger(PACKAGE)
    before = (logger.level, logger.propagate)
    handler = ConsoleHandler(stream, log_level)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # else a program whose root logger has a handler would see every line twice
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def silenced(silent: bool = True) -> Iterator[None]:
    """Nothing that is logged meanwhile is printed."""
    handler = _handler()
    if handler is None or not silent:
        yield
        return

    was_silent = handler.is_silent
    handler.is_silent = True
    try:
        yield
    finally:
        handler.is_silent = was_silent


def is_speaking() -> bool:
    """Whether a line that is logged now, here, would be printed."""
    from mtdnn_ds import dist

    handler = _handler()
    return handler is not None and not handler.is_silent and dist.is_main()


def _handler() -> ConsoleHandler | None:
    for handler in logging.getLogger(PACKAGE).handlers:
        if isinstance(handler, ConsoleHandler):
            return handler
    return None


def print_table(table: Table) -> None:
    """Print a rich table on stdout: in a terminal's width and colours, else as plain text."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(table)
    else:
        print(_plain_text(Console(width=LOG_WIDTH, color_system=None), table), flush=True)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, names: Collection[int] = (0,)) -> str:
    """A table as plain text, as wide as its cells: columns `names` stand to the left, the others (numbers) to
    the right.
    """
    from rich.console import Console
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column, title in enumerate(header):
        table.add_column(Text(title), justify="left" if column in names else "right", no_wrap=True)
    table.add_row(*(Rule(characters="-") for _ in header))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))

    widest = sum(max(len(line[column]) for line in (header, *rows)) + 2 for column in range(len(header)))
    return _plain_text(Console(width=widest, color_system=None), table)


def _plain_text(console: Console, table: Table) -> str:
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))


def configure_logging(log_level: LogLevel, rank: int) -> None:
    """Bring DeepSpeed's, transformers' and torch's own messages down to what a user needs. Call it before
    importing them.

    warning, error: this level on rank 0, errors alone on the others, and nothing that a healthy run says.
    info, debug: everything, on all ranks. An environment variable that the user has set wins.
    """
    level = getattr(logging, log_level.upper())
    if level <= logging.INFO:
        _show_deepspeed(level)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", log_level)
        return

    # deepspeed.utils.logging sets level and handler when it is imported, but a filter put on the logger
    # before stays.
    logger = _deepspeed_without_filter()
    logger.addFilter(_UsersLevel(level if rank == 0 else logging.ERROR))

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if rank != 0:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # one bar for a download, not one a rank

    # deepspeed 0.19 calls collectives by names that torch 2.13 is renaming, transformers its own old ones; a
    # user can do nothing about it.
    for module in (r"torch\.distributed", r"deepspeed", r"transformers"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)


class _UsersLevel(logging.Filter):
    """Lets through what is at least at `level` and not expected."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        is_expected = any(text in record.getMessage() for text in EXPECTED_DEEPSPEED_WARNINGS)
        return record.levelno >= self._level and not is_expected


def _show_deepspeed(level: int) -> None:
    import deepspeed.utils.logging  # noqa: F401  # creates the logger, at WARNING

    logger = _deepspeed_without_filter()
    logger.setLevel(level)
    for handler in logger.handlers:
        handler.setLevel(level)


def _deepspeed_without_filter() -> logging.Logger:
    """DeepSpeed's logger, without the filter of an earlier call."""
    logger = logging.getLogger("DeepSpeed")
    logger.filters = [known for known in logger.filters if not isinstance(known, _UsersLevel)]
    return logger
