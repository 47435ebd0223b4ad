"""How good teachers are on the learner's dev splits, one by one and together. Stores nothing, trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from mtdnn_ds import dist
from mtdnn_ds.data.examples import Examples, TermOutputs
from mtdnn_ds.data.soft_targets import RowsByExample
from mtdnn_ds.runs.evaluate import Evaluation, scored
from mtdnn_ds.runs.load import load_run
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teacher_outputs import Lesson, answers, mean_answer

Split = tuple[str, str]  # task, split


def teacher_scores(
    data: RunData, lessons: Sequence[Lesson], *, device: torch.device
) -> Iterator[tuple[str, RunData, Evaluation]]:
    """(what is scored, its data, its scores) of each teacher, then of the mean of all where there are several. Nothing without dev splits.

    Collective: all ranks must call this.
    """
    read: dict[Split, list[tuple[RunData, TermOutputs]]] = {}
    for lesson in lessons:
        wanted = [(spec.name, split) for spec in lesson.data.specs for split in spec.dev_splits]
        if wanted:
            own = dict(
                zip(
                    wanted,
                    answers(load_run(lesson.teacher.found, device=device), lesson.data, wanted),
                    strict=True,
                )
            )
            for of_split, outputs in own.items():
                read.setdefault(of_split, []).append((lesson.data, outputs))
            yield str(lesson.teacher.found.weights_folder), lesson.data, _evaluation(lesson.data, own)
    if len(lessons) > 1 and read:
        specs = {spec.name: spec for spec in data.specs}
        examples: dict[str, dict[str, Examples]] = {}
        together = {}
        for (task, split), readings in read.items():
            reader, together[task, split] = _mean(specs[task], readings)
            examples.setdefault(task, {})[split] = reader.examples[task][split]
        of_all = replace(data, examples=examples)
        yield f"the mean of {len(lessons)} teachers", of_all, _evaluation(of_all, together)


def _evaluation(data: RunData, outputs: dict[Split, TermOutputs]) -> Evaluation:
    ids = {spec.name: index for index, spec in enumerate(data.specs)}
    wanted = [(ids[task], split) for task, split in outputs]
    return dist.on_main(
        lambda: scored(wanted, [[of_split] for of_split in outputs.values()], data.specs, data.examples)
    )


def _mean(spec: TaskSpec, read: Sequence[tuple[RunData, TermOutputs]]) -> tuple[RunData, TermOutputs]:
    """The mean of the teachers' probabilities or scores, decoded as a model's outputs are; and who reads as few tokens as it is made of."""
    mean = mean_answer(
        spec,
        [RowsByExample(values=outputs.values, offsets=outputs.offsets) for _, outputs in read],
        temperature=1.0,
    )
    reader, own = next(
        (data, outputs) for data, outputs in read if np.array_equal(outputs.offsets, mean.offsets)
    )
    return reader, replace(own, values=mean.values)
