"""`report`: one HTML page on one or several runs. Trains nothing; predicts dev rows where data and weights are at hand."""

from __future__ import annotations

from pathlib import Path

from mtdnn_ds.config.errors import ConfigError, UserError


def run(*, run_dir: tuple[str, ...], output: str, no_predictions: bool, max_rows: str, log_level: str) -> int:
    """Write the page to `output`. Raises ConfigError if a folder is no run or the page is there already."""
    if not max_rows.isdecimal() or int(max_rows) < 1:
        raise ConfigError(f"--max_rows {max_rows}: must be a whole number, at least 1")
    path = Path(output)
    if path.exists():
        raise ConfigError(f"--output {path}: is there already; remove it, or give another --output")

    from mtdnn_ds.monitor.console import configure_logging
    from mtdnn_ds.report.page import write_page
    from mtdnn_ds.report.runs import read_runs
    from mtdnn_ds.report.sections import Answers, report_page

    configure_logging(log_level, 0)  # type: ignore[arg-type]
    records = read_runs(run_dir)
    answers: dict[str, object] = {}
    for record in records:
        if no_predictions:
            answers[record.name] = "left out (--no_predictions): confusions and worst errors"
            continue
        try:
            answers[record.name] = _answers(str(record.folder.path), int(max_rows))
        except UserError as error:
            why = "; ".join(error.problems)
            print(f"{record.name}: no confusions and worst errors: {why}")
            answers[record.name] = f"No confusions and worst errors: {why}"
    typed: Answers = answers  # type: ignore[assignment]
    write_page(path, report_page(records, typed))
    print(f"written: {path}")
    return 0


def _answers(folder: str, max_rows: int) -> object:
    from mtdnn_ds.report.predictions import answers_of_run
    from mtdnn_ds.runs.load import find_run
    from mtdnn_ds.runs.model_folder import default_checkpoint

    return answers_of_run(find_run(folder, default_checkpoint(folder)), print, max_rows=max_rows)
