"""What the stages of a run have reached: stages.json, and the table of tasks and stages at the end. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtdnn_ds.checkpoint.find import replace_file

RESULTS = "stages.json"
_HEADER = ("task", "stage", "score", "best", "at step")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """One stage's last evaluation and best scores; empty where it has none yet."""

    name: str
    folder: str  # inside the run folder
    source: str | None  # the stage it began with
    checkpoint: str | None  # of that stage
    steps: int  # done and saved
    total_steps: int
    metrics: Mapping[str, Mapping[str, float]]  # task -> metric -> value, after the last step
    scores: Mapping[str, float]  # task -> mean of its metrics
    best: Mapping[str, Mapping[str, float]]  # task or "average" -> {"score", "step"}


def write_results(output_dir: Path, results: Sequence[StageResult]) -> None:
    """stages.json. Rank 0 only."""
    replace_file(
        output_dir / RESULTS, json.dumps({"stages": [asdict(result) for result in results]}, indent=1)
    )


def format_stages(results: Sequence[StageResult]) -> str:
    """A line for each task in each stage, those of a task next to each other."""
    tasks = list(dict.fromkeys(task for result in results for task in result.scores))
    rows = [_row(task, result) for task in tasks for result in results if task in result.scores]
    widths = [max(len(row[column]) for row in (_HEADER, *rows)) for column in range(len(_HEADER))]
    lines = [
        _aligned(_HEADER, widths),
        "  ".join("-" * width for width in widths),
        *(_aligned(row, widths) for row in rows),
    ]
    unscored = [result.name for result in results if not result.scores]
    return "\n".join([*lines, *([f"without dev scores: {', '.join(unscored)}"] if unscored else [])])


def _row(task: str, result: StageResult) -> tuple[str, ...]:
    best: Mapping[str, Any] = result.best.get(task, {})
    cells = (f"{best['score']:.4f}", f"{int(best['step']):,}") if best else ("-", "-")
    return (task, result.name, f"{result.scores[task]:.4f}", *cells)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    return "  ".join(
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()
