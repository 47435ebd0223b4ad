"""How good teachers are on the learner's dev splits, one by one and together. Stores nothing, trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from mtdnn_ds import dist
from mtdnn_ds.data.examples import TermOutputs
from mtdnn_ds.data.features import ragged_ranges
from mtdnn_ds.data.soft_targets import RowsByExample
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation import Lesson, answers, mean_answer
from mtdnn_ds.train.evaluate import Evaluation, scored
from mtdnn_ds.train.loaded_run import load_run
from mtdnn_ds.train.setup import RunData

Split = tuple[str, str]  # task, split


def teacher_scores(data: RunData, lessons: Sequence[Lesson], *, device: torch.device) -> Iterator[tuple[str, RunData, Evaluation]]:
    """(what is scored, its data, its scores) of each teacher, then of the mean of all where there are several. Nothing without dev splits.

    Collective: all ranks must call this.
    """
    outputs: dict[Split, list[TermOutputs]] = {}
    for lesson in lessons:
        wanted = _dev_splits(lesson.data)
        own = answers(load_run(lesson.teacher.found, device=device), lesson.data, wanted) if wanted else []
        for split, of_split in zip(wanted, own, strict=True):
            outputs.setdefault(split, []).append(of_split)
        if wanted:
            yield str(lesson.teacher.found.weights_folder), lesson.data, _evaluation(lesson.data, dict(zip(wanted, own, strict=True)))
    if len(lessons) > 1 and outputs:
        specs = {spec.name: spec for spec in data.specs}
        together = {split: _mean(specs[split[0]], of_split) for split, of_split in outputs.items()}
        yield f"the mean of {len(lessons)} teachers", data, _evaluation(data, together)


def _dev_splits(data: RunData) -> list[Split]:
    return [(spec.name, split) for spec in data.specs for split in spec.dev_splits]


def _evaluation(data: RunData, outputs: dict[Split, TermOutputs]) -> Evaluation:
    ids = {spec.name: index for index, spec in enumerate(data.specs)}
    wanted = [(ids[task], split) for task, split in outputs]
    return dist.on_main(lambda: scored(wanted, [[of_split] for of_split in outputs.values()], data.specs, data.examples))


def _mean(spec: TaskSpec, outputs: Sequence[TermOutputs]) -> TermOutputs:
    """The mean of the teachers' probabilities or scores, which a task decodes as it does a model's outputs."""
    mean = mean_answer(spec, [RowsByExample(values=of_one.values, offsets=of_one.offsets) for of_one in outputs], temperature=1.0)
    first = outputs[0]
    kept = ragged_ranges(first.offsets[:-1], mean.offsets[1:] - mean.offsets[:-1])
    return replace(first, values=mean.values, labels=first.labels[kept], offsets=mean.offsets)
