"""Checkpoints on disk: the newest good one, what `--resume` means, DeepSpeed's own loading.

Saves none (checkpoint/save.py). A checkpoint is checkpoints/step_N with a manifest of every file's size and
sha256 (checkpoint/manifest.py). Whatever else lies there is named, and not used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.manifest import PARTIAL, RUN_STATE, damage, numbered
from mtdnn_ds.checkpoint.safe_load import refusals, safe_loads
from mtdnn_ds.config.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """A checkpoint that has been checked, and what was noticed on the way to it."""

    path: Path
    step: int
    run_state: dict[str, Any]
    notes: tuple[str, ...]


def find_checkpoint(checkpoints: Path) -> CheckpointInfo | None:
    """The newest checkpoint that is whole, or None where there is none.

    Damaged and unfinished ones are named in its `notes`. Raises CheckpointError if checkpoints exist but all
    are damaged.
    """
    notes = [
        f"{path}: an unfinished checkpoint (killed while it was saved or removed); ignored"
        for path in sorted(checkpoints.glob(f"{PARTIAL}*"))
    ]

    there = numbered(checkpoints)
    for _step, path in there:
        problem = damage(path)
        if problem is None:
            return open_checkpoint(path, notes=tuple(notes))
        notes.append(f"{path}: {problem}; trying the one before")

    if there:
        nothing_whole = (
            f"{checkpoints}: no checkpoint is whole; start again in an empty --output_dir, "
            "or restore one from a backup"
        )
        raise CheckpointError([*notes, nothing_whole])
    return None


def open_checkpoint(path: Path, *, notes: tuple[str, ...] = ()) -> CheckpointInfo:
    """The checkpoint folder `path`, checked. Raises CheckpointError naming what is wrong with it."""
    problem = damage(path)
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}")

    try:
        run_state = json.loads((path / RUN_STATE).read_bytes())
        step = run_state["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        step = None
    if not isinstance(step, int):
        raise CheckpointError(
            f"{path}: {RUN_STATE} is as it was written, but names no step; resume from another checkpoint"
        )

    return CheckpointInfo(path=path, step=step, run_state=run_state, notes=notes)


def resume_from(resume: str, output_dir: Path) -> CheckpointInfo | None:
    """What `--resume` means: a checkpoint, or None for a fresh start.

    Collective: rank 0 looks, all ranks get its answer. Raises CheckpointError on all of them.
    """
    return dist.on_main(lambda: _resume_from(resume, output_dir))


def _resume_from(resume: str, output_dir: Path) -> CheckpointInfo | None:
    if resume == "none":
        return None

    if resume == "auto":
        found = find_checkpoint(output_dir / "checkpoints")
        if found is None:
            log.info(f"--resume auto: no checkpoint in {output_dir}; starting from the beginning")
            return None
    else:
        found = _named_checkpoint(resume)

    for note in found.notes:
        log.info(note)
    return found


def _named_checkpoint(resume: str) -> CheckpointInfo:
    """Of `--resume FOLDER`: a checkpoint's folder, or a run's. Raises CheckpointError if it is neither."""
    folder = Path(resume)
    if not folder.is_dir():
        raise CheckpointError(
            f"--resume {resume}: there is no such folder; "
            "give auto, none, a run folder or a folder checkpoints/step_N of one"
        )

    if re.fullmatch(r"step_\d+", folder.name):
        return open_checkpoint(folder)

    found = find_checkpoint(folder / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"--resume {resume}: no checkpoint there; give a run folder or a folder checkpoints/step_N of one"
        )
    return found


def load_engine(engine: Any, found: CheckpointInfo) -> None:
    """Put weights, optimizer and loss-scaler state back. Collective: all ranks must call this."""
    files = sorted(found.path.glob("*.pt"))[dist.rank() :: dist.world_size()]

    def check() -> None:
        problems = refusals(files)
        if problems:
            raise CheckpointError(problems)

    # Before DeepSpeed loads, on all ranks alike: one that raised while the others load would leave them
    # waiting.
    dist.on_all(check)

    with safe_loads(found.path):
        loaded, client_state = engine.load_checkpoint(str(found.path.parent), tag=found.path.name)
    if loaded is None or client_state.get("mtdnn_ds", {}).get("step") != found.step:
        raise CheckpointError(
            f"{found.path}: DeepSpeed did not load it "
            f"(its step is {(client_state or {}).get('mtdnn_ds')}, expected {found.step})"
        )


def tidy(checkpoints: Path, last_step: int) -> None:
    """Before a run goes on after `last_step`: remove unfinished checkpoints, set later ones aside.

    Rank 0 only, after they have been reported. Later ones are damaged, or belong to steps that an explicit
    --resume step_N abandons; the run would mix them with its own.
    """
    for leftover in checkpoints.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover)

    for step, path in numbered(checkpoints):
        if step > last_step:
            aside = _unused_name(checkpoints / f"abandoned_{path.name}")
            os.replace(path, aside)
            log.info(f"{path}: later than the step this run goes on from; set aside as {aside.name}")


def _unused_name(path: Path) -> Path:
    """`path`, or `path`.2, .3 ...: what an earlier run set aside is kept too."""
    unused, number = path, 1
    while unused.exists():
        number += 1
        unused = path.with_name(f"{path.name}.{number}")
    return unused
