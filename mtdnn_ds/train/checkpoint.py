"""Checkpoints: atomic saving, finding the newest good one, pruning. DeepSpeed writes the shards; this file makes them safe.

A checkpoint is written into checkpoints/.partial_step_N, checked, given a manifest with every file's size and sha256, flushed to
disk and only then renamed to checkpoints/step_N; `latest` is replaced last. A kill at any point leaves a folder without a manifest
or an untouched older checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.config.errors import CheckpointError

MANIFEST = "manifest.json"
RUN_STATE = "run_state.json"
PARTIAL = ".partial_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A checkpoint that has been checked, and what was noticed on the way to it."""

    path: Path
    step: int
    run_state: dict[str, Any]
    notes: tuple[str, ...]


def save_checkpoint(
    engine: Any,
    checkpoints: Path,
    *,
    step: int,
    run_state: dict[str, Any],
    keep_last: int,
    also: Sequence[Callable[[Path], None]] = (),
) -> Path:
    """Write checkpoints/step_N. Collective: all ranks must call this, between steps. `run_state` is JSON, equal on all ranks.

    `also`: each writes a file of its own into the folder, on rank 0.
    """
    final, partial = checkpoints / f"step_{step}", checkpoints / f"{PARTIAL}step_{step}"

    def begin() -> None:
        checkpoints.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)

    def finish() -> None:
        _check_shards(partial, engine)
        (partial / RUN_STATE).write_text(json.dumps(run_state, indent=1))
        for write in also:
            write(partial)
        write_manifest(partial)
        os.replace(partial, final)
        flush(checkpoints)
        replace_file(checkpoints / "latest", final.name)
        _prune(checkpoints, keep_last)

    dist.on_main(begin)
    ours = {"step": step, "optimizer_order": _optimizer_order(engine)}
    client_state = {"mtdnn_ds": ours, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
    engine.save_checkpoint(str(checkpoints), tag=partial.name, client_state=client_state, save_latest=False)
    dist.barrier()
    dist.on_main(finish)
    return final


def find_checkpoint(checkpoints: Path) -> Found | None:
    """The newest checkpoint that is whole, or None where there is none; damaged and unfinished ones are named in `notes`.

    Raises CheckpointError if checkpoints exist but all are damaged.
    """
    notes = [
        f"{path}: an unfinished checkpoint (killed while it was saved or removed); ignored"
        for path in sorted(checkpoints.glob(f"{PARTIAL}*"))
    ]
    numbered = _numbered(checkpoints)
    for _step, path in numbered:
        problem = damage(path)
        if problem is None:
            return open_checkpoint(path, notes=tuple(notes))
        notes.append(f"{path}: {problem}; trying the one before")
    if numbered:
        raise CheckpointError(
            [*notes, f"{checkpoints}: no checkpoint is whole; start again in an empty --output_dir, or restore one from a backup"]
        )
    return None


def open_checkpoint(path: Path, *, notes: tuple[str, ...] = ()) -> Found:
    """The checkpoint folder `path`, checked. Raises CheckpointError naming what is wrong with it."""
    problem = damage(path)
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}")
    run_state = json.loads((path / RUN_STATE).read_text())
    return Found(path=path, step=int(run_state["step"]), run_state=run_state, notes=notes)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: compares every file with the manifest's size and sha256."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        return f"not a whole checkpoint ({MANIFEST} is missing)"
    try:
        files = json.loads(manifest.read_text())["files"]
        entries = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not readable"
    if RUN_STATE not in entries:
        return f"{MANIFEST} does not list {RUN_STATE}"
    for name, (size, sha256) in entries.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _sha256(file) != sha256:
            return f"{name} is damaged (its sha256 differs from the manifest's)"
    return None


def load_engine(engine: Any, found: Found) -> None:
    """Put weights, optimizer and loss-scaler state back. Collective: all ranks must call this."""
    loaded, client_state = engine.load_checkpoint(str(found.path.parent), tag=found.path.name)
    if loaded is None or client_state.get("mtdnn_ds", {}).get("step") != found.step:
        raise CheckpointError(
            f"{found.path}: DeepSpeed did not load it (its step is {(client_state or {}).get('mtdnn_ds')}, expected {found.step})"
        )


def tidy(checkpoints: Path, last_step: int, say: Callable[[str], None]) -> None:
    """Before a run goes on after `last_step`: remove unfinished checkpoints, set later ones aside. Rank 0 only, after they have been reported.

    Later ones are damaged, or belong to steps that an explicit --resume step_N abandons; the run would mix them with its own.
    """
    for leftover in checkpoints.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover)
    for step, path in _numbered(checkpoints):
        if step > last_step:
            aside, number = checkpoints / f"abandoned_{path.name}", 1
            while aside.exists():  # an earlier one is kept too
                number += 1
                aside = checkpoints / f"abandoned_{path.name}.{number}"
            os.replace(path, aside)
            say(f"{path}: later than the step this run goes on from; set aside as {aside.name}")


def write_manifest(folder: Path) -> None:
    """List every file with its size and sha256, and flush all of it to disk."""
    files = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        flush(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    replace_file(folder / MANIFEST, json.dumps({"format": 1, "files": files}, indent=1))
    flush(folder)


def replace_file(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, never a part."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    flush(aside)
    os.replace(aside, path)


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resume_from(resume: str, output_dir: Path, say: Callable[[str], None]) -> Found | None:
    """What `--resume` means: a checkpoint, or None for a fresh start. Collective: rank 0 looks, all ranks get its answer."""
    return dist.on_main(lambda: _resume_from(resume, output_dir, say))


def _resume_from(resume: str, output_dir: Path, say: Callable[[str], None]) -> Found | None:
    if resume == "none":
        return None
    if resume == "auto":
        found = find_checkpoint(output_dir / "checkpoints")
        if found is None:
            say(f"--resume auto: no checkpoint in {output_dir}; starting from the beginning")
    else:
        folder = Path(resume)
        if not folder.is_dir():
            raise CheckpointError(
                f"--resume {resume}: there is no such folder; give auto, none, a run folder or a folder checkpoints/step_N of one"
            )
        found = open_checkpoint(folder) if re.fullmatch(r"step_\d+", folder.name) else find_checkpoint(folder / "checkpoints")
        if found is None:
            raise CheckpointError(f"--resume {resume}: no checkpoint there; give a run folder or a folder checkpoints/step_N of one")
    for note in found.notes if found else ():
        say(note)
    return found


def _numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """(N, folder step_N), newest first."""
    matches = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in checkpoints.glob("step_*"))
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _optimizer_order(engine: Any) -> list[str] | None:
    """Which parameter each of the optimizer's numbers means, where DeepSpeed does not write it (ZeRO 0)."""
    if engine.zero_optimization_stage() > 0:
        return None
    return [engine.param_names[parameter] for group in engine.optimizer.param_groups for parameter in group["params"]]


def _check_shards(folder: Path, engine: Any) -> None:
    """DeepSpeed swallows some write errors: count the files it must have written (its layout, DeepSpeed 0.19.8)."""
    stage, ranks = engine.zero_optimization_stage(), dist.world_size()
    optimizer_files = len(list(folder.glob("*_optim_states.pt")))
    model_files = len(list(folder.glob("*_model_states.pt")))
    expected = (1, 0) if stage == 0 else (1, ranks) if stage < 3 else (ranks, ranks)
    if (model_files, optimizer_files) != expected:
        raise CheckpointError(
            f"{folder}: DeepSpeed wrote {model_files} model and {optimizer_files} optimizer files instead of {expected[0]} and {expected[1]}; is the disk full?"
        )


def _prune(checkpoints: Path, keep_last: int) -> None:
    whole = [path for _step, path in _numbered(checkpoints) if (path / MANIFEST).is_file()]
    for path in whole[keep_last:]:
        # Renamed first: a kill in between leaves something that is plainly unfinished, not a damaged checkpoint.
        doomed = checkpoints / f"{PARTIAL}{path.name}"
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
