"""A run and its start: from recipe, tasks and checkpoint to data, model, engine and open log. Takes no step (train/trainer.py does)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mtdnn_ds import dist
from mtdnn_ds.checkpoint import find as checkpoint
from mtdnn_ds.checkpoint import restore as elastic
from mtdnn_ds.checkpoint.save import Saver, space_note
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import dump_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.loader import LoaderSettings
from mtdnn_ds.data.plan.step_plan import StepPlan
from mtdnn_ds.faults.slurm_time_limit import TimeLimit, job_end
from mtdnn_ds.files import reason
from mtdnn_ds.losses.adaptive import AdaptiveScales, adaptive_scales
from mtdnn_ds.losses.distillation import Distillation
from mtdnn_ds.losses.forms import Losses, build_losses
from mtdnn_ds.model.freeze import freeze
from mtdnn_ds.model.multitask import MultiTaskNet, parameter_groups
from mtdnn_ds.monitor.console import Progress
from mtdnn_ds.monitor.flops import StepCost, step_cost
from mtdnn_ds.monitor.run_monitor import Event, RunMonitor
from mtdnn_ds.runs.folder import RunFolder, plan_record, write_run_files
from mtdnn_ds.runs.setup import (
    RunData,
    build_plan,
    idle_tasks,
    loader_settings,
    prepare_run_data,
    run_model,
    settings_dict,
)
from mtdnn_ds.runs.state import PARTITION, RunState, check_fit
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teacher_outputs import Lesson, find_lessons, fingerprints, taught
from mtdnn_ds.train.engine import start_engine
from mtdnn_ds.train.init.from_hf_heads import begin_with_heads
from mtdnn_ds.train.init.from_run import begin_with, find_source
from mtdnn_ds.train.optimizer import build_optimizer
from mtdnn_ds.train.regularizers.regularizer import Regularizer, build_regularizer
from mtdnn_ds.train.regularizers.sharing_penalty import SharingPenalty, sharing_penalty

COMPUTE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "autocast_bf16": torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Everything a run works with. `state` alone changes, and is what a checkpoint keeps; the rest follows from the recipe."""

    recipe: Recipe
    folder: RunFolder
    data: RunData
    plan: StepPlan
    settings: LoaderSettings
    losses: Losses
    engine: Any
    penalty: SharingPenalty | None
    regularizer: Regularizer | None
    scales: AdaptiveScales | None  # of the losses; None where they do not adapt
    cost: StepCost
    precision: str
    state: RunState
    progress: Progress
    monitor: RunMonitor | None  # rank 0 only
    evaluate_after: Collection[int]  # steps
    saver: Saver
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
    quiet: bool,
) -> Run:
    """A run before its next step: data, plan, model, engine, open log. Collective: every rank calls this, with equal arguments."""
    folder, speaks = RunFolder(output_dir), dist.is_main() and not quiet
    say = Progress(num_steps=0, is_main=speaks).say
    for note in deepspeed.notes:
        say(note)
    found = checkpoint.resume_from(resume, folder.path, say)
    source = find_source(recipe) if found is None else None
    data = prepare_run_data(recipe, specs, say)
    plan = build_plan(recipe, data)
    for note in idle_tasks(plan):
        say(note)
    lessons = find_lessons(recipe, data, say)
    state = fresh_state(recipe, plan, deepspeed, lessons)
    if found is not None:
        check_fit(str(found.path), found.run_state, state, plan)
    saved = None if found is None else elastic.open_elsewhere(found, state.topology)
    for note in [] if found is None else elastic.changes(found.run_state, state.recipe, state.topology):
        say(note)
    taught_data = taught(recipe, data, lessons, device=device, say=say)
    compute_dtype = COMPUTE_DTYPES[deepspeed.precision]
    model = run_model(recipe, data, device=device, compute_dtype=compute_dtype)
    for note in (
        *model.notes,
        *freeze(model, recipe.train.freeze),
        *([] if source is None else [begin_with(model, specs, source)]),
    ):
        say(note)
    for note in begin_with_heads(model, specs, recipe) if found is None else ():
        say(note)
    regularizer = _regularizer(recipe, model, data, device=device, compute_dtype=compute_dtype, say=say)
    scales = _adaptive_scales(recipe, data)
    settings = loader_settings(
        recipe,
        hidden_size=model.encoder.hidden_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        device=device,
    )
    engine = _engine(recipe, model, deepspeed, say=say)
    if found is not None:
        elastic.restore_engine(engine, found, saved)
        state = replace(RunState.from_json(found.run_state), recipe=state.recipe, topology=state.topology)
        if regularizer is not None and regularizer.momentum is not None:
            regularizer.momentum.load(found.path)
        if scales is not None:
            scales.load_state_dict(state.loss_scales)
        if found.path.parent.resolve() != folder.checkpoints.resolve():
            state.best = {}  # the best weights stay in the other run's folder
        say(f"resuming after step {state.step} of {plan.total_steps} from {found.path}")
    monitor = _open_folder(folder, recipe, deepspeed, data, plan, state, engine, say)
    progress = Progress(num_steps=plan.total_steps, first_step=state.step, is_main=speaks)
    return Run(
        recipe=recipe,
        folder=folder,
        data=taught_data,
        plan=plan,
        settings=settings,
        losses=build_losses(
            data.layout, data.specs, engine.device, _distillation(recipe) if lessons else None
        ),
        engine=engine,
        penalty=sharing_penalty(engine, settings.sharing),
        regularizer=regularizer,
        scales=scales,
        cost=step_cost(model.encoder.config, precision=deepspeed.precision, device=device),
        precision=deepspeed.precision,
        state=state,
        progress=progress,
        monitor=monitor,
        evaluate_after=evaluate_after,
        saver=Saver(
            engine,
            folder.checkpoints,
            keep_last=recipe.train.keep_last,
            on_error=recipe.train.on_save_error,
            in_background=recipe.train.async_save,
            step=state.step,
            say=progress.say,
        ),
        limit=TimeLimit(end=job_end() if dist.is_main() else None, margin=recipe.train.time_margin),
    )


def fresh_state(
    recipe: Recipe, plan: StepPlan, deepspeed: ResolvedDeepSpeed, lessons: Sequence[Lesson]
) -> RunState:
    """The state of a run before its first step."""
    cut = {
        key: value
        for key, value in deepspeed.config["zero_optimization"].items()
        if key in PARTITION and value
    }
    cut |= {"offload_optimizer": True} if deepspeed.offload_optimizer else {}
    place = {
        "world_size": dist.world_size(),
        "zero_stage": deepspeed.zero_stage,
        "precision": deepspeed.precision,
    }
    return RunState(
        step=0,
        recipe=settings_dict(recipe),
        plan=plan.state_dict(0),
        topology={**cut, **place},
        teachers=fingerprints(lessons),
    )


def _distillation(recipe: Recipe) -> Distillation:
    return Distillation(temperature=recipe.distillation.temperature, weight=recipe.distillation.weight)


def _regularizer(
    recipe: Recipe,
    model: MultiTaskNet,
    data: RunData,
    *,
    device: torch.device,
    compute_dtype: torch.dtype,
    say: Callable[[str], None],
) -> Regularizer | None:
    regularizer, notes = build_regularizer(
        recipe.regularizer,
        model,
        specs=data.specs,
        layout=data.layout,
        seed=recipe.train.seed,
        compute_dtype=compute_dtype,
        device=device,
    )
    for note in notes:
        say(note)
    return regularizer


def _adaptive_scales(recipe: Recipe, data: RunData) -> AdaptiveScales | None:
    name = recipe.loss.scale
    if name not in ("uncertainty", "dwa", "random", "famo"):
        return None
    forms = [data.layout.terms[data.layout.terms_of(task)[0]].form for task in range(len(data.specs))]
    return adaptive_scales(
        name,
        is_regression=[form in ("score", "cosine") for form in forms],
        seed=recipe.train.seed,
        lr=recipe.loss.scale_lr,
        window=recipe.loss.scale_window,
        temperature=recipe.loss.scale_temperature,
    )


def _open_folder(
    folder: RunFolder,
    recipe: Recipe,
    deepspeed: ResolvedDeepSpeed,
    data: RunData,
    plan: StepPlan,
    state: RunState,
    engine: Any,
    say: Callable[[str], None],
) -> RunMonitor | None:
    """Write the run's own files and open its log, on rank 0. Collective: what fails there is raised on every rank."""
    opened: list[RunMonitor] = []

    def on_rank_0() -> None:
        checkpoint.tidy(folder.checkpoints, state.step, say)
        write_run_files(
            folder,
            recipe_yaml=dump_recipe(recipe),
            deepspeed_config=deepspeed.config,
            topology=state.topology,
            plan=plan_record(plan),
        )
        monitor = RunMonitor(
            folder.path,
            task_metrics={spec.name: data.metric_names(spec) for spec in data.specs},
            settings=settings_dict(recipe),
            recipe_text=dump_recipe(recipe) if recipe.board.text else None,
            last_step=state.step,
            write_events=_deepspeed_events(engine) if engine.monitor.enabled else None,
        )
        opened.append(monitor)
        if note := space_note(engine, folder.checkpoints, recipe.train.keep_last):
            say(note)
        if monitor.num_discarded_lines:
            say(
                f"metrics.jsonl: {monitor.num_discarded_lines} lines after step {state.step} moved to metrics.discarded.jsonl; their steps are repeated"
            )

    def guarded() -> None:
        try:
            on_rank_0()
        except OSError as error:
            raise ConfigError(
                f"--output_dir {folder.path}: cannot be written ({reason(error)}); free some space, or give another"
            ) from error

    dist.on_main(guarded)
    return opened[0] if opened else None


def _engine(recipe: Recipe, model: MultiTaskNet, deepspeed: ResolvedDeepSpeed, *, say: Any) -> Any:
    optimizer = build_optimizer(
        recipe.optimizer.name,
        parameter_groups(model, recipe.optimizer.weight_decay, recipe.optimizer.head_lr_factor),
        lr=recipe.optimizer.lr,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
        offloaded=deepspeed.offload_optimizer,
        say=say,
    )
    return start_engine(model, optimizer, deepspeed.config)


def _deepspeed_events(engine: Any) -> Callable[[list[Event]], None]:
    # DeepSpeed's own events count its nominal samples, and wandb drops a point whose step goes back: ours take the same count.
    return lambda events: engine.monitor.write_events(
        [(tag, value, engine.global_samples) for tag, value, _ in events]
    )
