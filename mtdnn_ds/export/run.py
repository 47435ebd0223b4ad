"""`export_run`: a run becomes folders for transformers, ONNX and others. Writes none of them (writers.py).

Each is compared with the run before it is kept. Everything is written into a folder aside and moved to its
place at the end: an export that fails leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.extras import require_extra
from mtdnn_ds.runs.load import find_run
from mtdnn_ds.runs.model_folder import default_checkpoint

if TYPE_CHECKING:
    from mtdnn_ds.export.parity import Parity
    from mtdnn_ds.runs.load import FinishedRun

Format = Literal["hf", "onnx", "sentence-transformers", "all"]
FORMATS: tuple[Format, ...] = ("hf", "onnx", "sentence-transformers", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedFolder:
    """One folder that an export made."""

    name: str  # inside the output folder: encoder, multitask, tasks/NAME, onnx, ...
    folder: Path
    loads_with: str  # the class that loads it
    parity: Parity | None  # None: nothing of the run to compare with, `note` says why
    size_bytes: int
    note: str = ""


def export_run(
    run_dir: str,
    output_dir: str | None = None,
    *,
    task: str | None = None,
    checkpoint: str = "best",
    format: str = "hf",
) -> list[ExportedFolder]:
    """Export a run's whole model and every task, or one `task`, and return what was made.

    Needs no GPU, no process group. `output_dir` None: the folder `export` in the run folder. `checkpoint`:
    best (best/TASK for one task, else best/average), best/NAME, latest, step_N or N. `format`: hf, onnx,
    sentence-transformers or all. Raises ConfigError and CheckpointError; nothing is then left.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: unknown{did_you_mean(format, FORMATS)}")
    checkpoint = checkpoint_name(run_dir, checkpoint, task)
    found = find_run(run_dir, checkpoint, needs_data=False)  # refuses what is no run, before anything heavy
    _check_task(found, task, format)

    wanted = _wanted(found, task, format)
    target = found.folder.path / "export" if output_dir is None else Path(output_dir)
    _check_target(target, wanted)

    from mtdnn_ds.export.opened import open_run
    from mtdnn_ds.export.writers import write_all

    aside = _make_aside(target)
    try:
        reports = write_all(open_run(run_dir, checkpoint), aside, wanted)
        for report in reports:
            place = target / report.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                place.rmdir()  # empty
            os.replace(aside / report.name, place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()

    return [
        ExportedFolder(
            name=report.name,
            folder=target / report.name,
            loads_with=report.loads_with,
            parity=report.parity,
            size_bytes=_size(target / report.name),
            note=report.note,
        )
        for report in reports
    ]


def checkpoint_name(run_dir: str, checkpoint: str, task: str | None) -> str:
    """`best` and a bare number in the words that the run folder has for them."""
    if checkpoint.isdecimal():
        return f"step_{checkpoint}"
    if checkpoint != "best":
        return checkpoint

    default = default_checkpoint(run_dir)
    if task is not None and default != "latest" and (Path(run_dir) / "best" / task).is_dir():
        return f"best/{task}"
    return default


def _check_task(found: FinishedRun, task: str | None, format: str) -> None:
    """Raises ConfigError if the run has no such task, or naming one has no effect."""
    if task is None:
        return
    names = [spec.name for spec in found.specs]
    if task not in names:
        raise ConfigError(f"--task {task}: the run has no such task{did_you_mean(task, names)}")
    if format == "sentence-transformers" and found.recipe.sharing.mode == "hard":
        raise ConfigError(
            f"--task {task}: has no effect with --format sentence-transformers, "
            "whose encoder all tasks share; leave it out"
        )


def _wanted(found: FinishedRun, task: str | None, format: str) -> list[str]:
    """Folders to be made, by their names inside the output folder."""
    wanted = []
    if format in ("hf", "all"):
        if task is None:
            wanted += ["encoder", "multitask", *(f"tasks/{spec.name}" for spec in found.specs)]
        else:
            wanted.append(f"tasks/{task}")

    if format in ("onnx", "all") and _has_graph(found, task, format):
        wanted.append("onnx" if task is None else f"onnx_{task}")

    if task is None and format in ("sentence-transformers", "all"):
        wanted.append("sentence-transformers")
    elif format == "sentence-transformers":
        wanted.append(f"sentence-transformers_{task}")
    return wanted


def _has_graph(found: FinishedRun, task: str | None, format: str) -> bool:
    """Whether something of the run can be in an ONNX graph.

    Raises ConfigError if nothing can and a graph alone is asked for, or its packages are missing.
    """
    in_graph = [spec.name for spec in found.specs if spec.head != "san" and task in (None, spec.name)]
    if in_graph or format == "onnx":
        require_extra("export", f"--format {format}")
    if in_graph:
        return True
    if format != "onnx":
        return False

    from mtdnn_ds.export.onnx_graph import NO_GRAPH

    raise ConfigError(
        f"--format onnx: {task or 'every task of the run'} cannot be in a graph: {NO_GRAPH}; use --format hf"
    )


def _check_target(target: Path, wanted: Sequence[str]) -> None:
    """Raises ConfigError if a folder to be made is there and not empty."""
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--output_dir {target}: is a file; give a folder")

    problems = []
    for name in wanted:
        path = target / name
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            problems.append(
                f"--output_dir {target}: {name} is there already; remove it, or give another folder"
            )
    if problems:
        raise ConfigError(problems)


def _make_aside(target: Path) -> Path:
    """A new folder inside `target`, which is made. Raises ConfigError."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".partial_", dir=target))
    except OSError as error:
        raise ConfigError(
            f"--output_dir {target}: cannot be written ({error.strerror}); give another folder"
        ) from error


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
