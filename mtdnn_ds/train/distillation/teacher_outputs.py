"""Distillation: every teacher's outputs on the training examples, computed once and stored; and data with their mean beside the labels.

A teacher may have another encoder, tokenizer and max_length: it reads the same rows of the same sources in its own way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
from mtdnn_ds.data.examples import Examples, TermOutputs
from mtdnn_ds.data.examples.distilled import DistilledExamples
from mtdnn_ds.data.soft_targets import (
    RowsByExample,
    read_outputs,
    soft_file,
    soft_key,
    soft_targets,
    write_outputs,
)
from mtdnn_ds.runs.evaluate import predict
from mtdnn_ds.runs.load import LoadedRun, load_run
from mtdnn_ds.runs.setup import RunData, prepare_run_data
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teachers import Teacher, answer_of, find_teachers

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """One teacher's reading of the learner's tasks, and the key under which its outputs on each are stored."""

    teacher: Teacher
    data: RunData  # the taught tasks, in the teacher's tokens
    keys: Mapping[str, str]  # task -> key


def find_lessons(recipe: Recipe, data: RunData, say: Say) -> tuple[Lesson, ...]:
    """What the recipe's teachers can teach the run with this data; nothing is computed. Collective: all ranks must call this."""
    lessons = tuple(_lesson(teacher, recipe, data, say) for teacher in find_teachers(recipe, data.specs))
    untaught = [spec.name for spec in data.specs if not any(spec.name in lesson.keys for lesson in lessons)]
    if lessons and untaught:
        say(
            f"distillation: {', '.join(untaught)} {'learns' if len(untaught) == 1 else 'learn'} from labels alone"
        )
    return lessons


def fingerprints(lessons: Sequence[Lesson]) -> dict[str, str]:
    """Task -> the keys of all that is taught about it, in whatever order the teachers are named."""
    tasks = dict.fromkeys(task for lesson in lessons for task in lesson.keys)
    return {
        task: " ".join(sorted(lesson.keys[task][:16] for lesson in lessons if task in lesson.keys))
        for task in tasks
    }


def taught(
    recipe: Recipe, data: RunData, lessons: Sequence[Lesson], *, device: torch.device, say: Say
) -> RunData:
    """The data whose training examples carry the soft targets. What is not in the cache is computed and stored.

    Collective: all ranks must call this.
    """
    stored: dict[str, list[tuple[str, RowsByExample]]] = {}
    for lesson in lessons:
        for task, outputs in _stored_outputs(lesson, recipe.data.cache_dir, device=device, say=say).items():
            stored.setdefault(task, []).append((lesson.keys[task], outputs))
    examples = dict(data.examples)
    for spec in data.specs:
        if spec.name in stored:
            in_order = [
                outputs for _, outputs in sorted(stored[spec.name], key=lambda pair: pair[0])
            ]  # the mean's rounding depends on it
            soft = mean_answer(spec, in_order, recipe.distillation.temperature)
            examples[spec.name] = {
                **examples[spec.name],
                "train": DistilledExamples(examples[spec.name]["train"], soft),
            }
    return replace(data, examples=examples)


def mean_answer(spec: TaskSpec, outputs: Sequence[RowsByExample], temperature: float) -> RowsByExample:
    """Soft targets of a task that find_teachers has let through."""
    answer = answer_of(spec)
    assert answer is not None
    return soft_targets(answer, outputs, temperature)


def answers(loaded: LoadedRun, data: RunData, wanted: Sequence[tuple[str, str]]) -> list[TermOutputs]:
    """A teacher's outputs on (task, split), in the order of the examples. Collective: all ranks must call this."""
    ids = {spec.name: index for index, spec in enumerate(loaded.specs)}
    outputs = predict(
        loaded.model,
        [(ids[task], split) for task, split in wanted],
        loaded.specs,
        loaded.layout,
        data.examples,
        loaded.settings,
        loaded.device,
    )
    return [of_only_term for (of_only_term,) in outputs]


def _lesson(teacher: Teacher, recipe: Recipe, data: RunData, say: Say) -> Lesson:
    run = teacher.found
    theirs = prepare_run_data(recipe.model_copy(update={"encoder": run.recipe.encoder}), teacher.specs, say)
    weights = dist.on_main(lambda: weights_sha256(read_weights(run.weights_folder)))
    keys = {}
    for spec in teacher.specs:
        ours, read = data.examples[spec.name]["train"], theirs.examples[spec.name]["train"]
        _check_rows(teacher, spec, ours, read)
        keys[spec.name] = soft_key(_identity(teacher, spec, weights, read))
    return Lesson(teacher=teacher, data=theirs, keys=keys)


def _check_rows(teacher: Teacher, spec: TaskSpec, ours: Examples, theirs: Examples) -> None:
    where = f"distillation.teachers: {teacher.found.folder.path}: task '{spec.name}'"
    without = "leave the task out of distillation.tasks"
    if _source_rows(ours) != _source_rows(theirs):
        raise ConfigError(
            f"{where} makes other examples of its rows there ({dict(spec.options)}); give both the same settings, or {without}"
        )
    if spec.kind == "token_classification" and ours.split.fingerprint != theirs.split.fingerprint:
        raise ConfigError(
            f"{where}: another tokenizer may leave out other words; take a teacher with this run's tokenizer, or {without}"
        )


def _source_rows(examples: Examples) -> list[int]:
    return [examples.source_row(index) for index in range(examples.num_examples)]


def _identity(teacher: Teacher, spec: TaskSpec, weights: str, examples: Examples) -> dict[str, Any]:
    """Everything that decides a teacher's outputs on the training examples of a task."""
    encoder = teacher.found.recipe.encoder
    config = Path(resolve_encoder_path(encoder.path)) / "config.json"
    return {
        "weights": weights,
        "tasks": [
            [own.name, own.kind, list(own.labels), own.head, own.objective] for own in teacher.found.specs
        ],  # their columns
        "encoder": config.read_text(encoding="utf-8") if config.is_file() else encoder.path,
        "task": spec.name,
        "options": {name: str(value) for name, value in spec.options.items()},
        "rows": examples.split.fingerprint,  # the sources' contents, the tokenizer, a sample
        "max_length": encoder.max_length,
    }


def _stored_outputs(
    lesson: Lesson, cache_dir: str, *, device: torch.device, say: Say
) -> dict[str, RowsByExample]:
    files = {task: soft_file(cache_dir, task, key) for task, key in lesson.keys.items()}
    found = {task: read_outputs(file, say) for task, file in files.items()}
    lacking = {
        task
        for tasks in dist.gather([task for task, outputs in found.items() if outputs is None])
        for task in tasks
    }
    missing = [task for task in files if task in lacking]
    if missing:
        computed = _computed_outputs(lesson, missing, device=device, say=say)
        found.update(computed)

        def store() -> None:
            if dist.local_rank() == 0:  # once for each node, which may see no other's disk
                for task, outputs in computed.items():
                    write_outputs(files[task], outputs)

        dist.on_all(store)
    return {task: outputs for task, outputs in found.items() if outputs is not None}


def _computed_outputs(
    lesson: Lesson, tasks: Sequence[str], *, device: torch.device, say: Say
) -> dict[str, RowsByExample]:
    weights_folder = lesson.teacher.found.weights_folder
    say(f"{weights_folder}: answering the training examples of {', '.join(tasks)} ...")
    begin = time.perf_counter()
    outputs = answers(
        load_run(lesson.teacher.found, device=device), lesson.data, [(task, "train") for task in tasks]
    )
    num_examples = sum(len(of_task.offsets) - 1 for of_task in outputs)
    for task, of_task in zip(tasks, outputs, strict=True):
        if not np.isfinite(of_task.values).all():
            raise CheckpointError(
                f"{weights_folder}: its outputs for {task} are not finite; take another distillation.checkpoint"
            )
    say(f"{weights_folder}: answered {num_examples:,} examples in {time.perf_counter() - begin:.1f} s")
    return {
        task: RowsByExample(values=of_task.values, offsets=of_task.offsets)
        for task, of_task in zip(tasks, outputs, strict=True)
    }
