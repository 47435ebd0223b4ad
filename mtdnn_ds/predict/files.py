"""predict for files: windows of the input to lines of the output, on any number of ranks. No flags.

The bytes are the same whatever the number of ranks. Each rank answers every world_size-th window; rank 0
writes them in order and records how far it is (predict/output.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from mtdnn_ds import __version__, dist
from mtdnn_ds.monitor.progress import RowProgress
from mtdnn_ds.predict.model import MultiTaskModel
from mtdnn_ds.predict.output import PartFile, csv_lines, json_lines
from mtdnn_ds.predict.table import Table, Window, first_row, input_fingerprint, scan, windows_of
from mtdnn_ds.predict.views import View
from mtdnn_ds.runs.number_format import format_name

WINDOW_ROWS = 2048
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputSummary:
    """What went into an output."""

    rows: int
    bad: int  # left out
    truncated: int
    went_on: int  # rows that an earlier run had answered already


class _WindowLines(NamedTuple):
    """One window's lines, from the rank that answered it."""

    header: bytes
    lines: bytes
    rows: int
    bad: int
    truncated: int


def predict_file(
    model: MultiTaskModel,
    table: Table,
    output: Path,
    *,
    asked: tuple[int, ...] | None,
    skips_bad: bool = False,
    max_tokens: int | None = None,
    window_rows: int = WINDOW_ROWS,
) -> OutputSummary:
    """Answer every row of `table` into `output`, a .jsonl or .csv; goes on where a killed run stopped.

    Collective: all ranks must call this. Raises ConfigError and DataError before anything is written.
    """
    views = model.views(first_row(table), asked, table.chosen)
    found = dist.on_main(lambda: scan(table, views, skips_bad=skips_bad))
    files: list[PartFile] = []  # one, of rank 0

    def begin() -> int:
        identity = _identity(
            model,
            table,
            views,
            format=output.suffix,
            skips_bad=skips_bad,
            max_tokens=max_tokens,
            window_rows=window_rows,
        )
        files.append(PartFile(output, identity))
        return files[0].windows

    def answer(window: Window) -> _WindowLines:
        num_rows = len(window.ids)
        numbers = [range(num_rows)] * len(views)
        found = model.answer_checked(views, window.checked, numbers, num_rows, max_tokens=max_tokens)
        header, lines = b"", json_lines(window.ids, found.answers)
        if output.suffix == ".csv":
            header, lines = csv_lines(window.ids, found.answers)
        return _WindowLines(header, lines, num_rows, window.num_bad, sum(found.truncated))

    def write(parts: Sequence[_WindowLines]) -> None:
        for part in parts:
            lines = part.lines
            if not files[0].counts["rows"]:
                lines = part.header + lines
            files[0].add(lines, rows=part.rows, bad=part.bad, truncated=part.truncated)

    first = dist.on_main(begin)
    bar = RowProgress(found.num_rows, done=min(first * window_rows, found.num_rows), is_main=dist.is_main())
    try:
        went_on = dist.on_main(lambda: files[0].counts["rows"])
        windows = rounds(table, views, answer, num_rows=found.num_rows, window_rows=window_rows, first=first)
        for done, parts in windows:
            dist.on_main(lambda parts=parts: write(parts))  # type: ignore[misc]
            bar.update(done)
        dist.on_main(lambda: files[0].finish())
        counts = dist.on_main(lambda: files[0].counts)
    finally:
        bar.close()
        for file in files:
            file.close()
    return OutputSummary(
        rows=counts["rows"], bad=counts["bad"], truncated=counts["truncated"], went_on=went_on
    )


def rounds(
    table: Table,
    views: Sequence[View],
    work: Callable[[Window], Result],
    *,
    num_rows: int,
    window_rows: int,
    first: int,
) -> Iterator[tuple[int, list[Result]]]:
    """(rows done, results of the next windows in order), a window of each rank at a time, on every rank.

    Collective: all ranks must read it to its end. What `work` raises on one of them is raised on all.
    """
    world_size = dist.world_size()
    windows = windows_of(
        table, views, window_rows=window_rows, first=first, rank=dist.rank(), world_size=world_size
    )
    num_windows = -(-num_rows // window_rows)
    for begin in range(first, num_windows, world_size):
        result: Result | None = None
        problem: Exception | None = None
        if begin + dist.rank() < num_windows:
            try:
                result = work(next(windows))
            except Exception as error:  # the other ranks would wait forever otherwise
                problem = error

        gathered = dist.gather((result, problem))
        if problem is not None:
            raise problem
        for _, theirs in gathered:
            if theirs is not None:
                raise theirs

        done = min((begin + world_size) * window_rows, num_rows)
        yield done, [own for own, _ in gathered if own is not None]


def _identity(
    model: MultiTaskModel,
    table: Table,
    views: Sequence[View],
    *,
    format: str,
    skips_bad: bool,
    max_tokens: int | None,
    window_rows: int,
) -> dict[str, Any]:
    """What decides the bytes of the output."""
    tasks = {model.specs[task].name for view in views for task in view.tasks}

    return {
        "mtdnn_ds": __version__,
        "input": input_fingerprint(table),
        "model": model_fingerprint(model),
        "dtype": format_name(model.loaded.dtype),
        "tasks": sorted(tasks),
        "text_columns": list(table.chosen),
        "id_column": table.id_column,
        "on_bad_row": "skip" if skips_bad else "refuse",
        "max_tokens": max_tokens or model.settings.max_tokens_per_micro_batch,
        "window_rows": window_rows,
        "format": format,
    }


def model_fingerprint(model: MultiTaskModel) -> str:
    """sha256 of every weight, of the tasks and of the length of sequences."""
    tasks = [(spec.name, spec.kind, spec.labels) for spec in model.specs]
    digest = hashlib.sha256(f"{model.tokenizing.max_length} {tasks}".encode())
    for name, tensor in sorted(model.net.state_dict().items()):
        digest.update(name.encode())
        if tensor.ndim:
            digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
        else:
            digest.update(str(tensor.item()).encode())
    return digest.hexdigest()
