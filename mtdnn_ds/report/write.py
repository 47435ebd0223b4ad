"""A report from run folders to a file: reads the runs, predicts their development rows, writes the page.

Draws nothing itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtdnn_ds.config.errors import UserError
from mtdnn_ds.report.answers_section import Answers
from mtdnn_ds.report.page import write_page
from mtdnn_ds.report.predictions import answers_of_run
from mtdnn_ds.report.runs import RunRecord, read_runs
from mtdnn_ds.report.sections import report_page
from mtdnn_ds.report.task_answers import TaskAnswers
from mtdnn_ds.runs.load import find_run
from mtdnn_ds.runs.model_folder import default_checkpoint

log = logging.getLogger(__name__)

LEFT_OUT = "left out (--no_predictions): confusions and worst errors"


def write_report(folders: Sequence[str], output: Path, *, max_rows: int | None) -> None:
    """One page on all runs. `max_rows`: most dev rows that are predicted of a task; None predicts nothing.

    A run whose data or weights are not there has no predictions, and the page says why. Raises ConfigError if
    a folder is no run or `output` cannot be written.
    """
    runs = read_runs(folders)
    answers: Answers = {run.name: _answers(run, max_rows) for run in runs}
    write_page(output, report_page(runs, answers))


def _answers(run: RunRecord, max_rows: int | None) -> Mapping[str, TaskAnswers] | str:
    """What the run's best weights answer, or why there is nothing."""
    if max_rows is None:
        return LEFT_OUT

    folder = str(run.folder.path)
    try:
        return answers_of_run(find_run(folder, default_checkpoint(folder)), max_rows=max_rows)
    except UserError as error:
        why = "; ".join(error.problems)
        log.info(f"{run.name}: no confusions and worst errors: {why}")
        return f"No confusions and worst errors: {why}"
