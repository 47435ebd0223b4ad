"""A run's best weights on its development rows, task by task. What the answers mean is in task_answers.py.

Classifications and scores of large dev sets: rows at equal distances, at most as many as asked for.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtdnn_ds.data.examples import Examples
from mtdnn_ds.data.examples.sampled import SampledExamples
from mtdnn_ds.report.task_answers import TaskAnswers, task_answers
from mtdnn_ds.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from mtdnn_ds.runs.load import FinishedRun

log = logging.getLogger(__name__)

# Kinds whose examples are rows, so that some of them can stand for all.
_BY_ROW = ("classification", "regression")


def answers_of_run(found: FinishedRun, *, max_rows: int) -> dict[str, TaskAnswers]:
    """Of every task with a dev split, from its own best weights.

    Raises UserErrors if data or weights are not there.
    """
    import torch

    from mtdnn_ds.checkpoint.weights import read_weights
    from mtdnn_ds.runs.evaluate import predict
    from mtdnn_ds.runs.load import best_folders, load_run, load_weights
    from mtdnn_ds.runs.setup import prepare_run_data

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first_splits = {split for spec in found.specs for split in spec.dev_splits[:1]}
    data = prepare_run_data(found.recipe, found.specs, splits={"dev", *first_splits})
    loaded = load_run(found, device=device)

    # Of each task its first dev split, or some of it.
    ids = {spec.name: index for index, spec in enumerate(data.specs) if spec.dev_splits}
    splits = {name: data.specs[index].dev_splits[0] for name, index in ids.items()}
    sets = {
        name: _some(data.specs[index], data.examples[name][splits[name]], max_rows)
        for name, index in ids.items()
    }
    asked = replace(data, examples={name: {splits[name]: sets[name]} for name in ids})

    answers: dict[str, TaskAnswers] = {}
    for folder, tasks in best_folders(found.folder, list(ids), found.weights_folder).items():
        load_weights(loaded.model, read_weights(folder), folder)
        log.info(f"predicting dev rows of {', '.join(tasks)} with {folder}")
        wanted = [(ids[name], splits[name]) for name in tasks]
        outputs = predict(loaded.model, wanted, asked, loaded.settings, device)

        for name, of_task in zip(tasks, outputs, strict=True):
            found_answers = task_answers(data.specs[ids[name]], sets[name], of_task)
            weights = _weights_name(found, folder, name)
            num_rows = sets[name].split.num_rows
            answers[name] = replace(found_answers, weights=weights, num_rows=num_rows)
    return {name: answers[name] for name in ids}


def _some(spec: TaskSpec, examples: Examples, most: int) -> Examples:
    """The examples, or rows of them at equal distances."""
    if spec.kind not in _BY_ROW or spec.custom is not None or examples.num_examples <= most:
        return examples

    rows = np.linspace(0, examples.num_examples - 1, most).round().astype(np.int64)
    return SampledExamples(examples, rows)


def _weights_name(found: FinishedRun, folder: Path, task: str) -> str:
    """The folder of the weights within the run's: best/TASK, even where several tasks share their files."""
    own = found.folder.best / task
    if own.is_dir():
        folder = own
    return str(folder.relative_to(found.folder.path))
