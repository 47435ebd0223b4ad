"""A run's GLUE submission from its first check to the written zip. What stands in the files: submission.py.

Nothing heavy is read before the run, the test files and the place of the zip are known to be right.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds import dist
from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.export.check_submission import check_submission
from mtdnn_ds.export.submission import (
    Parts,
    official_lines,
    predicted_values,
    recipe_for_tests,
    specs_with_tests,
    submission_contents,
    submission_parts,
    write_submission,
)
from mtdnn_ds.runs.load import FinishedRun, best_folders, find_run, load_run
from mtdnn_ds.runs.model_folder import default_checkpoint, is_exported
from mtdnn_ds.runs.setup import prepare_run_data

if TYPE_CHECKING:
    import torch

BEST = "best"  # each task from its own best weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A submission that can be made: which run answers which files, and where the zip goes."""

    run: FinishedRun
    parts: Parts
    path: Path
    each_best: bool  # each task from its own best weights, else all from the run's `weights_folder`


def plan_submission(
    run_dir: str, checkpoint: str, *, glue_dir: str | None, output: str | None, fill_missing: bool
) -> Submission:
    """Everything about a submission that is known before a prediction is made. Raises ConfigError."""
    path = Path(output) if output else Path(run_dir) / "glue_submission.zip"
    if path.exists():
        raise ConfigError(f"--output {path}: is there already; remove it, or give another --output")
    if is_exported(run_dir):
        raise ConfigError(
            f"--run_dir {run_dir}: is an exported folder; give the run folder it was made of, "
            "which has every task's best weights"
        )

    name = default_checkpoint(run_dir) if checkpoint == BEST else checkpoint
    run = find_run(run_dir, name, overrides=_where_data_are(run_dir, glue_dir))
    parts = submission_parts(run.specs, glue_dir or run.recipe.data.glue_dir, fill_missing=fill_missing)
    return Submission(run=run, parts=parts, path=path, each_best=checkpoint == BEST)


def write_run_submission(submission: Submission, *, device: torch.device) -> None:
    """Predict every file of a submission, check it as the leaderboard would, and write the zip on rank 0.

    Collective: all ranks must call this. Raises DataError with every problem; nothing is then written.
    """
    run, parts = submission.run, submission.parts
    lines = dist.on_main(lambda: official_lines(parts))
    specs = specs_with_tests(run.specs, parts)
    recipe = recipe_for_tests(run.recipe)
    splits = {name for spec in specs for name in spec.splits}
    data = prepare_run_data(recipe, specs, splits=splits)

    tasks = [spec.name for spec in specs if spec.splits]
    weights = {run.weights_folder: tasks}
    if submission.each_best:
        weights = best_folders(run.folder, tasks, run.weights_folder)
    for folder, of_folder in weights.items():
        is_shared = folder.name in of_folder and len(of_folder) > 1
        together = " (best in one step)" if is_shared else ""
        log.info(f"{', '.join(of_folder)}: predicted with {folder}{together}")

    loaded = load_run(replace(run, recipe=recipe), device=device)
    values = predicted_values(loaded, data, weights)

    def write() -> None:
        contents = submission_contents(parts, data, values, lines)
        problems = check_submission(contents)
        if problems:
            raise DataError([f"not written: {problem}" for problem in problems])
        write_submission(submission.path, contents)
        log.info(f"written: {submission.path}")

    dist.on_main(write)


def _where_data_are(run_dir: str, glue_dir: str | None) -> dict[str, str]:
    """`--glue_dir` in place of the run's own folder where that is no longer there."""
    recipe = Path(run_dir) / "recipe.yaml"
    if glue_dir is None or not recipe.is_file():
        return {}

    own = load_recipe(str(recipe), {}).data.glue_dir
    if own is None or Path(own).expanduser().is_dir():
        return {}
    return {"data.glue_dir": glue_dir}
