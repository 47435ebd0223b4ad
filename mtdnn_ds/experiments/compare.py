"""`compare`: the recipe's tasks trained alone, one after the other, and together, on one budget: what does each task gain or forget?

With K steps in all and task t's share r_t of the examples: alone, task t has a run of its own of r_t K steps; in sequence, one run of
K steps goes through the tasks in the recipe's order (mixture.mixing: sequential); together is the recipe as it is. Every way draws the same
number of examples of each task, up to rounding to whole steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.runs.schedule import num_warmup_steps
from mtdnn_ds.train.preflight.checks import CheckedRun, Problems, checked_run, one_task_alone

if TYPE_CHECKING:
    from mtdnn_ds.data.plan.step_plan import StepPlan
    from mtdnn_ds.experiments.trials import Scores, Trial

ALONE, AFTER_BLOCK, SEQUENCE, TOGETHER = (
    "alone",
    "in sequence, after its own block",
    "in sequence, at the end",
    "together",
)


def run(
    *,
    recipe: str,
    seeds: str,
    deepspeed_config: str,
    output_dir: str | None,
    log_level: str,
    overrides: Mapping[str, str],
) -> int:
    """Run the experiment; returns the exit code. Collective under a launcher. Raises ConfigError with every problem before the first run."""
    if not seeds.isdecimal() or int(seeds) < 1:
        raise ConfigError(f"--seeds {seeds}: must be a whole number, at least 1")

    from mtdnn_ds import dist
    from mtdnn_ds.experiments.trials import run_trials
    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.monitor.console import Progress, configure_logging
    from mtdnn_ds.runs.setup import build_plan, prepare_run_data
    from mtdnn_ds.train.engine import start_distributed, stop_distributed

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    whole = checked_run(recipe, deepspeed_config, overrides, world_size=dist.world_size())
    _refuse(whole, recipe, overrides)
    start_distributed()
    with watching(whole.recipe.train.stall_timeout):
        say = Progress(num_steps=0, is_main=dist.is_main()).say
        plan = build_plan(whole.recipe, prepare_run_data(whole.recipe, whole.specs, say))
        first = whole.recipe.train.seed
        trials = [
            trial
            for seed in range(first, first + int(seeds))
            for trial in trials_of(recipe, deepspeed_config, overrides, whole, plan, seed)
        ]
        folder = Path(output_dir) if output_dir else Path("runs") / f"compare_{Path(recipe).stem}"
        results = run_trials(trials, folder, say=say)
        names = [spec.name for spec in whole.specs]
        dist.on_main(
            lambda: report(folder, names, block_ends(plan), range(first, first + int(seeds)), results, say)
        )
    stop_distributed()
    return 0


def _refuse(whole: CheckedRun, recipe: str, overrides: Mapping[str, str]) -> None:
    problems = []
    if len(whole.specs) < 2:
        problems.append(f"{recipe}: has one task; compare needs at least two")
    if whole.recipe.mixture.mixing == "sequential":
        problems.append(
            "mixture.mixing=sequential: is one of the ways that are compared; write how the tasks are mixed otherwise"
        )
    if whole.recipe.mixture.rates == "annealed":
        problems.append("mixture.rates=annealed: a sequence has no such rates; choose others")
    problems += [
        f"{recipe}: task '{spec.name}' has no dev split; there is nothing to compare by"
        for spec in whole.specs
        if not spec.dev_splits
    ]
    if problems:
        raise ConfigError(problems)


def block_ends(plan: StepPlan) -> dict[str, int]:
    """In sequence: the step in which each task's block ends. Blocks hold the shares of the plan, in the order of the tasks."""
    drawn = plan.drawn(plan.total_steps)
    ends, before = {}, 0
    for name, count in zip(plan.task_names, drawn.tolist(), strict=True):
        before += count
        ends[name] = max(1, -(-before // plan.examples_per_step))
    return ends


def trials_of(
    recipe: str,
    deepspeed_config: str,
    overrides: Mapping[str, str],
    whole: CheckedRun,
    plan: StepPlan,
    seed: int,
) -> list[Trial]:
    """The runs of one seed: together, in sequence, and each task alone."""
    from mtdnn_ds import dist
    from mtdnn_ds.experiments.trials import Trial

    settings = whole.recipe
    steps = plan.total_steps
    common = {
        **{name: text for name, text in overrides.items() if name not in ("train.epochs", "train.steps")},
        "train.seed": str(seed),
        "train.eval_every": "0",
        "train.save_every": "0",
    }
    drawn = dict(zip(plan.task_names, plan.drawn(steps).tolist(), strict=True))
    ways: list[tuple[str, str, dict[str, str], tuple[int, ...]]] = [
        (f"together_seed_{seed}", f"together, seed {seed}", {"train.steps": str(steps)}, ()),
        (
            f"sequence_seed_{seed}",
            f"in sequence, seed {seed}",
            {"train.steps": str(steps), "mixture.mixing": "sequential"},
            tuple(sorted(set(block_ends(plan).values()))),
        ),
    ]
    for task, count in drawn.items():
        own = {
            "tasks": task,
            "train.steps": str(max(1, round(count / plan.examples_per_step))),
            **one_task_alone(settings),
        }
        ways.append((f"alone_{task}_seed_{seed}", f"{task} alone, seed {seed}", own, ()))
    problems, trials = Problems(), []
    for name, title, changes, after in ways:
        changes["schedule.warmup"] = repr(
            warmup_of(settings.schedule.warmup, steps, int(changes["train.steps"]))
        )
        ready = problems.check(
            partial(
                checked_run, recipe, deepspeed_config, {**common, **changes}, world_size=dist.world_size()
            )
        )
        if ready is not None:
            trials.append(
                Trial(
                    name=name,
                    title=title,
                    recipe=ready.recipe,
                    specs=ready.specs,
                    deepspeed=ready.deepspeed,
                    evaluate_after=after,
                )
            )
    problems.refuse()
    return trials


def warmup_of(warmup: float, total_steps: int, own_steps: int) -> float:
    """The recipe's warm-up as a fraction of a run of `own_steps`; none for a run so short that it would be all warm-up."""
    share = warmup if warmup < 1 else warmup / total_steps
    return share if num_warmup_steps(share, own_steps) < own_steps else 0.0


def report(
    folder: Path,
    tasks: Sequence[str],
    ends: Mapping[str, int],
    seeds: Sequence[int],
    results: Mapping[str, Scores],
    say: Callable[[str], None],
) -> None:
    """comparison.csv, comparison.html and comparison.svg in `folder`, and the table of means and standard deviations over seeds."""
    from mtdnn_ds.report.experiments import write_comparison
    from mtdnn_ds.report.tables import mean_and_spread, write_csv

    def last(name: str, task: str) -> float:
        return results[name][max(results[name])][task]

    scores: dict[str, dict[str, list[float]]] = {
        ALONE: {task: [last(f"alone_{task}_seed_{seed}", task) for seed in seeds] for task in tasks},
        AFTER_BLOCK: {
            task: [results[f"sequence_seed_{seed}"][ends[task]][task] for seed in seeds] for task in tasks
        },
        SEQUENCE: {task: [last(f"sequence_seed_{seed}", task) for seed in seeds] for task in tasks},
        TOGETHER: {task: [last(f"together_seed_{seed}", task) for seed in seeds] for task in tasks},
    }
    rows = [
        {"task": task, "way": way, "seed": seed, "score": score}
        for way, of_way in scores.items()
        for task, values in of_way.items()
        for seed, score in zip(seeds, values, strict=True)
    ]
    write_csv(folder / "comparison.csv", rows)
    pictures = write_comparison(folder, scores, title=f"the same budget, {len(seeds)} seeds")
    width = max(len(task) for task in [*tasks, "average"])
    say(f"\ndev score (mean of a task's metrics), mean and standard deviation over {len(seeds)} seeds:")
    header = (ALONE, "after its block", "end of sequence", TOGETHER)
    say(
        f"{'task':<{width}}  "
        + "  ".join(f"{word:>17}" for word in header)
        + f"  {'gains':>8}  {'forgets':>8}"
    )
    averages = {
        way: [sum(of_way[task][index] for task in tasks) / len(tasks) for index in range(len(seeds))]
        for way, of_way in scores.items()
    }
    for task in [*tasks, "average"]:
        own = {way: averages[way] if task == "average" else of_way[task] for way, of_way in scores.items()}
        means = {way: sum(values) / len(values) for way, values in own.items()}
        cells = "  ".join(
            f"{mean_and_spread(own[way]):>17}" for way in (ALONE, AFTER_BLOCK, SEQUENCE, TOGETHER)
        )
        say(
            f"{task:<{width}}  {cells}  {means[TOGETHER] - means[ALONE]:>+8.4f}  {means[AFTER_BLOCK] - means[SEQUENCE]:>+8.4f}"
        )
    say("gains: together - alone; forgets: after its block - end of sequence")
    say(f"\nwritten: {folder / 'comparison.csv'}, {pictures[0]} and {pictures[1]}")
