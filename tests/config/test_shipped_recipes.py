"""What the shipped GLUE recipes promise of their compute. Sizes are those of the official files."""

from __future__ import annotations

import math

import pytest
from helpers.processes import ROOT

from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.stages import load_runs

TRAIN = {
    "cola": 8_551, "sst2": 67_349, "mrpc": 3_668, "stsb": 5_749,
    "qqp": 363_846, "mnli": 392_702, "qnli": 104_743, "rte": 2_490,
}  # fmt: skip
DEV = {
    "cola": 1_043, "sst2": 872, "mrpc": 408, "stsb": 1_500,
    "qqp": 40_430, "mnli": 9_815 + 9_832, "qnli": 5_463, "rte": 277,
}  # fmt: skip

LEAKED = {"cola": 35, "mrpc": 229, "stsb": 561}  # data.drop_leaked_rows


def share_of_evaluation(recipe: Recipe) -> float:
    """Of the run's compute: a row costs a forward pass, and in training a backward pass of twice that too."""
    per_step = recipe.batch.examples_per_step
    rows = sum(TRAIN[task] for task in recipe.tasks)
    steps = recipe.train.steps or math.ceil((recipe.train.epochs or 0) * rows / per_step)
    evaluations = 1
    if recipe.train.eval_every:
        evaluations = math.ceil(steps / recipe.train.eval_every)

    evaluated = evaluations * sum(DEV[task] for task in recipe.tasks)
    return evaluated / (evaluated + 3 * steps * per_step)


@pytest.mark.parametrize("name", ["glue", "mt_dnn_glue"])
def test_evaluation_takes_at_most_a_twentieth_of_the_compute(name: str) -> None:
    stages = load_runs(str(ROOT / f"recipes/{name}.yaml"), {})
    shares = {stage.name: round(share_of_evaluation(stage.recipe), 3) for stage in stages}
    assert {stage: share for stage, share in shares.items() if share > 0.05} == {}


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb", "rte"])
def test_glue_small_trains_three_epochs_of_its_small_tasks(task: str) -> None:
    recipe = load_recipe(str(ROOT / "recipes/glue_small.yaml"), {})
    rates, steps = recipe.mixture.rates, recipe.train.steps
    assert isinstance(rates, dict) and steps is not None
    examples = steps * recipe.batch.examples_per_step * rates[task] / sum(rates.values())
    assert examples / (TRAIN[task] - LEAKED.get(task, 0)) >= 3
