"""`export_run`: a run becomes folders for transformers, ONNX and sentence-transformers, each compared with the run before it is kept.

Everything is written into a folder aside and moved to its place at the end: an export that fails leaves nothing behind.
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
from mtdnn_ds.runs.load import find_run
from mtdnn_ds.runs.model_folder import default_checkpoint

if TYPE_CHECKING:
    from mtdnn_ds.export.parity import Parity

Format = Literal["hf", "onnx", "sentence-transformers", "all"]
NO_GRAPH = "its stochastic answer network (head: san) reads where each text begins and ends, which padded input does not say"
FORMATS: tuple[Format, ...] = ("hf", "onnx", "sentence-transformers", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
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
) -> list[Exported]:
    """Export a run's whole model and every task, or one `task`, and return what was made. Needs no GPU and no process group.

    `output_dir` None: the folder `export` in the run folder. `checkpoint`: best (best/TASK for one task, else best/average), best/NAME,
    latest, step_N or N. `format`: hf, onnx, sentence-transformers or all. Raises ConfigError and CheckpointError; nothing is then left.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format {format}: unknown{did_you_mean(format, FORMATS)}")
    checkpoint = checkpoint_name(run_dir, checkpoint, task)
    found = find_run(run_dir, checkpoint, needs_data=False)  # refuses what is no run, before anything heavy
    names = [spec.name for spec in found.specs]
    if task is not None and task not in names:
        raise ConfigError(f"--task {task}: the run has no such task{did_you_mean(task, names)}")
    if task is not None and format == "sentence-transformers" and found.recipe.sharing.mode == "hard":
        raise ConfigError(
            f"--task {task}: has no effect with --format sentence-transformers, whose encoder all tasks share; leave it out"
        )
    target = Path(output_dir) if output_dir is not None else found.folder.path / "export"
    in_graph = [spec.name for spec in found.specs if spec.head != "san" and task in (None, spec.name)]
    if format == "onnx" and not in_graph:
        raise ConfigError(
            f"--format onnx: {task or 'every task of the run'} cannot be in a graph: {NO_GRAPH}; use --format hf"
        )
    wanted = _wanted(names, task, format, has_graph=bool(in_graph))
    used = [
        path
        for path in (target / name for name in wanted)
        if path.exists() and (not path.is_dir() or any(path.iterdir()))
    ]
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--output_dir {target}: is a file; give a folder")
    if used:
        raise ConfigError(
            [
                f"--output_dir {target}: {path.relative_to(target)} is there already; remove it, or give another folder"
                for path in used
            ]
        )

    from mtdnn_ds.export.opened import open_run
    from mtdnn_ds.export.writers import write_all

    try:
        target.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".partial_", dir=target))
    except OSError as error:
        raise ConfigError(
            f"--output_dir {target}: cannot be written ({error.strerror}); give another folder"
        ) from error
    try:
        made = write_all(open_run(run_dir, checkpoint), aside, wanted)
        for each in made:
            place = target / each.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                place.rmdir()  # empty
            os.replace(aside / each.name, place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
    return [
        Exported(
            name=each.name,
            folder=target / each.name,
            loads_with=each.loads_with,
            parity=each.parity,
            size_bytes=_size(target / each.name),
            note=each.note,
        )
        for each in made
    ]


def checkpoint_name(run_dir: str, checkpoint: str, task: str | None) -> str:
    """`best` and a bare number in the words that the run folder has for them."""
    if checkpoint.isdecimal():
        return f"step_{checkpoint}"
    if checkpoint != "best":
        return checkpoint
    if task is not None and default_checkpoint(run_dir) != "latest":
        return f"best/{task}" if (Path(run_dir) / "best" / task).is_dir() else "best/average"
    return default_checkpoint(run_dir)


def _wanted(names: Sequence[str], task: str | None, format: str, *, has_graph: bool) -> list[str]:
    """Folders to be made, by their names inside the output folder. `has_graph`: something of it can be in an ONNX graph."""
    wanted = []
    if format in ("hf", "all"):
        wanted += (
            [f"tasks/{task}"]
            if task is not None
            else ["encoder", "multitask", *(f"tasks/{name}" for name in names)]
        )
    if format in ("onnx", "all") and has_graph:
        wanted.append("onnx" if task is None else f"onnx_{task}")
    if format == "sentence-transformers" or (format == "all" and task is None):
        wanted.append("sentence-transformers" if task is None else f"sentence-transformers_{task}")
    return wanted


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
