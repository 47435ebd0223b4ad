"""Scores of regressions as a run's training data have them: what is answered first, and standard units.

Mean and deviation of tasks.NAME.standardize are those of the training examples that the run uses, rounded to
DIGITS significant digits: the same on machines that add up in another order, and short in recipe.yaml, from
which whoever opens the run without its data has them. What they change is in model/heads/linear_bank.py (the
outputs) and losses/rows.py (the loss).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.cache.leaked_rows import TRAIN
from mtdnn_ds.data.examples import Examples
from mtdnn_ds.data.examples.sampled import train_labels
from mtdnn_ds.tasks.spec import STANDARDIZE, TaskSpec

DIGITS = 6

ExamplesOf = Mapping[str, Mapping[str, Examples]]  # task -> split


def with_measured_scales(specs: Sequence[TaskSpec], examples: ExamplesOf) -> tuple[TaskSpec, ...]:
    """The tasks with the numbers in place of `standardize: true`, where training examples are there.

    Raises ConfigError where all scores are equal.
    """
    problems: list[str] = []
    measured = []
    for spec in specs:
        if spec.options.get(STANDARDIZE) is not True or TRAIN not in examples[spec.name]:
            measured.append(spec)
            continue

        scores = train_labels(examples[spec.name][TRAIN]).astype(np.float64)
        mean, deviation = (float(f"{value:.{DIGITS}g}") for value in (scores.mean(), scores.std()))
        if scores.min() == scores.max():
            problems.append(
                f"tasks.{spec.name}.{STANDARDIZE}: all {len(scores):,} training scores are {mean:g}, which "
                "has no deviation; remove it, or look at the data"
            )
        measured.append(replace(spec, options={**spec.options, STANDARDIZE: [mean, deviation]}))

    if problems:
        raise ConfigError(problems)
    return tuple(measured)


def measured_recipe(recipe: Recipe, specs: Sequence[TaskSpec]) -> Recipe:
    """The recipe that says the numbers of `specs`, as a run's folder and its checkpoints keep it."""
    tasks = dict(recipe.tasks)
    for spec in specs:
        if spec.options.get(STANDARDIZE):
            found = spec.options[STANDARDIZE]
            tasks[spec.name] = tasks[spec.name].model_copy(update={STANDARDIZE: found})
    return recipe.model_copy(update={"tasks": tasks})


def first_scores(specs: Sequence[TaskSpec], examples: ExamplesOf) -> dict[str, float]:
    """What each regression answers before its first step: the mean of its training scores.

    From 0, the squared errors of scores like STS-B's (0 to 5) would be ten times every other loss, and fill
    the clipped gradient.
    """
    return {
        spec.name: float(train_labels(examples[spec.name][TRAIN]).mean(dtype=np.float64))
        for spec in specs
        if spec.kind == "regression" and spec.name in examples
    }
