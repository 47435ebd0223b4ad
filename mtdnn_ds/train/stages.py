"""Runs in stages: each an ordinary run in RUN/stages/NN_NAME that begins with another one's weights. Trains none of their steps itself.

Which stages are finished, begun or still to come is read from their checkpoints, so that a run goes on wherever it was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.find import find_checkpoint
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.errors import CheckpointError, UserError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.stages import Stage, by_stage, dump_stages
from mtdnn_ds.faults.watchdog.watch import joining, watching
from mtdnn_ds.files import writing
from mtdnn_ds.monitor.console import Progress
from mtdnn_ds.runs.folder import RunFolder, write_keeping_old
from mtdnn_ds.runs.lock import locked
from mtdnn_ds.runs.setup import build_plan, prepare_run_data
from mtdnn_ds.runs.state import check_fit
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teacher_outputs import find_lessons
from mtdnn_ds.train.engine import start_distributed
from mtdnn_ds.train.stage_results import StageResult, format_stages, write_results
from mtdnn_ds.train.start import fresh_state
from mtdnn_ds.train.trainer import train

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRun:
    """A stage that has been checked; `recipe.init.run` is a path like any other."""

    stage: Stage
    recipe: Recipe
    specs: tuple[TaskSpec, ...]
    deepspeed: ResolvedDeepSpeed
    folder: RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class _Standing:
    """How far a stage is."""

    step: int  # of its newest checkpoint; 0: none
    total_steps: int
    run_state: Mapping[str, Any] | None

    @property
    def is_finished(self) -> bool:
        return self.step >= self.total_steps


def stage_run(
    stage: Stage, specs: Sequence[TaskSpec], deepspeed: ResolvedDeepSpeed, output_dir: Path
) -> StageRun:
    """`stage` as a run in its folder below `output_dir`."""
    recipe = stage.recipe
    if stage.source is not None:
        recipe = recipe.model_copy(
            update={"init": recipe.init.model_copy(update={"run": str(output_dir / str(recipe.init.run))})}
        )
    return StageRun(
        stage=stage,
        recipe=recipe,
        specs=tuple(specs),
        deepspeed=deepspeed,
        folder=RunFolder(output_dir / stage.folder),
    )


def train_stages(runs: Sequence[StageRun], *, output_dir: Path) -> None:
    """Train all stages that are not finished, in their order. Collective: every rank calls this.

    Raises UserErrors for all stages together before the first one goes on. A stage that has a checkpoint is resumed.
    """
    with joining(runs[0].recipe.train.stall_timeout):
        start_distributed()
    with (
        watching(runs[0].recipe.train.stall_timeout),
        locked(output_dir, Progress(num_steps=0, is_main=dist.is_main()).say),
    ):
        _train_stages(runs, output_dir)


def _train_stages(runs: Sequence[StageRun], output_dir: Path) -> None:
    say = Progress(num_steps=0, is_main=dist.is_main()).say
    standings = _standings(runs, output_dir, say)
    dist.on_main(lambda: _write_recipe(output_dir, runs))
    for number, run in enumerate(runs, 1):
        name, standing = run.stage.name, standings[run.stage.name]
        say(
            f"\n== stage {number} of {len(runs)}: {name}"
            + (f" (finished, {standing.step:,} steps)" if standing.is_finished else "")
        )
        if standing.is_finished:
            continue
        train(
            run.recipe,
            run.specs,
            run.deepspeed,
            output_dir=run.folder.path,
            resume="auto" if standing.step else "none",
        )
        standings[name] = replace(standing, step=standing.total_steps, run_state=_newest_state(run))
        dist.on_main(lambda: _write_results(output_dir, runs, standings))
    dist.on_main(lambda: _write_results(output_dir, runs, standings))
    say("\ndev scores of all stages (a score is the mean of a task's metrics):")
    say(format_stages(_results(runs, standings)))
    say(f"\nrun folder: {output_dir}")
    say(f"TensorBoard: tensorboard --logdir {output_dir}")


def _standings(runs: Sequence[StageRun], output_dir: Path, say: Say) -> dict[str, _Standing]:
    """How far every stage is; prepares the data of all. Raises what is wrong with any of them."""
    standings: dict[str, _Standing] = {}
    problems: dict[str, Sequence[str]] = {}
    kinds: list[type[UserError]] = []
    for run in runs:
        try:
            standings[run.stage.name] = _standing(run, say)
        except UserError as error:
            problems[run.stage.name] = error.problems
            kinds.append(type(error))
    lines = by_stage({name: problems.get(name, ()) for name in (run.stage.name for run in runs)})
    if not lines:
        lines = _order_problems(runs, standings, output_dir)
        kinds.append(CheckpointError)
    if lines:
        raise kinds[0](lines)
    return standings


def _standing(run: StageRun, say: Say) -> _Standing:
    data = prepare_run_data(run.recipe, run.specs, say)
    plan = build_plan(run.recipe, data)
    found = dist.on_main(lambda: find_checkpoint(run.folder.checkpoints))
    if found is not None:
        check_fit(
            str(found.path),
            found.run_state,
            fresh_state(run.recipe, plan, run.deepspeed, find_lessons(run.recipe, data, lambda text: None)),
            plan,
        )
    return _Standing(
        step=found.step if found else 0,
        total_steps=plan.total_steps,
        run_state=found.run_state if found else None,
    )


def _order_problems(
    runs: Sequence[StageRun], standings: Mapping[str, _Standing], output_dir: Path
) -> list[str]:
    """Checkpoints that do not belong to these stages in this order."""
    lines = [
        f"{run.folder.path}: stage {run.stage.name} has begun with the weights of stage {run.stage.source}, which is not finished; "
        f"remove this folder to train {run.stage.name} again, or restore the other's checkpoints"
        for run in runs
        if run.stage.source is not None
        and standings[run.stage.name].step
        and not standings[run.stage.source].is_finished
    ]
    known = {run.folder.path.name for run in runs}
    there = sorted(path.name for path in (output_dir / "stages").glob("*") if path.is_dir())
    return lines + [
        f"{output_dir / 'stages' / name}: no stage of this recipe has this number and name; resume with the recipe it was run with, or move it away"
        for name in there
        if name not in known
    ]


def _newest_state(run: StageRun) -> Mapping[str, Any] | None:
    found = dist.on_main(lambda: find_checkpoint(run.folder.checkpoints))
    return None if found is None else found.run_state


def _results(runs: Sequence[StageRun], standings: Mapping[str, _Standing]) -> list[StageResult]:
    results = []
    for run in runs:
        standing = standings[run.stage.name]
        state = standing.run_state or {}
        evaluation = state.get("evaluation") or {}
        results.append(
            StageResult(
                name=run.stage.name,
                folder=run.stage.folder,
                source=run.stage.source,
                checkpoint=run.recipe.init.checkpoint if run.stage.source else None,
                steps=standing.step,
                total_steps=standing.total_steps,
                metrics=evaluation.get("metrics", {}),
                scores=evaluation.get("scores", {}),
                best=state.get("best", {}),
            )
        )
    return results


def _write_recipe(output_dir: Path, runs: Sequence[StageRun]) -> None:
    with writing(f"{output_dir}: recipe.yaml"):
        write_keeping_old(output_dir / "recipe.yaml", dump_stages([run.stage for run in runs]))


def _write_results(output_dir: Path, runs: Sequence[StageRun], standings: Mapping[str, _Standing]) -> None:
    with writing(f"{output_dir}: the scores of all stages"):
        write_results(output_dir, _results(runs, standings))
