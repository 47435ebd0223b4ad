"""`submit`: GLUE's leaderboard zip from a run's heads and the official test files, checked before it is written; or the check alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError, DataError

BEST = "best"  # each task from its own best weights


def run(
    *,
    run_dir: str | None,
    checkpoint: str,
    glue_dir: str | None,
    output: str | None,
    fill_missing: bool,
    check: str | None,
    log_level: str,
) -> int:
    """Write the zip, or check the one that `check` names. Collective under a launcher. Raises ConfigError and DataError with every problem."""
    if check is not None:
        given = {
            "--run_dir": run_dir,
            "--glue_dir": glue_dir,
            "--output": output,
            "--fill_missing": fill_missing,
        }
        if unused := [name for name, value in given.items() if value]:
            raise ConfigError(f"--check: only looks at a zip; remove {', '.join(unused)}")
        return _check(Path(check))
    if run_dir is None:
        raise ConfigError(
            "--run_dir: is missing: the run to predict with; or give --check FILE.zip to check a submission"
        )
    return _submit(run_dir, checkpoint, glue_dir, output, fill_missing, log_level)


def _check(path: Path) -> int:
    from mtdnn_ds.export.check_submission import check_submission

    if problems := check_submission(path):
        raise DataError(problems)
    print(f"{path}: can be handed in")
    return 0


def _submit(
    run_dir: str,
    checkpoint: str,
    glue_dir: str | None,
    output: str | None,
    fill_missing: bool,
    log_level: str,
) -> int:
    from mtdnn_ds import dist
    from mtdnn_ds.export.check_submission import check_submission
    from mtdnn_ds.export.submission import (
        official_lines,
        recipe_for_tests,
        specs_with_tests,
        submission_contents,
        submission_parts,
        write_submission,
    )
    from mtdnn_ds.monitor.console import Progress, configure_logging
    from mtdnn_ds.runs.load import best_folders, find_run, load_run
    from mtdnn_ds.runs.model_folder import default_checkpoint, is_exported

    path = Path(output) if output else Path(run_dir) / "glue_submission.zip"
    if path.exists():
        raise ConfigError(f"--output {path}: is there already; remove it, or give another --output")
    if is_exported(run_dir):
        raise ConfigError(
            f"--run_dir {run_dir}: is an exported folder; give the run folder it was made of, which has every task's best weights"
        )
    found = find_run(
        run_dir,
        default_checkpoint(run_dir) if checkpoint == BEST else checkpoint,
        overrides=_where_data_are(run_dir, glue_dir),
    )
    tests = glue_dir or found.recipe.data.glue_dir
    parts = submission_parts(found.specs, tests, fill_missing=fill_missing)
    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]

    from mtdnn_ds.export.submission import predicted_values
    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.runs.setup import prepare_run_data
    from mtdnn_ds.train.engine import start_distributed, stop_distributed

    device = start_distributed()
    say = Progress(num_steps=0, is_main=dist.is_main()).say
    with watching(found.recipe.train.stall_timeout):
        lines = dist.on_main(lambda: official_lines(parts))
        specs = specs_with_tests(found.specs, parts)
        recipe = recipe_for_tests(found.recipe)
        data = prepare_run_data(recipe, specs, say, splits={name for spec in specs for name in spec.splits})
        tasks = [spec.name for spec in specs if spec.splits]
        weights = (
            best_folders(found.folder, tasks, found.weights_folder)
            if checkpoint == BEST
            else {found.weights_folder: tasks}
        )
        for folder, of_folder in weights.items():
            together = " (best in one step)" if folder.name in of_folder and len(of_folder) > 1 else ""
            say(f"{', '.join(of_folder)}: predicted with {folder}{together}")
        loaded = load_run(replace(found, recipe=recipe), device=device)
        values = predicted_values(loaded, data, weights)

        def write() -> None:
            contents = submission_contents(parts, data, values, lines, say)
            if problems := check_submission(contents):
                raise DataError([f"not written: {problem}" for problem in problems])
            write_submission(path, contents)
            say(f"written: {path}")

        dist.on_main(write)
    stop_distributed()
    return 0


def _where_data_are(run_dir: str, glue_dir: str | None) -> dict[str, str]:
    """`--glue_dir` in place of the run's own folder where that is no longer there."""
    from mtdnn_ds.config.load import load_recipe

    recipe = Path(run_dir) / "recipe.yaml"
    if glue_dir is None or not recipe.is_file():
        return {}
    own = load_recipe(str(recipe), {}).data.glue_dir
    return {} if own is None or Path(own).expanduser().is_dir() else {"data.glue_dir": glue_dir}
