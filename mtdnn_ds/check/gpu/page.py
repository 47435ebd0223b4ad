"""What the parts found, for people: a table on the terminal, and the page that docs/gpu.md is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds import __version__
from mtdnn_ds.check.gpu.results import PAGE_NAME, PartResult, Report, Row, counts, figure_text, label
from mtdnn_ds.files import replace_file

if TYPE_CHECKING:
    from rich.table import Table

MOST_COLUMNS = 12  # of figures; one row of more is a list
TITLE = "# What the CUDA path computes, and how fast"


def terminal_table(report: Report) -> Table:
    """Every row, and the error of every part without a good end."""
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "note": "dim", "missed": "yellow", "failed": "bold red"}
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("part", "what", "", "found"):
        table.add_column(title, overflow="fold")

    for part in report.parts:
        for row in part.rows:
            status = Text(row.status, style=styles[row.status])
            table.add_row(Text(part.name), Text(row.name), status, Text(row.text))
        if part.status != "done":
            reason = part.error.splitlines()[0] if part.error else ""
            table.add_row(Text(part.name), Text(""), Text(part.status, style="bold red"), Text(reason))
    return table


def write_page(report: Report, folder: Path) -> None:
    """The page, whole or not at all. Raises OSError."""
    replace_file(folder / PAGE_NAME, page(report))


def page(report: Report) -> str:
    """The page as Markdown: a section for each part, a table for each run of rows with the same figures."""
    lines = [TITLE, ""]
    if report.is_rehearsal:
        lines += ["A rehearsal: everything small, so no figure here means anything.", ""]
    if not report.is_complete:
        lines += ["Cut short: what is missing was not reached.", ""]
    lines += [
        f"mtdnn_ds {__version__}, {report.written}, {report.seconds:.0f} s: {counts(report)}.",
        "",
    ]

    for part in report.parts:
        lines += _section(part)
    return "\n".join(lines)


def _section(part: PartResult) -> Iterable[str]:
    lines = [f"## {part.title}", ""]
    for names, rows in groupby(part.rows, key=lambda row: tuple(row.figures)):
        lines += [*_table(names, list(rows)), ""]
    if part.status != "done":
        lines += [f"{part.status} after {part.seconds or 0:.0f} s of {part.limit_seconds:.0f}:", ""]
        lines += ["```text", part.error or "-", "```", ""]
    elif part.seconds is not None:
        lines += [f"{part.seconds:.0f} s of at most {part.limit_seconds:.0f}.", ""]
    return lines


def _table(names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    if len(rows) == 1 and len(names) > MOST_COLUMNS:
        head = [_line(["", rows[0].name]), _line(["---", "---"])]
        return head + [_line([label(name), figure_text(rows[0].figures[name])]) for name in names]

    has_words = any(row.what for row in rows)
    head = ["", *(label(name) for name in names), "", *(["found"] if has_words else [])]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        cells = [row.name, *(figure_text(row.figures[name]) for name in names), row.status]
        if has_words:
            cells.append(row.what)
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    clean = [" ".join(cell.replace("|", "\\|").split()) for cell in cells]
    return f"| {' | '.join(clean)} |"
