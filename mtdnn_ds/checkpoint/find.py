"""Checkpoints on disk: what is in them, the newest good one, damage, loading. Saves none (checkpoint/save.py).

A checkpoint is checkpoints/step_N with a manifest of every file's size and sha256. Whatever else lies there is named, and not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.safe_load import refusals, safe_loads
from mtdnn_ds.config.errors import CheckpointError

MANIFEST = "manifest.json"
RUN_STATE = "run_state.json"
PARTIAL = ".partial_"
HASHING_THREADS = 4  # a disk gives about as much as two to four cores hash


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A checkpoint that has been checked, and what was noticed on the way to it."""

    path: Path
    step: int
    run_state: dict[str, Any]
    notes: tuple[str, ...]


def find_checkpoint(checkpoints: Path) -> Found | None:
    """The newest checkpoint that is whole, or None where there is none; damaged and unfinished ones are named in `notes`.

    Raises CheckpointError if checkpoints exist but all are damaged.
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
        raise CheckpointError(
            [
                *notes,
                f"{checkpoints}: no checkpoint is whole; start again in an empty --output_dir, or restore one from a backup",
            ]
        )
    return None


def open_checkpoint(path: Path, *, notes: tuple[str, ...] = ()) -> Found:
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
    return Found(path=path, step=step, run_state=run_state, notes=notes)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: compares every file with the manifest's size and sha256."""
    if not (path / MANIFEST).is_file():
        return f"not a whole checkpoint ({MANIFEST} is missing)"
    entries = _entries(path)
    if entries is None:
        return f"{MANIFEST} is not readable"
    if RUN_STATE not in entries:
        return f"{MANIFEST} does not list {RUN_STATE}"
    for name, (size, _sha256) in entries.items():
        file = path / name
        if not os.path.isfile(file):  # noqa: PTH113 (Path.is_file raises where the name is too long for a file)
            return f"{name[:200]} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    with ThreadPoolExecutor(max_workers=HASHING_THREADS) as pool:
        sums = pool.map(lambda name: _sum_or_error(path / name), entries)
        for (name, (_size, sha256)), found in zip(entries.items(), sums, strict=True):
            if isinstance(found, OSError):
                return f"{name} cannot be read ({found.strerror})"
            if found != sha256:
                return f"{name} is damaged (its sha256 differs from the manifest's)"
    return None


def manifest_bytes(path: Path) -> int | None:
    """Size of a checkpoint by its manifest, None if that cannot be read."""
    entries = _entries(path)
    return None if entries is None else sum(size for size, _sha256 in entries.values())


def load_engine(engine: Any, found: Found) -> None:
    """Put weights, optimizer and loss-scaler state back. Collective: all ranks must call this."""
    files = sorted(found.path.glob("*.pt"))[dist.rank() :: dist.world_size()]

    def check() -> (
        None
    ):  # before DeepSpeed loads, on all ranks alike: one that raised while the others load would leave them waiting
        if problems := refusals(files):
            raise CheckpointError(problems)

    dist.on_all(check)
    with safe_loads(found.path):
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
    for step, path in numbered(checkpoints):
        if step > last_step:
            aside, number = checkpoints / f"abandoned_{path.name}", 1
            while aside.exists():  # an earlier one is kept too
                number += 1
                aside = checkpoints / f"abandoned_{path.name}.{number}"
            os.replace(path, aside)
            say(f"{path}: later than the step this run goes on from; set aside as {aside.name}")


def write_manifest(folder: Path, known: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """List every file with its size and sha256, and flush all of it to disk. `known`: files that are flushed, with both as they were written.

    Raises CheckpointError if such a file is not there, or not as long.
    """
    files = dict(known or {})
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in files and name != MANIFEST:
            flush(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    for name, entry in files.items():
        length = (folder / name).stat().st_size if (folder / name).is_file() else None
        if length != entry["bytes"]:
            raise CheckpointError(
                f"{folder / name}: has {length} bytes here, {entry['bytes']} were written; do all nodes share this folder?"
            )
    replace_file(folder / MANIFEST, json.dumps({"format": 1, "files": dict(sorted(files.items()))}, indent=1))
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
        found = (
            open_checkpoint(folder)
            if re.fullmatch(r"step_\d+", folder.name)
            else find_checkpoint(folder / "checkpoints")
        )
        if found is None:
            raise CheckpointError(
                f"--resume {resume}: no checkpoint there; give a run folder or a folder checkpoints/step_N of one"
            )
    for note in found.notes if found else ():
        say(note)
    return found


def numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """(N, folder step_N) of every checkpoint, whole or not, newest first."""
    matches = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in checkpoints.glob("step_*"))
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sum_or_error(path: Path) -> str | OSError:
    try:
        return file_sha256(path)
    except OSError as error:
        return error


def _entries(path: Path) -> dict[str, tuple[int, str]] | None:
    """Size and sha256 of every file that the manifest lists, None if it cannot be read."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
