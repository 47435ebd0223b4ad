"""Trials: many small runs of one experiment, each an ordinary run folder that is trained once and keeps its
scores.

Not what they compare. A finished trial is a folder with trial.json; its checkpoints and weights are removed,
so that a hundred trials fit on a disk. An interrupted experiment goes on where it stopped: finished trials
are read, a begun one is resumed from its checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.files import replace_file
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.runs.setup import settings_dict
from mtdnn_ds.tasks.metrics import task_score
from mtdnn_ds.train.preflight.checks import CheckedRun
from mtdnn_ds.train.trainer import train

log = logging.getLogger(__name__)

RESULT = "trial.json"
Scores = dict[int, dict[str, float]]  # step -> task -> mean of its metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run of an experiment, checked before the first one starts."""

    name: str  # of its folder
    title: str  # in what is printed
    run: CheckedRun
    evaluate_after: Collection[int] = ()  # steps, beside the recipe's own


def run_trials(trials: Sequence[Trial], folder: Path) -> dict[str, Scores]:
    """Train every trial that is not finished yet; scores of all of them by name.

    Collective: all ranks must call this.
    """
    results: dict[str, Scores] = {}
    for number, trial in enumerate(trials, 1):
        own_folder = folder / trial.name
        scores = dist.on_main(partial(_finished_scores, trial, own_folder))
        how = "done before"
        if scores is None:
            begin = time.monotonic()
            _train(trial, own_folder)
            scores = dist.on_main(partial(_finish, trial, own_folder))
            how = f"{time.monotonic() - begin:.0f} s"

        results[trial.name] = scores
        last = ", ".join(f"{task} {score:.4f}" for task, score in scores[max(scores)].items())
        log.info(f"[{number}/{len(trials)}] {trial.title} ({how}): {last}")
    return results


def _train(trial: Trial, folder: Path) -> None:
    run = trial.run
    train(
        run.recipe, run.specs, run.deepspeed, output_dir=folder, resume="auto",
        evaluate_after=trial.evaluate_after, quiet=True,
    )  # fmt: skip


def _finished_scores(trial: Trial, folder: Path) -> Scores | None:
    """Of an earlier call.

    Raises CheckpointError if trial.json is damaged, or the trial was run with other settings.
    """
    file = folder / RESULT
    if not file.is_file():
        return None

    try:
        result = json.loads(file.read_bytes())
        scores = {int(step): dict(of_step) for step, of_step in result["scores"].items()}
        # Settings that the trial's version did not have yet count as their defaults.
        saved = Recipe.model_validate(result["recipe"])
        differing = _differing(settings_dict(saved), settings_dict(trial.run.recipe))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        damaged = f"{file}: is damaged; remove {folder}, so that the trial is run again"
        raise CheckpointError(damaged) from None

    if differing:
        advice = "was run with other settings; give another --output_dir, or remove this folder"
        raise CheckpointError([*differing, f"{folder}: {advice}"])
    return scores


def _differing(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    from mtdnn_ds.runs.state import flat

    before, now = flat(saved), flat(wanted)
    differing = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith("data.cache_dir"):
            differing.append(
                f"{key} was {before.get(key)!r} when the trial was run and is {now.get(key)!r} now"
            )
    return differing


def _finish(trial: Trial, folder: Path) -> Scores:
    """Write trial.json from the run's own log, then let go of what takes space."""
    run = RunFolder(folder)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    scores = {
        line["step"]: {task: task_score(metrics) for task, metrics in line["eval"].items()}
        for line in lines
        if "eval" in line
    }
    result = {"title": trial.title, "scores": scores, "recipe": settings_dict(trial.run.recipe)}
    replace_file(folder / RESULT, json.dumps(result, indent=1))

    for big in (run.checkpoints, run.best):
        shutil.rmtree(big, ignore_errors=True)
    return scores
