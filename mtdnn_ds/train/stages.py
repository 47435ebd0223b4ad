"""Runs in stages: each a run in RUN/stages/NN_NAME that begins with another's weights. Takes no step.

Which stages are finished, begun or still to come is read from their checkpoints, so that a run goes on
wherever it was killed. What they have reached is in RUN/stages.json.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.find import find_checkpoint
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.errors import CheckpointError, UserError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.stages import Stage, by_stage, dump_stages
from mtdnn_ds.faults.heartbeat import announce
from mtdnn_ds.faults.watchdog.watch import joining, watching
from mtdnn_ds.files import replace_file, writing
from mtdnn_ds.monitor.console import silenced, text_table
from mtdnn_ds.runs.folder import RunFolder, write_keeping_old
from mtdnn_ds.runs.lock import locked
from mtdnn_ds.runs.score_scales import measured_recipe
from mtdnn_ds.runs.setup import build_plan, prepare_run_data
from mtdnn_ds.runs.state import check_fit
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teacher_outputs import find_teacher_outputs
from mtdnn_ds.train.engine import start_distributed
from mtdnn_ds.train.resume import fresh_state
from mtdnn_ds.train.trainer import train

RESULTS = "stages.json"

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _StageResult:
    """One stage's last evaluation and best scores, as stages.json has them; empty where it has none yet."""

    name: str
    folder: str  # inside the run folder
    source: str | None  # the stage it began with
    checkpoint: str | None  # of that stage
    steps: int  # done and saved
    total_steps: int
    metrics: Mapping[str, Mapping[str, float]]  # task -> metric -> value, after the last step
    scores: Mapping[str, float]  # task -> mean of its metrics
    best: Mapping[str, Mapping[str, float]]  # task or "average" -> {"score", "step"}


def stage_run(
    stage: Stage, specs: Sequence[TaskSpec], deepspeed: ResolvedDeepSpeed, output_dir: Path
) -> StageRun:
    """`stage` as a run in its folder below `output_dir`."""
    recipe = stage.recipe
    if stage.source is not None:
        init = recipe.init.model_copy(update={"run": str(output_dir / str(recipe.init.run))})
        recipe = recipe.model_copy(update={"init": init})

    return StageRun(
        stage=stage,
        recipe=recipe,
        specs=tuple(specs),
        deepspeed=deepspeed,
        folder=RunFolder(output_dir / stage.folder),
    )


def train_stages(runs: Sequence[StageRun], *, output_dir: Path) -> None:
    """Train all stages that are not finished, in their order. Collective: every rank calls this.

    Raises UserErrors for all stages together before the first one goes on. A stage that has a checkpoint is
    resumed.
    """
    stall_timeout = runs[0].recipe.train.stall_timeout
    with joining(stall_timeout):
        start_distributed()
    with watching(stall_timeout), locked(output_dir):
        _train_stages(runs, output_dir)


def _train_stages(runs: Sequence[StageRun], output_dir: Path) -> None:
    standings = _standings(runs, output_dir)
    dist.on_main(lambda: _write_recipe(output_dir, runs))

    for number, run in enumerate(runs, 1):
        name, standing = run.stage.name, standings[run.stage.name]
        heading = f"\n== stage {number} of {len(runs)}: {name}"
        if standing.is_finished:
            log.info(f"{heading} (finished, {standing.step:,} steps)")
            continue

        log.info(heading)
        announce(f"stage {name}, beginning")
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
    log.info("\ndev scores of all stages (a score is the mean of a task's metrics):")
    log.info(_format_results(_results(runs, standings)))
    log.info(f"\nrun folder: {output_dir}")
    log.info(f"TensorBoard: tensorboard --logdir {output_dir}")


def _standings(runs: Sequence[StageRun], output_dir: Path) -> dict[str, _Standing]:
    """How far every stage is; prepares the data of all. Raises what is wrong with any of them."""
    standings: dict[str, _Standing] = {}
    problems: dict[str, Sequence[str]] = {run.stage.name: () for run in runs}
    kinds: list[type[UserError]] = []
    for run in runs:
        try:
            standings[run.stage.name] = _standing(run)
        except UserError as error:
            problems[run.stage.name] = error.problems
            kinds.append(type(error))

    lines = by_stage(problems)
    if lines:
        raise kinds[0](lines)
    lines = _order_problems(runs, standings, output_dir)
    if lines:
        raise CheckpointError(lines)
    return standings


def _standing(run: StageRun) -> _Standing:
    data = prepare_run_data(run.recipe, run.specs)
    plan = build_plan(run.recipe, data)

    checkpoint = dist.on_main(lambda: find_checkpoint(run.folder.checkpoints))
    if checkpoint is None:
        return _Standing(step=0, total_steps=plan.total_steps, run_state=None)

    with silenced():  # the run itself says this again
        teacher_outputs = find_teacher_outputs(run.recipe, data)
    fresh = fresh_state(measured_recipe(run.recipe, data.specs), plan, run.deepspeed, teacher_outputs)
    check_fit(str(checkpoint.path), checkpoint.run_state, fresh, plan)
    return _Standing(step=checkpoint.step, total_steps=plan.total_steps, run_state=checkpoint.run_state)


def _order_problems(
    runs: Sequence[StageRun], standings: Mapping[str, _Standing], output_dir: Path
) -> list[str]:
    """Checkpoints that do not belong to these stages in this order."""
    lines = []
    for run in runs:
        name, source = run.stage.name, run.stage.source
        if source is not None and standings[name].step and not standings[source].is_finished:
            lines.append(
                f"{run.folder.path}: stage {name} has begun with the weights of stage {source}, "
                "which is not finished; "
                f"remove this folder to train {name} again, or restore the other's checkpoints"
            )

    known = {run.folder.path.name for run in runs}
    stages = output_dir / "stages"
    for name in sorted(path.name for path in stages.glob("*") if path.is_dir()):
        if name not in known:
            lines.append(
                f"{stages / name}: no stage of this recipe has this number and name; "
                "resume with the recipe it was run with, or move it away"
            )
    return lines


def _newest_state(run: StageRun) -> Mapping[str, Any] | None:
    checkpoint = dist.on_main(lambda: find_checkpoint(run.folder.checkpoints))
    if checkpoint is None:
        return None
    return checkpoint.run_state


def _results(runs: Sequence[StageRun], standings: Mapping[str, _Standing]) -> list[_StageResult]:
    results = []
    for run in runs:
        standing = standings[run.stage.name]
        state = standing.run_state or {}
        evaluation = state.get("evaluation") or {}

        results.append(
            _StageResult(
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
    stages = [asdict(result) for result in _results(runs, standings)]
    with writing(f"{output_dir}: the scores of all stages"):
        replace_file(output_dir / RESULTS, json.dumps({"stages": stages}, indent=1))


def _format_results(results: Sequence[_StageResult]) -> str:
    """A line for each task in each stage, those of a task next to each other."""
    tasks = dict.fromkeys(task for result in results for task in result.scores)
    rows = [_row(task, result) for task in tasks for result in results if task in result.scores]
    table = text_table(("task", "stage", "score", "best", "at step"), rows, names=(0, 1))

    unscored = [result.name for result in results if not result.scores]
    if unscored:
        table += f"\nwithout dev scores: {', '.join(unscored)}"
    return table


def _row(task: str, result: _StageResult) -> tuple[str, ...]:
    best, at_step = "-", "-"
    if task in result.best:
        best = f"{result.best[task]['score']:.4f}"
        at_step = f"{int(result.best[task]['step']):,}"
    return (task, result.name, f"{result.scores[task]:.4f}", best, at_step)
