"""A GLUE submission of a run: what its heads answer on the official test files. Not its check.

Which tasks and files there are is in tasks/glue.py, what a submission must look like in
export/check_submission.py.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtdnn_ds.checkpoint.weights import read_weights
from mtdnn_ds.config.errors import ConfigError, DataError, TrainingError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.sources.names import place_of, row_word
from mtdnn_ds.data.sources.tables import iterate_rows
from mtdnn_ds.export.check_submission import HEADER
from mtdnn_ds.runs.load import LoadedRun, load_weights
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.glue import GLUE_FILES, SCORE_RANGE, GlueFile
from mtdnn_ds.tasks.spec import Source, TaskSpec

if TYPE_CHECKING:
    from mtdnn_ds.runs.setup import RunData

log = logging.getLogger(__name__)

_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip: the same predictions make the same bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What each file of a submission will hold."""

    predicted: Mapping[str, Source]  # file -> its test set
    filled: Mapping[str, str]  # file -> why it cannot be predicted


def submission_parts(specs: Sequence[TaskSpec], glue_dir: str | None, *, fill_missing: bool) -> Parts:
    """Which files the run's tasks can predict.

    Raises ConfigError naming every other one, unless those are to be filled.
    """
    trained = {spec.name for spec in specs}
    if not trained & {file.task for file in GLUE_FILES}:
        raise ConfigError(
            "none of this run's tasks is one of GLUE's (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli); "
            "there is nothing to submit"
        )

    predicted: dict[str, Source] = {}
    filled: dict[str, str] = {}
    for file in GLUE_FILES:
        source = _test_source(file, glue_dir)
        if file.task not in trained:
            filled[file.name] = f"{file.task} is not a task of this run"
        elif glue_dir is not None and not Path(source.path).is_file():
            filled[file.name] = f"its test file {source.path} is not there"
        else:
            predicted[file.name] = source

    if filled and not fill_missing:
        raise ConfigError(
            [
                *(f"{name}: {why}" for name, why in filled.items()),
                "the leaderboard takes all files only; add --fill_missing to fill these with "
                "the most frequent label, or --glue_dir with their test files",
            ]
        )
    return Parts(predicted=predicted, filled=filled)


def _test_source(file: GlueFile, glue_dir: str | None) -> Source:
    name, split = file.task, file.split
    if split == "ax":  # a task without rows to train on
        name, split = "ax", "test"
    task = BUILTIN_TASKS[name]
    if glue_dir is None:
        return task.remote[split]
    path = Path(glue_dir).expanduser() / task.folder[split].path
    return replace(task.folder[split], path=str(path))


def specs_with_tests(specs: Sequence[TaskSpec], parts: Parts) -> tuple[TaskSpec, ...]:
    """The run's tasks with the test sets to predict as their only splits; AX is one of MNLI's."""
    sources: dict[str, dict[str, Source]] = {spec.name: {} for spec in specs}
    for file in GLUE_FILES:
        if file.name in parts.predicted:
            sources[file.task][file.split] = parts.predicted[file.name]
    return tuple(replace(spec, splits=sources[spec.name]) for spec in specs)


def recipe_for_tests(recipe: Recipe) -> Recipe:
    """The recipe as test sets are read with it.

    A row without a usable text is not refused, since it needs an answer all the same.
    """
    room = max(recipe.batch.max_tokens_per_micro_batch, recipe.encoder.max_length)
    batch = recipe.batch.model_copy(update={"max_tokens_per_micro_batch": room})
    data = recipe.data.model_copy(update={"on_bad_row": "skip"})
    return recipe.model_copy(update={"batch": batch, "data": data})


def official_lines(parts: Parts) -> dict[str, dict[int, int]]:
    """{file: {line or row number of its test set: index}}.

    Raises DataError if any test set has not the official rows in their order. The index is what the test
    set's own index column says, which must count from 0.
    """
    problems: list[str] = []
    lines: dict[str, dict[int, int]] = {}
    for file in GLUE_FILES:
        if file.name not in parts.predicted:
            continue

        source = parts.predicted[file.name]
        column = _index_column(file, source)
        own = lines.setdefault(file.name, {})
        moved = None
        for index, (number, cells) in enumerate(iterate_rows(replace(source, text_columns=(column,)))):
            if isinstance(cells, tuple) and str(cells[0]).strip() != str(index):
                moved = moved or f"{row_word(source)} {number}: its {column} is {cells[0]!r}, not {index}"
            own[number] = index

        place = place_of(source)
        if moved:
            problems.append(f"{place}: {moved}; give the official test file, in its order")
        if len(own) != file.num_rows:
            problems.append(
                f"{place}: has {len(own):,} rows, the official test set has {file.num_rows:,}; "
                "give that one with --glue_dir"
            )
    if problems:
        raise DataError(problems)
    return lines


def _index_column(file: GlueFile, source: Source) -> str:
    """The column that counts the rows of a test set."""
    if source.format == "hub":
        return "idx"
    return "id" if file.task == "qqp" else "index"


def predicted_values(
    loaded: LoadedRun, data: RunData, weights: Mapping[Path, Sequence[str]]
) -> dict[str, np.ndarray]:
    """{file: class id or score of each readable row}. `weights`: folder -> the tasks to predict with it.

    Collective: all ranks must call this. Leaves the model with the weights of the last folder.
    """
    from mtdnn_ds.runs.evaluate import predict

    task_ids = {spec.name: index for index, spec in enumerate(data.specs)}
    values: dict[str, np.ndarray] = {}
    for folder, tasks in weights.items():
        files = [file for file in GLUE_FILES if file.task in tasks and file.split in data.examples[file.task]]
        if not files:
            continue

        load_weights(loaded.model, read_weights(folder), folder)
        wanted = [(task_ids[file.task], file.split) for file in files]
        outputs = predict(loaded.model, wanted, data, loaded.settings, loaded.device)
        for file, of_file in zip(files, outputs, strict=True):
            if not all(np.isfinite(term.values).all() for term in of_file):
                raise TrainingError(
                    f"{file.name}: predictions of {folder} are not finite: the model has diverged; "
                    "give another --checkpoint"
                )
            decoded = data.examples[file.task][file.split].decode(of_file)
            values[file.name] = np.asarray(decoded.predictions)
    return values


def submission_contents(
    parts: Parts,
    data: RunData,
    values: Mapping[str, np.ndarray],
    lines: Mapping[str, Mapping[int, int]],
) -> dict[str, bytes]:
    """{file name: contents} of all files; says what is filled. `lines`: what official_lines found."""
    contents = {}
    for file in GLUE_FILES:
        if file.name in parts.filled:
            log.info(f"{file.name}: filled with {file.most_frequent}: {parts.filled[file.name]}")
            answers = [file.most_frequent] * file.num_rows
        else:
            split = data.examples[file.task][file.split].split
            answers = _answers(file, split, values[file.name], lines[file.name])
            if split.skipped:
                why = ", ".join(f"{count:,} with {reason}" for reason, count in sorted(split.skipped.items()))
                log.info(f"{file.name}: rows that cannot be read are filled with {file.most_frequent}: {why}")

        rows = [f"{index}\t{answer}" for index, answer in enumerate(answers)]
        contents[file.name] = "".join(f"{line}\n" for line in (HEADER, *rows)).encode()
    return contents


def _answers(
    file: GlueFile, split: PreparedSplit, values: np.ndarray, index_of: Mapping[int, int]
) -> list[str]:
    """One answer for each row of the test set; the most frequent one for rows that cannot be read."""
    answers = [file.most_frequent] * len(index_of)
    for number, value in zip(split.source_rows.tolist(), values.tolist(), strict=True):
        answers[index_of[number]] = _word(file, value)
    return answers


def _word(file: GlueFile, value: float) -> str:
    if file.words:
        return file.words[int(value)]
    low, high = SCORE_RANGE
    return np.format_float_positional(np.float32(np.clip(value, low, high)), trim="0")


def write_submission(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write the zip aside, then rename it. Rank 0 only.

    Raises ConfigError if `path` is there already or cannot be written.
    """
    if path.exists():
        raise ConfigError(f"--output {path}: is there already; remove it, or give another --output")

    aside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(aside, "w") as archive:
            for name, content in contents.items():
                item = zipfile.ZipInfo(name, date_time=_EPOCH)
                item.external_attr = 0o644 << 16
                archive.writestr(item, content, compress_type=zipfile.ZIP_DEFLATED)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ConfigError(
            f"--output {path}: cannot be written ({error.strerror}); give another --output"
        ) from error
