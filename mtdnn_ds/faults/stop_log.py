"""RUN/stops.jsonl: one line for each stop on request: when, after which step, why, and how long saving took. Decides nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path


def write_stop(run_folder: Path, *, step: int, reasons: Sequence[str], save_seconds: float | None) -> None:
    """Add a line. Rank 0 only. `save_seconds` None: the step was saved before, or there was none."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "reasons": list(reasons),
        "save_seconds": save_seconds,
    }
    with (run_folder / "stops.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
