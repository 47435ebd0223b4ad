"""A recipe's tasks trained alone, one after the other, and together: what does each task gain or forget?

Together is the recipe as it is, K steps. Alone, a task has its part of them: the steps that draw it, with
exactly the same examples in each (mixture.only_task). So both sides of the comparison have the same updates
of the task from the same first weights, and differ by the other tasks alone. In sequence, one run of K steps
goes through the tasks in the recipe's order (mixture.mixing: sequential) with as many examples of each, to
within the rounding to whole steps; where a step of the recipe mixes tasks, these are fewer updates of each
task, as its block has whole steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.experiments.compare_report import TaskFacts, report
from mtdnn_ds.runs.schedule import num_warmup_steps
from mtdnn_ds.train.preflight.checks import CheckedRun, Problems, checked_run

if TYPE_CHECKING:
    from mtdnn_ds.config.recipe import Recipe
    from mtdnn_ds.data.plan.step_plan import StepPlan
    from mtdnn_ds.experiments.trials import Trial
    from mtdnn_ds.runs.setup import RunData


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Whose tasks are compared, over how many seeds."""

    recipe: str  # file
    num_seeds: int
    deepspeed_config: str  # file
    overrides: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    """One run of a seed: the recipe with `changes`."""

    name: str
    title: str
    changes: Mapping[str, str]
    num_steps: int
    evaluate_after: Collection[int] = ()


def compare(comparison: Comparison, folder: Path) -> None:
    """Run the experiment in `folder`. Collective: all ranks must call this.

    Raises ConfigError with every problem before the first run.
    """
    from mtdnn_ds import dist
    from mtdnn_ds.experiments.trials import run_trials
    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.runs.setup import prepare_run_data, whole_plan
    from mtdnn_ds.train.engine import start_distributed, stop_distributed

    overrides = {"data.drop_leaked_rows": "true", **comparison.overrides}
    comparison = replace(comparison, overrides=overrides)
    whole = checked_run(
        comparison.recipe,
        comparison.deepspeed_config,
        comparison.overrides,
        world_size=dist.world_size(),
    )
    _refuse_incomparable(whole, comparison.recipe)

    start_distributed()
    with watching(whole.recipe.train.stall_timeout):
        data = prepare_run_data(whole.recipe, whole.specs)
        plan = whole_plan(whole.recipe, data)
        facts = task_facts(plan, _sequence_plan(whole.recipe, data), data)
        first = whole.recipe.train.seed
        seeds = range(first, first + comparison.num_seeds)
        trials = [
            trial for seed in seeds for trial in trials_of(comparison, whole, plan.total_steps, facts, seed)
        ]
        results = run_trials(trials, folder)
        dist.on_main(partial(report, folder, facts, seeds, results))
    stop_distributed()


def _refuse_incomparable(whole: CheckedRun, recipe: str) -> None:
    problems = []
    if len(whole.specs) < 2:
        problems.append(f"{recipe}: has one task; compare needs at least two")
    if whole.recipe.mixture.only_task is not None:
        problems.append(
            f"mixture.only_task={whole.recipe.mixture.only_task}: is what compare itself sets; remove it"
        )
    if whole.recipe.mixture.mixing == "sequential":
        problems.append(
            "mixture.mixing=sequential: is one of the ways that are compared; write how the tasks are mixed "
            "otherwise"
        )
    if whole.recipe.mixture.rates == "annealed":
        problems.append("mixture.rates=annealed: a sequence has no such rates; choose others")
    for spec in whole.specs:
        if not spec.dev_splits:
            problems.append(f"{recipe}: task '{spec.name}' has no dev split; there is nothing to compare by")

    if problems:
        raise ConfigError(problems)


def _sequence_plan(recipe: Recipe, data: RunData) -> StepPlan:
    from mtdnn_ds.runs.setup import whole_plan

    mixture = recipe.mixture.model_copy(update={"mixing": "sequential"})
    return whole_plan(recipe.model_copy(update={"mixture": mixture}), data)


def task_facts(plan: StepPlan, sequence: StepPlan, data: RunData) -> dict[str, TaskFacts]:
    """Of each task, by name; `sequence` is the plan with mixing=sequential.

    Raises ConfigError if the plan draws no example of a task.
    """
    from mtdnn_ds.runs.setup import idle_tasks

    idle = idle_tasks(plan)
    if idle:
        raise ConfigError(idle)

    facts, before, size = {}, 0, sequence.examples_per_step
    for spec, count in zip(data.specs, sequence.drawn(sequence.total_steps).tolist(), strict=True):
        first, before = before // size, before + count
        block_end = max(1, -(-before // size))
        dev = [data.examples[spec.name][split].split for split in spec.dev_splits]
        facts[spec.name] = TaskFacts(
            updates=num_updates(plan, spec.name),
            sequence_updates=block_end - first,
            block_end=block_end,
            dev_rows=sum(split.num_rows for split in dev),
        )
    return facts


def num_updates(plan: StepPlan, task: str) -> int:
    """Steps of the plan that hold examples of the task."""
    from mtdnn_ds.data.plan.task_part import TaskPart

    return TaskPart(plan, task).total_steps


def trials_of(
    comparison: Comparison, whole: CheckedRun, num_steps: int, facts: Mapping[str, TaskFacts], seed: int
) -> list[Trial]:
    """The runs of one seed: together, in sequence, and each task alone.

    `num_steps`: of the whole mixture. Raises ConfigError with the problems of all.
    """
    from mtdnn_ds import dist
    from mtdnn_ds.experiments.trials import Trial

    common = {
        **comparison.overrides,
        "train.seed": str(seed),
        "train.steps": str(num_steps),
        "train.eval_every": "0",
        "train.save_every": "0",
    }
    common.pop("train.epochs", None)

    problems = Problems()
    trials = []
    for variant in _variants(num_steps, facts, seed):
        warmup = warmup_of(whole.recipe.schedule.warmup, num_steps, variant.num_steps)
        flags = {**common, **variant.changes, "schedule.warmup": repr(warmup)}
        if "mixture.mixing" in variant.changes:
            flags.pop("mixture.order", None)  # a sequence has none
        check = partial(
            checked_run,
            comparison.recipe,
            comparison.deepspeed_config,
            flags,
            world_size=dist.world_size(),
        )
        checked = problems.check(check)
        if checked is not None:
            trial = Trial(
                name=variant.name, title=variant.title, run=checked, evaluate_after=variant.evaluate_after
            )
            trials.append(trial)
    problems.refuse()
    return trials


def _variants(num_steps: int, facts: Mapping[str, TaskFacts], seed: int) -> list[_Variant]:
    together = _Variant(
        name=f"together_seed_{seed}", title=f"together, seed {seed}", changes={}, num_steps=num_steps
    )
    sequence = _Variant(
        name=f"sequence_seed_{seed}",
        title=f"in sequence, seed {seed}",
        changes={"mixture.mixing": "sequential"},
        num_steps=num_steps,
        evaluate_after=tuple(sorted({of_task.block_end for of_task in facts.values()})),
    )

    alone = [
        _Variant(
            name=f"alone_{task}_seed_{seed}",
            title=f"{task} alone, seed {seed}",
            changes={"mixture.only_task": task},
            num_steps=of_task.updates,
        )
        for task, of_task in facts.items()
    ]
    return [together, sequence, *alone]


def warmup_of(warmup: float, total_steps: int, own_steps: int) -> float:
    """The recipe's warm-up as a fraction of a run of `own_steps`; none for a run so short that it would be
    all warm-up.
    """
    share = warmup if warmup < 1 else warmup / total_steps
    return share if num_warmup_steps(share, own_steps) < own_steps else 0.0
