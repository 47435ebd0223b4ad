"""A recipe's tasks trained alone, one after the other, and together, on one budget: what does each task gain
or forget?

With K steps in all and task t's share r_t of the examples: alone, task t has a run of its own of r_t K steps;
in sequence, one run of K steps goes through the tasks in the recipe's order (mixture.mixing: sequential);
together is the recipe as it is. Every way draws the same number of examples of each task, up to rounding to
whole steps.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.runs.schedule import num_warmup_steps
from mtdnn_ds.train.preflight.checks import CheckedRun, Problems, checked_run, one_task_alone

if TYPE_CHECKING:
    from mtdnn_ds.data.plan.step_plan import StepPlan
    from mtdnn_ds.experiments.trials import Scores, Trial

log = logging.getLogger(__name__)

WAYS = ALONE, AFTER_BLOCK, SEQUENCE, TOGETHER = (
    "alone",
    "in sequence, after its own block",
    "in sequence, at the end",
    "together",
)


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
    from mtdnn_ds.runs.setup import build_plan, prepare_run_data
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
        plan = build_plan(whole.recipe, prepare_run_data(whole.recipe, whole.specs))
        first = whole.recipe.train.seed
        seeds = range(first, first + comparison.num_seeds)
        trials = [trial for seed in seeds for trial in trials_of(comparison, whole, plan, seed)]
        results = run_trials(trials, folder)
        dist.on_main(partial(report, folder, block_ends(plan), seeds, results))
    stop_distributed()


def _refuse_incomparable(whole: CheckedRun, recipe: str) -> None:
    problems = []
    if len(whole.specs) < 2:
        problems.append(f"{recipe}: has one task; compare needs at least two")
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


def block_ends(plan: StepPlan) -> dict[str, int]:
    """In sequence: the step in which each task's block ends.

    Blocks hold the shares of the plan, in the order of the tasks.
    """
    drawn = plan.drawn(plan.total_steps)
    ends, before = {}, 0
    for name, count in zip(plan.task_names, drawn.tolist(), strict=True):
        before += count
        ends[name] = max(1, -(-before // plan.examples_per_step))
    return ends


def trials_of(comparison: Comparison, whole: CheckedRun, plan: StepPlan, seed: int) -> list[Trial]:
    """The runs of one seed: together, in sequence, and each task alone.

    Raises ConfigError with the problems of all.
    """
    from mtdnn_ds import dist
    from mtdnn_ds.experiments.trials import Trial

    common = {
        **comparison.overrides,
        "train.seed": str(seed),
        "train.eval_every": "0",
        "train.save_every": "0",
    }
    common.pop("train.epochs", None)  # every run has its steps

    problems = Problems()
    trials = []
    for variant in _variants(whole, plan, seed):
        warmup = warmup_of(whole.recipe.schedule.warmup, plan.total_steps, variant.num_steps)
        length = {"train.steps": str(variant.num_steps), "schedule.warmup": repr(warmup)}
        check = partial(
            checked_run,
            comparison.recipe,
            comparison.deepspeed_config,
            {**common, **variant.changes, **length},
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


def _variants(whole: CheckedRun, plan: StepPlan, seed: int) -> list[_Variant]:
    steps = plan.total_steps
    together = _Variant(
        name=f"together_seed_{seed}", title=f"together, seed {seed}", changes={}, num_steps=steps
    )
    sequence = _Variant(
        name=f"sequence_seed_{seed}",
        title=f"in sequence, seed {seed}",
        changes={"mixture.mixing": "sequential"},
        num_steps=steps,
        evaluate_after=tuple(sorted(set(block_ends(plan).values()))),
    )

    alone = []
    for task, count in zip(plan.task_names, plan.drawn(steps).tolist(), strict=True):
        variant = _Variant(
            name=f"alone_{task}_seed_{seed}",
            title=f"{task} alone, seed {seed}",
            changes={"tasks": task, **one_task_alone(whole.recipe)},
            num_steps=max(1, round(count / plan.examples_per_step)),
        )
        alone.append(variant)
    return [together, sequence, *alone]


def warmup_of(warmup: float, total_steps: int, own_steps: int) -> float:
    """The recipe's warm-up as a fraction of a run of `own_steps`; none for a run so short that it would be
    all warm-up.
    """
    share = warmup if warmup < 1 else warmup / total_steps
    return share if num_warmup_steps(share, own_steps) < own_steps else 0.0


def report(
    folder: Path, ends: Mapping[str, int], seeds: Sequence[int], results: Mapping[str, Scores]
) -> None:
    """comparison.csv and comparison.html in `folder`, and the table of means and standard deviations over
    seeds.

    `ends`: in sequence, the last step of each task's block.
    """
    from mtdnn_ds.report.experiments import write_comparison
    from mtdnn_ds.report.tables import write_csv

    scores = _scores_by_way(ends, seeds, results)
    rows = [
        {"task": task, "way": way, "seed": seed, "score": score}
        for way, of_way in scores.items()
        for task, values in of_way.items()
        for seed, score in zip(seeds, values, strict=True)
    ]
    write_csv(folder / "comparison.csv", rows)
    page = write_comparison(folder, scores, title=f"the same budget, {len(seeds)} seeds")

    log.info(f"\ndev score (mean of a task's metrics), mean and standard deviation over {len(seeds)} seeds:")
    for line in _table(scores):
        log.info(line)
    log.info("gains: together - alone; forgets: after its block - end of sequence")
    log.info(f"\nwritten: {folder / 'comparison.csv'} and {page}")


def _scores_by_way(
    ends: Mapping[str, int], seeds: Sequence[int], results: Mapping[str, Scores]
) -> dict[str, dict[str, list[float]]]:
    """Way -> task -> one score a seed."""

    def last(trial: str, task: str) -> float:
        scores = results[trial]
        return scores[max(scores)][task]

    by_way: dict[str, dict[str, list[float]]] = {way: {task: [] for task in ends} for way in WAYS}
    for seed in seeds:
        sequence = f"sequence_seed_{seed}"
        for task, end in ends.items():
            by_way[ALONE][task].append(last(f"alone_{task}_seed_{seed}", task))
            by_way[AFTER_BLOCK][task].append(results[sequence][end][task])
            by_way[SEQUENCE][task].append(last(sequence, task))
            by_way[TOGETHER][task].append(last(f"together_seed_{seed}", task))
    return by_way


def _table(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A line a task and one of their average: all ways, what is gained together and forgotten in sequence."""
    from mtdnn_ds.report.tables import mean_and_spread

    tasks = list(scores[ALONE])
    rows: dict[str, dict[str, Sequence[float]]] = {
        task: {way: of_way[task] for way, of_way in scores.items()} for task in tasks
    }
    rows["average"] = {
        way: [sum(of_seed) / len(tasks) for of_seed in zip(*of_way.values(), strict=True)]
        for way, of_way in scores.items()
    }

    width = max(len(name) for name in rows)
    heads = "  ".join(f"{head:>17}" for head in (ALONE, "after its block", "end of sequence", TOGETHER))
    lines = [f"{'task':<{width}}  {heads}  {'gains':>8}  {'forgets':>8}"]
    for name, values in rows.items():
        means = {way: sum(values[way]) / len(values[way]) for way in WAYS}
        cells = "  ".join(f"{mean_and_spread(values[way]):>17}" for way in WAYS)
        gains, forgets = means[TOGETHER] - means[ALONE], means[AFTER_BLOCK] - means[SEQUENCE]
        lines.append(f"{name:<{width}}  {cells}  {gains:>+8.4f}  {forgets:>+8.4f}")
    return lines
