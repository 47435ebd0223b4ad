"""`submit`: GLUE's leaderboard zip from a run and the official test files; or the check of one alone."""

from __future__ import annotations

from pathlib import Path

from mtdnn_ds.config.errors import ConfigError, DataError


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
    """Write the zip, or check the one that `check` names; returns the exit code. Collective under a launcher.

    Raises ConfigError and DataError with every problem.
    """
    if check is not None:
        others = {"run_dir": run_dir, "glue_dir": glue_dir, "output": output, "fill_missing": fill_missing}
        given = [f"--{name}" for name, value in others.items() if value]
        if given:
            raise ConfigError(f"--check: only looks at a zip; remove {', '.join(given)}")
        return _check(Path(check))

    if run_dir is None:
        raise ConfigError(
            "--run_dir: is missing: the run to predict with; or give --check FILE.zip to check a submission"
        )

    from mtdnn_ds import dist
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]

    from mtdnn_ds.export.submit import plan_submission, write_run_submission

    submission = plan_submission(
        run_dir, checkpoint, glue_dir=glue_dir, output=output, fill_missing=fill_missing
    )

    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.train.engine import start_distributed, stop_distributed

    device = start_distributed()
    with watching(submission.run.recipe.train.stall_timeout):
        write_run_submission(submission, device=device)
    stop_distributed()
    return 0


def _check(path: Path) -> int:
    from mtdnn_ds.export.check_submission import check_submission

    problems = check_submission(path)
    if problems:
        raise DataError(problems)
    print(f"{path}: can be handed in")
    return 0
