"""What the parts of doctor --gpu found: records, whether any failed, and gpu.json. Runs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mtdnn_ds import __version__
from mtdnn_ds.files import replace_file

RowStatus = Literal["ok", "note", "missed", "failed"]
"""ok; note: cannot be here, and why; missed: a goal was not met, or less is promised than one would like;
failed: wrong, or it raised."""

PartStatus = Literal["waiting", "running", "done", "failed", "timed out", "stopped"]

JSON_NAME, PAGE_NAME, LOG_NAME = "gpu.json", "gpu.md", "gpu.log"

Figure = float | int | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One thing that was looked at. `figures`: name with its unit -> value."""

    name: str
    status: RowStatus = "ok"
    what: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What was found, in one line."""
        figures = [f"{label(name)} {figure_text(value)}" for name, value in self.figures.items()]
        return ", ".join([*figures, self.what] if self.what else figures)


@dataclass(kw_only=True, slots=True)
class PartResult:
    """A part and what it has found so far. `error`: why it did not end well, and the last of what it said."""

    name: str
    title: str
    limit_seconds: float
    status: PartStatus = "waiting"
    seconds: float | None = None
    error: str = ""
    rows: list[Row] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether it came to its end, and nothing in it failed."""
        return self.status == "done" and all(row.status != "failed" for row in self.rows)


@dataclass(kw_only=True, slots=True)
class Report:
    """All parts, in the order in which they run."""

    parts: list[PartResult]
    is_rehearsal: bool
    is_complete: bool = False  # no part waits or runs any more
    seconds: float = 0.0
    written: str = ""

    @property
    def is_good(self) -> bool:
        """Whether every part came to a good end."""
        return self.is_complete and all(part.is_good for part in self.parts)

    def part(self, name: str) -> PartResult:
        """The part of that name."""
        return next(part for part in self.parts if part.name == name)


def write_json(report: Report, folder: Path) -> None:
    """gpu.json, whole or not at all. Raises OSError."""
    report.written = datetime.now(UTC).isoformat(timespec="seconds")
    whole: dict[str, Any] = {"mtdnn_ds": __version__, **asdict(report)}
    for part in whole["parts"]:
        for row in part["rows"]:
            row["figures"] = {name: _json_value(value) for name, value in row["figures"].items()}
    replace_file(folder / JSON_NAME, json.dumps(whole, indent=1, allow_nan=False) + "\n")


def _json_value(value: Figure) -> Figure:
    """JSON has neither nan nor infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def counts(report: Report) -> str:
    """`31 ok, 4 note, 1 missed, 0 failed`, and the parts that did not come to a good end."""
    statuses = [row.status for part in report.parts for row in part.rows]
    line = ", ".join(f"{statuses.count(status)} {status}" for status in ("ok", "note", "missed", "failed"))
    bad = [f"{part.name} ({part.status})" for part in report.parts if part.status != "done"]
    if bad:
        line += f"; parts without a good end: {', '.join(bad)}"
    return line


# Words


def label(name: str) -> str:
    """`step_ms` -> `step ms`."""
    return name.replace("_", " ")


def figure_text(value: Figure) -> str:
    """Four digits at most of a number; tiny ones as 1.2e-07."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4g}"


def last_lines(text: str, number: int = 12) -> str:
    """The end of what a process said, without empty lines."""
    lines: Sequence[str] = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-number:])
