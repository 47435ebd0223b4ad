"""The run folder: its layout, what may be started in it, what it records.

No checkpoints (checkpoint/find.py).
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from mtdnn_ds import __version__
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.data.cache.leaked_rows import LeakedRows
from mtdnn_ds.data.plan.task_part import Plan

LOCK = ".lock"  # runs/lock.py
PLAN = "plan.json"
PLAN_STEPS = 40  # at which it says how many examples of each task have been drawn
PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
    "pydantic",
    "tensorboard",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def deepspeed_config(self) -> Path:
        return self.path / "deepspeed.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"


def create_private(path: Path) -> bool:
    """Create a run folder that its user alone can open: weights and logs may tell of the data.

    An existing one keeps its mode. Returns whether it was created. Raises ConfigError if it cannot be.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.is_dir():
            return False
        raise ConfigError(
            f"--output_dir {path}: cannot be created ({error.strerror}: {error.filename}); "
            "give another folder"
        ) from error
    return True


def run_folder_of(resume: str) -> Path | None:
    """The run folder that `--resume PATH` means: PATH itself, or that of PATH = RUN/checkpoints/step_N.

    None for auto and none.
    """
    if resume in ("auto", "none"):
        return None

    path = Path(resume)
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return path


def refuse_used_folder(path: Path, resume: str, *, staged: bool = False) -> None:
    """Raise ConfigError if `path` holds something that this run would mix with or overwrite.

    `staged`: the run is one in stages.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--output_dir {path}: is a file; give a folder")

    source = run_folder_of(resume)
    is_elsewhere = source is not None and source.resolve() != path.resolve()
    if staged and source is not None and (is_elsewhere or not (Path(resume) / "stages").is_dir()):
        raise ConfigError(
            f"--resume {resume}: a run in stages goes on with --resume auto, "
            "or with the folder that holds its stages/"
        )

    if not path.is_dir() or all(item.name == LOCK for item in path.iterdir()):
        return

    if resume == "none":
        raise ConfigError(
            f"--output_dir {path}: is not empty; "
            "add --resume auto to go on with that run, or give another --output_dir"
        )
    if is_elsewhere:
        raise ConfigError(
            f"--output_dir {path}: holds another run than --resume {resume}; "
            f"give an empty folder, or {source} to go on there"
        )
    _refuse_other_form(path, staged=staged)


def _refuse_other_form(path: Path, *, staged: bool) -> None:
    """Raise ConfigError if the run there is in stages, and this one is not, or the other way round."""
    other, held, wanted = "stages", "in stages", "with"
    if staged:
        other, held, wanted = "checkpoints", "without stages", "without"
    if (path / other).is_dir():
        raise ConfigError(
            f"--output_dir {path}: holds a run {held}; "
            f"give the recipe {wanted} stages that it was run with, or another --output_dir"
        )


def refuse_staged_folder(folder: RunFolder, setting: str) -> None:
    """Raise ConfigError, naming its stages, if `folder`, which `setting` named, is a run in stages.

    It has no weights of its own.
    """
    stages = sorted(str(path.parent) for path in folder.path.glob("stages/*/recipe.yaml"))
    if stages:
        raise ConfigError(f"{setting} {folder.path}: a run in stages; give one of them: {', '.join(stages)}")


def write_run_files(
    folder: RunFolder,
    *,
    recipe_yaml: str,
    deepspeed_config: dict[str, Any],
    topology: dict[str, Any],
    plan: dict[str, Any],
) -> None:
    """recipe.yaml, deepspeed.json, plan.json and environment.json. Rank 0 only. Raises OSError.

    Earlier versions of a resumed run stay beside them.
    """
    environment = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "mtdnn_ds": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git": _git_state(),
        "command": sys.argv,
        "host": platform.node(),
        "machine": platform.platform(),
        "topology": topology,
    }

    write_keeping_old(folder.recipe, recipe_yaml)
    write_keeping_old(folder.deepspeed_config, json.dumps(deepspeed_config, indent=1))
    write_keeping_old(folder.path / PLAN, json.dumps(plan) + "\n")
    write_keeping_old(folder.path / "environment.json", json.dumps(environment, indent=1))


def plan_record(plan: Plan, leaks: Mapping[str, LeakedRows]) -> dict[str, Any]:
    """plan.json: the mixture as planned, so that it can be compared with what was drawn without the data.

    `examples`: of each task in the first `steps[i]` steps, the last of which is the run's last.
    `left_out`: training rows that data.drop_leaked_rows left out of each task, and where they stand.
    """
    steps = sorted({-(-plan.total_steps * part // PLAN_STEPS) for part in range(1, PLAN_STEPS + 1)})
    drawn = [plan.drawn(step).tolist() for step in steps]
    return {
        "total_steps": plan.total_steps,
        "examples_per_step": plan.examples_per_step,
        "fingerprint": plan.fingerprint,
        "steps": steps,
        "examples": {
            name: [counts[index] for counts in drawn]
            for index, name in enumerate(plan.task_names)
            if name in plan.trained_tasks
        },
        "left_out": {name: found.record() for name, found in leaks.items()},
    }


def write_keeping_old(path: Path, text: str) -> None:
    """Write a small file; one with another text is kept beside it under a number. Rank 0 only."""
    if path.exists() and path.read_text() != text:
        path.rename(_unused_name(path))
    path.write_text(text)


def _unused_name(path: Path) -> Path:
    """`recipe.1.yaml`, `recipe.2.yaml` ..."""
    number = 1
    while True:
        unused = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not unused.exists():
            return unused
        number += 1


def _git_state() -> dict[str, Any] | None:
    """Commit of the code, and whether it has changes that no commit holds; None outside a git checkout."""
    try:
        commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "uncommitted_changes": bool(changed)}


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return ended.stdout.strip()
