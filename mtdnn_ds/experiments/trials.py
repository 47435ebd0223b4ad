"""Trials: many small runs of one experiment, each an ordinary run folder that is trained once and keeps its scores. Not what they compare.

A finished trial is a folder with trial.json; its checkpoints and weights are removed, so that a hundred trials fit on a disk. An
interrupted experiment goes on where it stopped: finished trials are read, a begun one is resumed from its checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.find import replace_file
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.runs.setup import settings_dict
from mtdnn_ds.tasks.metrics import task_score
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.trainer import train

RESULT = "trial.json"
Scores = dict[int, dict[str, float]]  # step -> task -> mean of its metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run of an experiment, checked before the first one starts."""

    name: str  # of its folder
    title: str  # in what is printed
    recipe: Recipe
    specs: tuple[TaskSpec, ...]
    deepspeed: ResolvedDeepSpeed
    evaluate_after: Collection[int] = ()  # steps, beside the recipe's own


def run_trials(trials: Sequence[Trial], folder: Path, *, say: Callable[[str], None]) -> dict[str, Scores]:
    """Train every trial that is not finished yet; scores of all of them by name. Collective: all ranks must call this."""
    results: dict[str, Scores] = {}
    for number, trial in enumerate(trials, 1):
        place = f"[{number}/{len(trials)}] {trial.title}"
        found = dist.on_main(partial(_finished, trial, folder / trial.name))
        if found is None:
            begin = time.monotonic()
            train(
                trial.recipe, trial.specs, trial.deepspeed, output_dir=folder / trial.name, resume="auto",
                evaluate_after=trial.evaluate_after, quiet=True,
            )  # fmt: skip
            found = dist.on_main(partial(_finish, trial, folder / trial.name))
            place += f" ({time.monotonic() - begin:.0f} s)"
        else:
            place += " (done before)"
        results[trial.name] = found
        say(f"{place}: " + ", ".join(f"{task} {score:.4f}" for task, score in found[max(found)].items()))
    return results


def _finished(trial: Trial, folder: Path) -> Scores | None:
    if not (folder / RESULT).is_file():
        return None
    try:
        result = json.loads((folder / RESULT).read_bytes())
        scores = {int(step): dict(of_step) for step, of_step in result["scores"].items()}
        differing = _differing(dict(result["recipe"]), settings_dict(trial.recipe))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{folder / RESULT}: is damaged; remove {folder}, so that the trial is run again"
        ) from None
    if differing:
        raise CheckpointError(
            [
                *differing,
                f"{folder}: was run with other settings; give another --output_dir, or remove this folder",
            ]
        )
    return scores


def _differing(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    from mtdnn_ds.runs.state import flat

    theirs, ours = flat(saved), flat(wanted)
    changed = [
        key
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and not key.startswith("data.cache_dir")
    ]
    return [
        f"{key} was {theirs.get(key)!r} when the trial was run and is {ours.get(key)!r} now"
        for key in changed
    ]


def _finish(trial: Trial, folder: Path) -> Scores:
    """Write trial.json from the run's own log, then let go of what takes space."""
    run = RunFolder(folder)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    scores = {
        line["step"]: {task: task_score(metrics) for task, metrics in line["eval"].items()}
        for line in lines
        if "eval" in line
    }
    replace_file(
        folder / RESULT,
        json.dumps({"title": trial.title, "scores": scores, "recipe": settings_dict(trial.recipe)}, indent=1),
    )
    for big in (run.checkpoints, run.best):
        shutil.rmtree(big, ignore_errors=True)
    return scores
