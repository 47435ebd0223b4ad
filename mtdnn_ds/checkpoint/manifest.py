"""The manifest of a checkpoint folder: every file with its size and sha256; written last, compared first.

Knows folders and bytes only: no engine, no tensors. A folder without a manifest is an unfinished checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.faults.heartbeat import announce
from mtdnn_ds.files import file_sha256, replace_file, sync

MANIFEST = "manifest.json"
RUN_STATE = "run_state.json"
PARTIAL = ".partial_"  # how the name of an unfinished checkpoint begins
HASHING_THREADS = 4  # a disk gives about as much as two to four cores hash


def numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """(N, folder step_N) of every checkpoint, whole or not, newest first."""
    found = []
    for path in checkpoints.glob("step_*"):
        match = re.fullmatch(r"step_(\d+)", path.name)
        if match is not None:
            found.append((int(match[1]), path))
    return sorted(found, reverse=True)


def write_manifest(folder: Path, known: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """List every file of `folder` with its size and sha256, and sync all of it to disk.

    `known`: files that are synced already, each with its `bytes` and `sha256` as they were written. Raises
    CheckpointError if such a file is not there, or not as long.
    """
    files = dict(known or {})
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in files and name != MANIFEST:
            sync(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}

    for name, entry in files.items():
        length = _length(folder / name)
        if length != entry["bytes"]:
            raise CheckpointError(
                f"{folder / name}: has {length} bytes here, {entry['bytes']} were written; "
                "do all nodes share this folder?"
            )

    announce("writing the manifest")
    replace_file(folder / MANIFEST, json.dumps({"format": 1, "files": dict(sorted(files.items()))}, indent=1))
    sync(folder)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: every file is compared with its size and sha256."""
    if not (path / MANIFEST).is_file():
        return f"not a whole checkpoint ({MANIFEST} is missing)"
    entries = _entries(path)
    if entries is None:
        return f"{MANIFEST} is not readable"
    if RUN_STATE not in entries:
        return f"{MANIFEST} does not list {RUN_STATE}"

    for name, (size, _sha256) in entries.items():
        file = path / name
        # Path.is_file raises where the name is too long for a file.
        if not os.path.isfile(file):  # noqa: PTH113
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
    """Size of a checkpoint by its manifest, in bytes; None if that cannot be read."""
    entries = _entries(path)
    if entries is None:
        return None
    return sum(size for size, _sha256 in entries.values())


def newest_bytes(checkpoints: Path) -> int | None:
    """Size of the newest checkpoint whose manifest can be read, in bytes; None where there is none."""
    for _step, path in numbered(checkpoints):
        total = manifest_bytes(path)
        if total is not None:
            return total
    return None


def _length(path: Path) -> int | None:
    if not path.is_file():
        return None
    return path.stat().st_size


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
