"""How good teachers are on the learner's dev splits, one by one and together. Stores nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mtdnn_ds import dist
from mtdnn_ds.data.cache.soft_targets import RowsByExample
from mtdnn_ds.data.examples import Examples, TermOutputs
from mtdnn_ds.runs.evaluate import Evaluation, scored
from mtdnn_ds.runs.load import load_run
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teacher_outputs import TeacherOutputs, answers, mean_answer

Split = tuple[str, str]  # task, split


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """What one teacher answers on a split, and its data, in its own tokens."""

    data: RunData
    outputs: TermOutputs


def teacher_scores(
    data: RunData, teacher_outputs: Sequence[TeacherOutputs], *, device: torch.device
) -> Iterator[tuple[str, RunData, Evaluation]]:
    """(what is scored, its data, its scores) of each teacher, then of the mean of all where there are
    several.

    Nothing without dev splits. Collective: all ranks must call this.
    """
    readings: dict[Split, list[_Reading]] = {}
    for one in teacher_outputs:
        wanted = [(spec.name, split) for spec in one.data.specs for split in spec.dev_splits]
        if not wanted:
            continue

        outputs = answers(load_run(one.teacher.run, device=device), one.data, wanted)
        by_split = dict(zip(wanted, outputs, strict=True))
        for split, of_split in by_split.items():
            readings.setdefault(split, []).append(_Reading(data=one.data, outputs=of_split))
        yield str(one.teacher.run.weights_folder), one.data, _evaluation(one.data, by_split)

    if len(teacher_outputs) > 1 and readings:
        specs = {spec.name: spec for spec in data.specs}
        examples: dict[str, dict[str, Examples]] = {}
        together = {}
        for (task, name), of_teachers in readings.items():
            mean = _mean(specs[task], of_teachers)
            together[task, name] = mean.outputs
            examples.setdefault(task, {})[name] = mean.data.examples[task][name]

        of_all = replace(data, examples=examples)
        yield f"the mean of {len(teacher_outputs)} teachers", of_all, _evaluation(of_all, together)


def _evaluation(data: RunData, outputs: dict[Split, TermOutputs]) -> Evaluation:
    ids = {spec.name: index for index, spec in enumerate(data.specs)}
    wanted = [(ids[task], split) for task, split in outputs]
    of_only_term = [[of_split] for of_split in outputs.values()]
    return dist.on_main(lambda: scored(wanted, of_only_term, data.specs, data.examples))


def _mean(spec: TaskSpec, readings: Sequence[_Reading]) -> _Reading:
    """The mean of the teachers' probabilities or scores, decoded as a model's outputs are.

    Its data are those of a teacher who reads as few tokens as it is made of.
    """
    rows = [RowsByExample(values=one.outputs.values, offsets=one.outputs.offsets) for one in readings]
    mean = mean_answer(spec, rows, temperature=1.0)

    reader = next(one for one in readings if np.array_equal(one.outputs.offsets, mean.offsets))
    return _Reading(data=reader.data, outputs=replace(reader.outputs, values=mean.values))
