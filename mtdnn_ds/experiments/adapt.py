"""Fine-tune a run's encoder and the plain one on samples of a task, side by side.

MT-DNN (Liu et al. 2019), section 4.5.

For every fraction and sampling two runs see the same sample in the same order: one starts from the run's
checkpoint, the other from the encoder that the run itself had started from. All of them are ordinary runs, so
every setting of a recipe applies.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.data.plan.step_plan import steps_for_epochs
from mtdnn_ds.train.preflight.checks import CheckedRun, Problems, checked_run, one_task_alone

if TYPE_CHECKING:
    from mtdnn_ds.experiments.trials import Scores, Trial
    from mtdnn_ds.tasks.spec import TaskSpec

log = logging.getLogger(__name__)

FROM_RUN, PLAIN = STARTS = ("mt-dnn", "plain encoder")

# What the experiment itself sets.
VARIED = ("tasks", "init.run", "init.checkpoint", "init.heads", "init.head_of", "train.seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """How much data and training: `fractions` of the training examples, `samplings` samples of each."""

    fractions: tuple[float, ...]
    samplings: int
    epochs: float  # of each sample, unless the overrides say how long
    min_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """What is adapted to which task, with how much of its data, and the recipe of all runs."""

    run_dir: str
    checkpoint: str  # of that run
    task: str
    head_of: str | None  # task of the run whose head the new one begins with
    amount: Amount
    recipe: str  # file
    deepspeed_config: str  # file
    overrides: Mapping[str, str]


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

    @property
    def title(self) -> str:
        return f"{self.start}, {self.size:,} examples, sampling {self.sampling}"


def adapt(adaptation: Adaptation, folder: Path) -> None:
    """Run the experiment in `folder`. Collective: all ranks must call this.

    Raises ConfigError with every problem before the first run.
    """
    _refuse_varied(adaptation.overrides)

    from mtdnn_ds import dist
    from mtdnn_ds.experiments.trials import run_trials
    from mtdnn_ds.faults.watchdog.watch import watching
    from mtdnn_ds.runs.setup import prepare_run_data
    from mtdnn_ds.train.engine import start_distributed, stop_distributed

    settings = _common_settings(adaptation)
    checked = _checked_task(adaptation, settings)
    spec = checked.specs[0]

    start_distributed()
    with watching(checked.recipe.train.stall_timeout):
        data = prepare_run_data(checked.recipe, checked.specs)
        cells = _cells(adaptation.amount, data.train_sets[0].num_examples)
        trials = _trials(adaptation, settings, cells, checked.recipe.batch.examples_per_step)
        results = run_trials(trials, folder)
        dist.on_main(partial(report, folder, spec, cells, results))
    stop_distributed()


def _refuse_varied(overrides: Mapping[str, str]) -> None:
    wrong = [
        name
        for name in overrides
        if name in VARIED
        or name.split(".")[0] == "heads"
        or name.endswith((".train_fraction", ".sample_seed"))
    ]
    if wrong:
        raise ConfigError([f"--{name}: is what adapt itself sets; remove it" for name in wrong])


def _common_settings(adaptation: Adaptation) -> dict[str, str]:
    """Flags of all runs: the task alone, on the encoder that the run had started from."""
    from mtdnn_ds.runs.load import find_run

    encoder = find_run(adaptation.run_dir, adaptation.checkpoint, run_setting="RUN").recipe.encoder
    return {
        "tasks": adaptation.task,
        "mixture.mixing": "per_example",
        "encoder.path": encoder.path,
        "data.drop_leaked_rows": "true",
        "heads": "null",  # both ways begin with a new head, or the run's
        **one_task_alone(load_recipe(adaptation.recipe, {})),
        **adaptation.overrides,
    }


def _checked_task(adaptation: Adaptation, settings: Mapping[str, str]) -> CheckedRun:
    """The task's run, before anybody knows how long its runs will be."""
    from mtdnn_ds import dist

    until_known = {"train.steps": "1", "schedule.warmup": "0"}
    checked = checked_run(
        adaptation.recipe,
        adaptation.deepspeed_config,
        {**settings, **until_known},
        world_size=dist.world_size(),
    )
    if not checked.specs[0].dev_splits:
        raise ConfigError(f"--task {adaptation.task}: has no dev split; there is nothing to compare by")
    return checked


def _cells(amount: Amount, num_examples: int) -> list[Cell]:
    """All runs; the two starts of a sample stand beside each other."""
    cells = []
    for fraction in amount.fractions:
        size = max(1, math.floor(fraction * num_examples + 1e-9))
        for sampling in range(amount.samplings):
            cells += [Cell(start=start, fraction=fraction, size=size, sampling=sampling) for start in STARTS]
    return cells


def _trials(
    adaptation: Adaptation, settings: Mapping[str, str], cells: Sequence[Cell], examples_per_step: int
) -> list[Trial]:
    """The checked run of each cell. Raises ConfigError with the problems of all."""
    from mtdnn_ds import dist
    from mtdnn_ds.experiments.trials import Trial

    problems = Problems()
    trials = []
    for cell in cells:
        flags = {**settings, **_varied_settings(adaptation, cell, examples_per_step)}
        check = partial(
            checked_run, adaptation.recipe, adaptation.deepspeed_config, flags, world_size=dist.world_size()
        )
        checked = problems.check(check)
        if checked is not None:
            trials.append(Trial(name=cell.name, title=cell.title, run=checked))
    problems.refuse()
    return trials


def _varied_settings(adaptation: Adaptation, cell: Cell, examples_per_step: int) -> dict[str, str]:
    """What one run has of its own: sample, seed, start and length."""
    task, amount = adaptation.task, adaptation.amount
    varied = {
        f"tasks.{task}.train_fraction": f"{cell.fraction!r}",
        f"tasks.{task}.sample_seed": str(cell.sampling),
        "train.seed": str(cell.sampling),
    }
    if cell.start == FROM_RUN:
        varied |= {"init.run": adaptation.run_dir, "init.checkpoint": adaptation.checkpoint}
        if adaptation.head_of:
            varied["init.head_of"] = f"{{{task}: {adaptation.head_of}}}"

    if not {"train.steps", "train.epochs"} & set(adaptation.overrides):
        steps = steps_for_epochs(amount.epochs, {task: cell.size}, examples_per_step)
        varied["train.steps"] = str(max(amount.min_steps, steps))
    return varied


def report(folder: Path, spec: TaskSpec, cells: Sequence[Cell], results: Mapping[str, Scores]) -> None:
    """adaptation.csv and adaptation.html in `folder`, and the table of means and standard deviations."""
    from mtdnn_ds.report.experiments import write_adaptation
    from mtdnn_ds.report.tables import write_csv

    rows = []
    curves: dict[str, dict[int, list[float]]] = {start: {} for start in STARTS}
    for cell in cells:
        scores = results[cell.name]
        score = scores[max(scores)][spec.name]
        curves[cell.start].setdefault(cell.size, []).append(score)
        row = {"start": cell.start, "fraction": cell.fraction, "examples": cell.size}
        rows.append({**row, "sampling": cell.sampling, "score": score})

    metric = " and ".join(spec.metrics)
    samplings = 1 + max(cell.sampling for cell in cells)
    write_csv(folder / "adaptation.csv", rows)
    page = write_adaptation(folder, curves, title=f"{spec.name}, {samplings} samplings", metric=metric)

    log.info(f"\ndev {metric} of {spec.name}, mean and standard deviation over {samplings} samplings:")
    for line in _table({cell.fraction: cell.size for cell in cells}, curves):
        log.info(line)
    log.info(f"\nwritten: {folder / 'adaptation.csv'} and {page}")


def _table(sizes: Mapping[float, int], curves: Mapping[str, Mapping[int, Sequence[float]]]) -> list[str]:
    """A line a fraction: both starts, and their difference."""
    from mtdnn_ds.report.tables import mean_and_spread

    starts = "  ".join(f"{start:>17}" for start in STARTS)
    lines = [f"{'fraction':>9}  {'examples':>9}  {starts}  {'difference':>10}"]
    for fraction, size in sizes.items():
        from_run, plain = (sum(curves[start][size]) / len(curves[start][size]) for start in STARTS)
        values = "  ".join(f"{mean_and_spread(curves[start][size]):>17}" for start in STARTS)
        lines.append(f"{fraction:>9.1%}  {size:>9,}  {values}  {from_run - plain:>+10.4f}")
    return lines
