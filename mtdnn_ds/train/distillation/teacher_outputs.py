"""What teachers answer on training examples: computed once, stored, put beside the labels. Trains nothing.

A teacher may have another encoder, tokenizer and max_length: it reads the same rows of the same sources in
its own way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.weights import read_weights, weights_sha256
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.cache.soft_targets import (
    RowsByExample,
    read_outputs,
    soft_file,
    soft_key,
    soft_targets,
    write_outputs,
)
from mtdnn_ds.data.examples import Examples, TermOutputs
from mtdnn_ds.data.examples.distilled import DistilledExamples
from mtdnn_ds.runs.evaluate import predict
from mtdnn_ds.runs.load import LoadedRun, load_run
from mtdnn_ds.runs.setup import RunData, prepare_run_data
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teachers import Teacher, answer_of, find_teachers

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOutputs:
    """One teacher's reading of the learner's tasks, and the keys under which its outputs are stored."""

    teacher: Teacher
    data: RunData  # the tasks that it teaches, in its own tokens
    keys: Mapping[str, str]  # task -> key


def find_teacher_outputs(recipe: Recipe, data: RunData) -> tuple[TeacherOutputs, ...]:
    """What the recipe's teachers can answer for the run with this data; computes nothing.

    Collective: all ranks must call this.
    """
    found = tuple(_outputs_of(teacher, recipe, data) for teacher in find_teachers(recipe, data.specs))

    without = [spec.name for spec in data.specs if not any(spec.name in one.keys for one in found)]
    if found and without:
        verb = "learns" if len(without) == 1 else "learn"
        log.info(f"distillation: {', '.join(without)} {verb} from labels alone")
    return found


def fingerprints(teacher_outputs: Sequence[TeacherOutputs]) -> dict[str, str]:
    """Task -> the keys of all that teachers answer for it, in whatever order the teachers are named."""
    tasks = dict.fromkeys(task for one in teacher_outputs for task in one.keys)
    return {
        task: " ".join(sorted(one.keys[task][:16] for one in teacher_outputs if task in one.keys))
        for task in tasks
    }


def with_soft_targets(
    recipe: Recipe, data: RunData, teacher_outputs: Sequence[TeacherOutputs], *, device: torch.device
) -> RunData:
    """The data whose training examples carry the soft targets.

    What is not in the cache is computed and stored. Collective: all ranks must call this.
    """
    by_task: dict[str, list[tuple[str, RowsByExample]]] = {}  # task -> key and outputs of each teacher
    for one in teacher_outputs:
        for task, outputs in _stored_outputs(one, recipe.data.cache_dir, device=device).items():
            by_task.setdefault(task, []).append((one.keys[task], outputs))

    examples = dict(data.examples)
    for spec in data.specs:
        if spec.name not in by_task:
            continue
        by_key = sorted(by_task[spec.name], key=lambda pair: pair[0])  # the mean's rounding depends on it
        in_order = [outputs for _, outputs in by_key]
        soft = mean_answer(spec, in_order, recipe.distillation.temperature)
        train = DistilledExamples(examples[spec.name]["train"], soft)
        examples[spec.name] = {**examples[spec.name], "train": train}
    return replace(data, examples=examples)


def mean_answer(spec: TaskSpec, outputs: Sequence[RowsByExample], temperature: float) -> RowsByExample:
    """Soft targets of a task that find_teachers has let through."""
    answer = answer_of(spec)
    assert answer is not None
    return soft_targets(answer, outputs, temperature)


def answers(loaded: LoadedRun, data: RunData, wanted: Sequence[tuple[str, str]]) -> list[TermOutputs]:
    """A teacher's outputs on (task, split), in the order of the examples.

    Collective: all ranks must call this.
    """
    ids = {spec.name: index for index, spec in enumerate(loaded.specs)}
    splits = [(ids[task], split) for task, split in wanted]
    of_run = RunData(specs=loaded.specs, layout=loaded.layout, examples=data.examples)
    outputs = predict(loaded.model, splits, of_run, loaded.settings, loaded.device)
    return [of_only_term for (of_only_term,) in outputs]


def _outputs_of(teacher: Teacher, recipe: Recipe, data: RunData) -> TeacherOutputs:
    run = teacher.run
    own_encoder = recipe.model_copy(update={"encoder": run.recipe.encoder})
    theirs = prepare_run_data(own_encoder, teacher.specs, leaks=data.leaks)
    weights = dist.on_main(lambda: weights_sha256(read_weights(run.weights_folder)))

    keys = {}
    for spec in teacher.specs:
        ours, read = data.examples[spec.name]["train"], theirs.examples[spec.name]["train"]
        _check_rows(teacher, spec, ours, read)
        keys[spec.name] = soft_key(_identity(teacher, spec, weights, read))
    return TeacherOutputs(teacher=teacher, data=theirs, keys=keys)


def _check_rows(teacher: Teacher, spec: TaskSpec, ours: Examples, theirs: Examples) -> None:
    where = f"distillation.teachers: {teacher.run.folder.path}: task '{spec.name}'"
    without = "leave the task out of distillation.tasks"
    if _source_rows(ours) != _source_rows(theirs):
        raise ConfigError(
            f"{where} makes other examples of its rows there ({dict(spec.options)}); "
            f"give both the same settings, or {without}"
        )
    if spec.kind == "token_classification" and ours.split.fingerprint != theirs.split.fingerprint:
        raise ConfigError(
            f"{where}: another tokenizer may leave out other words; "
            f"take a teacher with this run's tokenizer, or {without}"
        )


def _source_rows(examples: Examples) -> list[int]:
    return [examples.source_row(index) for index in range(examples.num_examples)]


def _identity(teacher: Teacher, spec: TaskSpec, weights: str, examples: Examples) -> dict[str, Any]:
    """Everything that decides a teacher's outputs on the training examples of a task."""
    encoder = teacher.run.recipe.encoder
    config = Path(resolve_encoder_path(encoder.path)) / "config.json"
    encoder_config = encoder.path
    if config.is_file():
        encoder_config = config.read_text(encoding="utf-8")

    columns = [[own.name, own.kind, list(own.labels), own.head, own.objective] for own in teacher.run.specs]
    return {
        "weights": weights,
        "tasks": columns,
        "encoder": encoder_config,
        "task": spec.name,
        "options": {name: str(value) for name, value in spec.options.items()},
        "rows": examples.split.fingerprint,  # the sources' contents, the tokenizer, a sample
        "max_length": encoder.max_length,
    }


def _stored_outputs(
    teacher_outputs: TeacherOutputs, cache_dir: str, *, device: torch.device
) -> dict[str, RowsByExample]:
    """Task -> what the teacher answers, from the cache; what any rank lacks there is computed by all."""
    files = {task: soft_file(cache_dir, task, key) for task, key in teacher_outputs.keys.items()}
    stored: dict[str, RowsByExample] = {}
    for task, file in files.items():
        outputs = read_outputs(file)
        if outputs is not None:
            stored[task] = outputs

    missing_anywhere = set().union(*dist.gather([task for task in files if task not in stored]))
    missing = [task for task in files if task in missing_anywhere]
    if not missing:
        return stored

    computed = _computed_outputs(teacher_outputs, missing, device=device)

    def store() -> None:
        if dist.local_rank() == 0:  # once for each node, which may see no other's disk
            for task, outputs in computed.items():
                write_outputs(files[task], outputs)

    dist.on_all(store)
    return {task: {**stored, **computed}[task] for task in files}


def _computed_outputs(
    teacher_outputs: TeacherOutputs, tasks: Sequence[str], *, device: torch.device
) -> dict[str, RowsByExample]:
    run = teacher_outputs.teacher.run
    log.info(f"{run.weights_folder}: answering the training examples of {', '.join(tasks)} ...")
    begin = time.perf_counter()
    loaded = load_run(run, device=device)
    outputs = answers(loaded, teacher_outputs.data, [(task, "train") for task in tasks])

    for task, of_task in zip(tasks, outputs, strict=True):
        if not np.isfinite(of_task.values).all():
            raise CheckpointError(
                f"{run.weights_folder}: its outputs for {task} are not finite; "
                "take another distillation.checkpoint"
            )

    num_examples = sum(len(of_task.offsets) - 1 for of_task in outputs)
    seconds = time.perf_counter() - begin
    log.info(f"{run.weights_folder}: answered {num_examples:,} examples in {seconds:.1f} s")
    return {
        task: RowsByExample(values=of_task.values, offsets=of_task.offsets)
        for task, of_task in zip(tasks, outputs, strict=True)
    }
