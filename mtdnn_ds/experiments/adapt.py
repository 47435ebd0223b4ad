"""`adapt`: fine-tune a run's encoder and the plain one on samples of a task, side by side. MT-DNN (Liu et al. 2019), section 4.5.

For every fraction and sampling two runs see the same sample in the same order: one starts from the run's checkpoint, the other from
the encoder that the run itself had started from. All of them are ordinary runs, so every setting of a recipe applies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.data.plan.step_plan import steps_for_epochs
from mtdnn_ds.train.preflight.checks import Problems, checked_run, one_task_alone

if TYPE_CHECKING:
    from mtdnn_ds.experiments.trials import Scores
    from mtdnn_ds.tasks.spec import TaskSpec

STARTS = ("mt-dnn", "plain encoder")
VARIED = (
    "tasks",
    "init.run",
    "init.checkpoint",
    "init.heads",
    "init.head_of",
    "train.seed",
)  # what the experiment itself sets


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """How much data and training: `fractions` of the training examples, `samplings` samples of each."""

    fractions: tuple[float, ...]
    samplings: int
    epochs: float
    min_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of the experiment."""

    start: str
    fraction: float
    size: int  # training examples
    sampling: int

    @property
    def name(self) -> str:
        return f"{self.start.replace(' ', '_')}/fraction_{self.fraction:g}_sampling_{self.sampling}"


def run(
    *,
    run_dir: str,
    task: str,
    fractions: str,
    samplings: str,
    checkpoint: str,
    epochs: str,
    min_steps: str,
    head_of: str | None,
    recipe: str | None,
    deepspeed_config: str,
    output_dir: str | None,
    log_level: str,
    overrides: Mapping[str, str],
) -> int:
    """Run the experiment; returns the exit code. Collective under a launcher. Raises ConfigError with every problem before the first run."""
    amount = _amount(fractions=fractions, samplings=samplings, epochs=epochs, min_steps=min_steps)
    wrong = [
        name
        for name in overrides
        if name in VARIED
        or name.split(".")[0] == "heads"
        or name.endswith((".train_fraction", ".sample_seed"))
    ]
    if wrong:
        raise ConfigError([f"--{name}: is what adapt itself sets; remove it" for name in wrong])
    base = recipe or str(Path(run_dir) / "recipe.yaml")

    from mtdnn_ds import dist
    from mtdnn_ds.experiments.trials import Trial, run_trials
    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.monitor.console import Progress, configure_logging
    from mtdnn_ds.runs.load import find_run
    from mtdnn_ds.runs.setup import prepare_run_data
    from mtdnn_ds.train.engine import start_distributed, stop_distributed

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    encoder = find_run(run_dir, checkpoint, run_setting="RUN").recipe.encoder
    settings = {
        "tasks": task,
        "mixture.mixing": "per_example",
        "encoder.path": encoder.path,
        "heads": "null",  # both ways begin with a new head, or the run's
        **one_task_alone(load_recipe(base, {})),
        **overrides,
    }
    sized = {"train.steps": "1", "schedule.warmup": "0"}  # until the length is known
    checked = checked_run(base, deepspeed_config, {**settings, **sized}, world_size=dist.world_size())
    spec = checked.specs[0]
    if not spec.dev_splits:
        raise ConfigError(f"--task {task}: has no dev split; there is nothing to compare by")
    start_distributed()
    with watching(checked.recipe.train.stall_timeout):
        say = Progress(num_steps=0, is_main=dist.is_main()).say
        num_examples = prepare_run_data(checked.recipe, checked.specs, say).train_sets[0].num_examples

        cells = [
            Cell(
                start=start,
                fraction=fraction,
                size=max(1, math.floor(fraction * num_examples + 1e-9)),
                sampling=sampling,
            )
            for fraction in amount.fractions
            for sampling in range(amount.samplings)
            for start in STARTS
        ]
        problems, trials = Problems(), []
        for cell in cells:
            varied = {
                f"tasks.{task}.train_fraction": f"{cell.fraction!r}",
                f"tasks.{task}.sample_seed": str(cell.sampling),
            }
            varied["train.seed"] = str(cell.sampling)
            if cell.start == STARTS[0]:
                varied |= {
                    "init.run": run_dir,
                    "init.checkpoint": checkpoint,
                    **({"init.head_of": f"{{{task}: {head_of}}}"} if head_of else {}),
                }
            if not {"train.steps", "train.epochs"} & set(overrides):
                steps = steps_for_epochs(
                    amount.epochs, {task: cell.size}, checked.recipe.batch.examples_per_step
                )
                varied["train.steps"] = str(max(amount.min_steps, steps))
            ready = problems.check(
                partial(
                    checked_run, base, deepspeed_config, {**settings, **varied}, world_size=dist.world_size()
                )
            )
            if ready is not None:
                title = f"{cell.start}, {cell.size:,} examples, sampling {cell.sampling}"
                trials.append(
                    Trial(
                        name=cell.name,
                        title=title,
                        recipe=ready.recipe,
                        specs=ready.specs,
                        deepspeed=ready.deepspeed,
                    )
                )
        problems.refuse()

        folder = Path(output_dir) if output_dir else Path("runs") / f"adapt_{task}"
        results = run_trials(trials, folder, say=say)
        dist.on_main(lambda: report(folder, spec, cells, results, say))
    stop_distributed()
    return 0


def _amount(*, fractions: str, samplings: str, epochs: str, min_steps: str) -> Amount:
    """The flags as numbers. Raises ConfigError with every one that is wrong."""
    problems: list[str] = []

    def number(name: str, text: str, what: str, *, whole: bool = False, most: float = math.inf) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most or math.isinf(value):
            problems.append(f"--{name} {text}: must be {what}")
        return value

    shares = [
        number("fractions", part, "numbers above 0 and at most 1, e.g. 0.001,0.01,0.1,1", most=1)
        for part in fractions.split(",")
    ]
    if len(set(shares)) < len(shares):
        problems.append(f"--fractions {fractions}: a number stands twice")
    amount = Amount(
        fractions=tuple(shares),
        samplings=number("samplings", samplings, "a whole number, at least 1", whole=True),  # type: ignore[arg-type]
        epochs=number("epochs", epochs, "a number above 0"),
        min_steps=number("min_steps", min_steps, "a whole number, at least 1", whole=True),  # type: ignore[arg-type]
    )
    if problems:
        raise ConfigError(problems)
    return amount


def report(
    folder: Path,
    spec: TaskSpec,
    cells: Sequence[Cell],
    results: Mapping[str, Scores],
    say: Callable[[str], None],
) -> None:
    """adaptation.csv, adaptation.html and adaptation.svg in `folder`, and the table of means and standard deviations."""
    from mtdnn_ds.report.experiments import write_adaptation
    from mtdnn_ds.report.tables import mean_and_spread, write_csv

    final = {cell: results[cell.name][max(results[cell.name])][spec.name] for cell in cells}
    rows = [
        {
            "start": cell.start,
            "fraction": cell.fraction,
            "examples": cell.size,
            "sampling": cell.sampling,
            "score": score,
        }
        for cell, score in final.items()
    ]
    write_csv(folder / "adaptation.csv", rows)
    curves: dict[str, dict[int, list[float]]] = {start: {} for start in STARTS}
    for cell, score in final.items():
        curves[cell.start].setdefault(cell.size, []).append(score)
    metric = " and ".join(spec.metrics)
    samplings = 1 + max(cell.sampling for cell in cells)
    pictures = write_adaptation(folder, curves, title=f"{spec.name}, {samplings} samplings", metric=metric)
    say(f"\ndev {metric} of {spec.name}, mean and standard deviation over {samplings} samplings:")
    say(
        f"{'fraction':>9}  {'examples':>9}  "
        + "  ".join(f"{start:>17}" for start in STARTS)
        + f"  {'difference':>10}"
    )
    for fraction, size in {cell.fraction: cell.size for cell in cells}.items():
        means = [sum(curves[start][size]) / samplings for start in STARTS]
        values = "  ".join(f"{mean_and_spread(curves[start][size]):>17}" for start in STARTS)
        say(f"{fraction:>9.1%}  {size:>9,}  {values}  {means[0] - means[1]:>+10.4f}")
    say(f"\nwritten: {folder / 'adaptation.csv'}, {pictures[0]} and {pictures[1]}")
