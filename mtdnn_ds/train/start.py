"""A run and its start: from a recipe to data, plan, model, engine, log. Takes no step (trainer.py does)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.find import resume_from, tidy
from mtdnn_ds.checkpoint.save import space_note
from mtdnn_ds.checkpoint.saver import Saver
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import dump_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.loader import LoaderSettings
from mtdnn_ds.data.plan.task_part import Plan
from mtdnn_ds.faults.slurm_time_limit import TimeLimit, job_end
from mtdnn_ds.files import reason
from mtdnn_ds.losses.distillation import Distillation
from mtdnn_ds.losses.forms import Losses, build_losses
from mtdnn_ds.model.multitask import parameter_groups
from mtdnn_ds.monitor.console import is_speaking
from mtdnn_ds.monitor.flops import StepCost, step_cost
from mtdnn_ds.monitor.progress import Progress
from mtdnn_ds.monitor.run_monitor import Event, RunMonitor
from mtdnn_ds.runs.folder import RunFolder, plan_record, write_run_files
from mtdnn_ds.runs.prediction_space import log_prediction_spaces
from mtdnn_ds.runs.score_scales import measured_recipe
from mtdnn_ds.runs.setup import (
    RunData,
    build_plan,
    idle_tasks,
    loader_settings,
    prepare_run_data,
    settings_dict,
)
from mtdnn_ds.runs.state import RunState
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teacher_outputs import find_teacher_outputs, with_soft_targets
from mtdnn_ds.train.engine import start_engine
from mtdnn_ds.train.init.from_run import find_source
from mtdnn_ds.train.model import TrainedModel, build_trained_model
from mtdnn_ds.train.optimizer import build_optimizer
from mtdnn_ds.train.regularizers.sharing_penalty import SharingPenalty, sharing_penalty
from mtdnn_ds.train.resume import fresh_state, open_resume_point, restored_state
from mtdnn_ds.train.step.idle_heads import IdleHeads, idle_heads
from mtdnn_ds.train.step.step_read import StepRead

COMPUTE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "autocast_bf16": torch.bfloat16,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Everything a run works with.

    `state` alone changes, and is what a checkpoint keeps; the rest follows from the recipe.
    """

    recipe: Recipe
    precision: str
    evaluate_after: Collection[int]  # steps

    # data and plan
    data: RunData
    plan: Plan
    settings: LoaderSettings

    # model and engine
    model: TrainedModel
    losses: Losses
    # Of each task the loss of a uniform guess, in nats; () unless loss.scale=log_classes.
    log_spaces: tuple[float, ...]
    engine: Any
    read: StepRead
    penalty: SharingPenalty | None
    idle_heads: IdleHeads | None
    state: RunState

    # what the run leaves and shows
    folder: RunFolder
    saver: Saver
    monitor: RunMonitor | None  # rank 0 only
    progress: Progress
    cost: StepCost
    limit: TimeLimit  # of the job; grows with the longest step and save. Known on rank 0 only


def start_run(
    recipe: Recipe,
    specs: Sequence[TaskSpec],
    deepspeed: ResolvedDeepSpeed,
    *,
    device: torch.device,
    output_dir: Path,
    resume: str,
    evaluate_after: Collection[int],
) -> Run:
    """A run before its next step. Collective: every rank calls this, with equal arguments.

    Raises ConfigError, DataError and CheckpointError.
    """
    for note in deepspeed.notes:
        log.info(note)
    folder = RunFolder(output_dir)
    compute_dtype = COMPUTE_DTYPES[deepspeed.precision]

    # Data: what the run goes on from or begins with, and the rows of every task, tokenized.
    checkpoint = resume_from(resume, folder.path)
    source = None
    if checkpoint is None:
        source = find_source(recipe)
    data = prepare_run_data(recipe, specs)
    recipe, specs = measured_recipe(recipe, data.specs), data.specs

    # Plan: which examples make up each step, and where in it the run stands.
    plan = build_plan(recipe, data)
    for note in idle_tasks(plan):
        log.info(note)
    teacher_outputs = find_teacher_outputs(recipe, data)
    fresh = fresh_state(recipe, plan, deepspeed, teacher_outputs)
    point = open_resume_point(checkpoint, fresh, plan)
    taught_data = with_soft_targets(recipe, data, teacher_outputs, device=device)

    # Model: encoder and heads with their first weights, what is added to the losses, how its micro-batches
    # are cut.
    model = build_trained_model(
        recipe,
        specs,
        data,
        source,
        resumes=point is not None,
        device=device,
        compute_dtype=compute_dtype,
        zero_stage=deepspeed.zero_stage,
    )
    settings = loader_settings(
        recipe,
        hidden_size=model.net.encoder.hidden_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        device=device,
    )

    # Engine: the optimizer, ZeRO around both, and the state that was saved.
    engine = _engine(recipe, model, deepspeed)
    state = restored_state(engine, model, point, fresh, folder.checkpoints)
    if point is not None:
        log.info(f"resuming after step {state.step} of {plan.total_steps} from {point.checkpoint.path}")

    # Monitor: the run's folder, its log and board, the console.
    monitor = _open_folder(folder, recipe, deepspeed, data, plan, state, engine)
    saver = Saver(
        engine,
        folder.checkpoints,
        keep_last=recipe.train.keep_last,
        on_error=recipe.train.on_save_error,
        in_background=recipe.train.async_save,
        step=state.step,
    )

    return Run(
        recipe=recipe,
        precision=deepspeed.precision,
        evaluate_after=evaluate_after,
        data=taught_data,
        plan=plan,
        settings=settings,
        model=model,
        losses=_losses(recipe, data, engine, distils=bool(teacher_outputs)),
        log_spaces=_log_spaces(recipe, data, model),
        engine=engine,
        read=StepRead(engine),
        penalty=sharing_penalty(engine, settings.sharing),
        idle_heads=idle_heads(engine, recipe.optimizer.idle_heads),
        state=state,
        folder=folder,
        saver=saver,
        monitor=monitor,
        progress=Progress(num_steps=plan.total_steps, first_step=state.step, is_main=is_speaking()),
        cost=step_cost(model.net.encoder.config, precision=deepspeed.precision, device=device),
        limit=_time_limit(recipe),
    )


def _losses(recipe: Recipe, data: RunData, engine: Any, *, distils: bool) -> Losses:
    distillation = None
    if distils:
        settings = recipe.distillation
        distillation = Distillation(temperature=settings.temperature, weight=settings.weight)
    return build_losses(data.layout, data.specs, engine.device, distillation)


def _log_spaces(recipe: Recipe, data: RunData, model: TrainedModel) -> tuple[float, ...]:
    if recipe.loss.scale != "log_classes":
        return ()
    return log_prediction_spaces(data, vocabulary=model.net.encoder.config.vocab_size)


def _engine(recipe: Recipe, model: TrainedModel, deepspeed: ResolvedDeepSpeed) -> Any:
    settings = recipe.optimizer
    if deepspeed.offload_optimizer:
        log.info(f"offloaded optimizer states step on {torch.get_num_threads()} CPU threads a rank")
    optimizer = build_optimizer(
        settings.name,
        parameter_groups(model.net, settings.weight_decay, settings.head_lr_factor),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        offloaded=deepspeed.offload_optimizer,
    )
    return start_engine(model.net, optimizer, deepspeed.config)


def _open_folder(
    folder: RunFolder,
    recipe: Recipe,
    deepspeed: ResolvedDeepSpeed,
    data: RunData,
    plan: Plan,
    state: RunState,
    engine: Any,
) -> RunMonitor | None:
    """Write the run's own files and open its log, on rank 0.

    Collective: what fails there is raised on every rank.
    """
    opened: list[RunMonitor] = []  # a monitor cannot be sent to other ranks, as what on_main returns is

    def on_rank_0() -> None:
        recipe_yaml = dump_recipe(recipe)
        tidy(folder.checkpoints, state.step)
        write_run_files(
            folder,
            recipe_yaml=recipe_yaml,
            deepspeed_config=deepspeed.config,
            topology=state.topology,
            plan=plan_record(plan, data.leaks),
        )

        monitor = RunMonitor(
            folder.path,
            task_metrics={spec.name: data.metric_names(spec) for spec in data.specs},
            settings=settings_dict(recipe),
            recipe_text=recipe_yaml if recipe.board.text else None,
            last_step=state.step,
            write_events=_deepspeed_events(engine),
        )
        opened.append(monitor)

        note = space_note(engine, folder.checkpoints, recipe.train.keep_last)
        if note is not None:
            log.info(note)
        if monitor.num_discarded_lines:
            log.info(
                f"metrics.jsonl: {monitor.num_discarded_lines} lines after step {state.step} moved to "
                "metrics.discarded.jsonl; their steps are repeated"
            )

    def guarded() -> None:
        try:
            on_rank_0()
        except OSError as error:
            raise ConfigError(
                f"--output_dir {folder.path}: cannot be written ({reason(error)}); "
                "free some space, or give another"
            ) from error

    dist.on_main(guarded)
    if not opened:
        return None
    return opened[0]


def _deepspeed_events(engine: Any) -> Callable[[list[Event]], None] | None:
    """What gives our points to DeepSpeed's monitors, if its JSON switches one on."""
    if not engine.monitor.enabled:
        return None

    def write(events: list[Event]) -> None:
        # DeepSpeed's own events count its nominal samples, and wandb drops a point whose step goes back: ours
        # take the same count.
        engine.monitor.write_events([(tag, value, engine.global_samples) for tag, value, _ in events])

    return write


def _time_limit(recipe: Recipe) -> TimeLimit:
    end = None
    if dist.is_main():
        end = job_end()
    return TimeLimit(end=end, margin=recipe.train.time_margin)
