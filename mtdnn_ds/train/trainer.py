"""The training loop: plan -> micro-batches -> engine -> log, evaluate, keep the best, save. Calls the other files of train/; none calls back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtdnn_ds import dist
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.load import dump_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.loader import LoaderSettings, StepBatches, TrainLoader
from mtdnn_ds.data.plan import StepPlan
from mtdnn_ds.losses.distillation import Distillation
from mtdnn_ds.losses.forms import Losses, build_losses
from mtdnn_ds.losses.objective import step_loss, task_means, task_scales
from mtdnn_ds.model.freeze import freeze
from mtdnn_ds.model.multitask import MultiTaskModel, parameter_groups
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train import checkpoint
from mtdnn_ds.train.distillation import find_lessons, fingerprints, taught
from mtdnn_ds.train.engine import StepResult, optimizer_step, set_learning_rate, start_distributed, start_engine
from mtdnn_ds.train.evaluate import evaluate
from mtdnn_ds.train.init import begin_with, find_source
from mtdnn_ds.train.monitor import EvalRecord, Event, RunMonitor, StepRecord, check_monitors
from mtdnn_ds.train.optimizer import build_optimizer
from mtdnn_ds.train.penalty import SharingPenalty, sharing_penalty
from mtdnn_ds.train.progress import Progress
from mtdnn_ds.train.results import show_results
from mtdnn_ds.train.run_folder import RunFolder, write_run_files
from mtdnn_ds.train.schedule import learning_rate, num_warmup_steps
from mtdnn_ds.train.setup import RunData, build_plan, idle_tasks, loader_settings, prepare_run_data, run_model, settings_dict
from mtdnn_ds.train.state import RunState, check_fit
from mtdnn_ds.train.throughput import StepCost, step_cost
from mtdnn_ds.train.weights import save_best

COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "autocast_bf16": torch.bfloat16}


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
    cost: StepCost
    precision: str
    state: RunState
    progress: Progress
    monitor: RunMonitor | None  # rank 0 only
    evaluate_after: Collection[int]  # steps


def train(
    recipe: Recipe,
    specs: Sequence[TaskSpec],
    deepspeed: ResolvedDeepSpeed,
    *,
    output_dir: Path,
    resume: str,
    evaluate_after: Collection[int] = (),
    quiet: bool = False,
) -> None:
    """Train a recipe to its last step, from the beginning or from a checkpoint. Collective: every rank calls this.

    `evaluate_after`: steps beside those of train.eval_every. `quiet`: nothing is printed; the run folder is the same.
    Raises UserErrors: ConfigError, DataError and CheckpointError before the first step, TrainingError after it.
    """
    check_monitors(deepspeed.config)
    device = start_distributed()
    run = _start(recipe, specs, deepspeed, device=device, output_dir=output_dir, resume=resume, evaluate_after=evaluate_after, quiet=quiet)
    succeeded = False
    try:
        _all_steps(run)
        succeeded = True
    finally:
        run.progress.close()
        if run.monitor is not None:
            run.monitor.close(succeeded=succeeded)
    show_results(run.data, run.state, run.folder, say=run.progress.say)


def _start(
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
    topology = {"world_size": dist.world_size(), "zero_stage": deepspeed.zero_stage, "precision": deepspeed.precision}
    state = RunState(step=0, recipe=settings_dict(recipe), plan=plan.state_dict(0), topology=topology, teachers=fingerprints(lessons))
    if found is not None:
        check_fit(str(found.path), found.run_state, state, plan)
    taught_data = taught(recipe, data, lessons, device=device, say=say)
    model = run_model(recipe, data, device=device, compute_dtype=COMPUTE_DTYPES[deepspeed.precision])
    for note in (*model.notes, *freeze(model, recipe.train.freeze), *([] if source is None else [begin_with(model, specs, source)])):
        say(note)
    settings = loader_settings(recipe, hidden_size=model.encoder.hidden_size, rank=dist.rank(), world_size=dist.world_size(), device=device)
    engine = _engine(recipe, model, deepspeed, say=say)
    if found is not None:
        checkpoint.load_engine(engine, found)
        state = RunState.from_json(found.run_state)
        if found.path.parent.resolve() != folder.checkpoints.resolve():
            state.best = {}  # the best weights stay in the other run's folder
        say(f"resuming after step {state.step} of {plan.total_steps} from {found.path}")
    monitor = _open_folder(folder, recipe, deepspeed, data, state, engine, say)
    return Run(
        recipe=recipe,
        folder=folder,
        data=taught_data,
        plan=plan,
        settings=settings,
        losses=build_losses(data.layout, data.specs, engine.device, _distillation(recipe) if lessons else None),
        engine=engine,
        penalty=sharing_penalty(engine, settings.sharing),
        cost=step_cost(model.encoder.config, precision=deepspeed.precision, device=device),
        precision=deepspeed.precision,
        state=state,
        progress=Progress(num_steps=plan.total_steps, first_step=state.step, is_main=speaks),
        monitor=monitor,
        evaluate_after=evaluate_after,
    )


def _distillation(recipe: Recipe) -> Distillation:
    return Distillation(temperature=recipe.distillation.temperature, weight=recipe.distillation.weight)


def _open_folder(
    folder: RunFolder, recipe: Recipe, deepspeed: ResolvedDeepSpeed, data: RunData, state: RunState, engine: Any, say: Callable[[str], None]
) -> RunMonitor | None:
    """Write the run's own files and open its log, on rank 0. Collective: what fails there is raised on every rank."""
    opened: list[RunMonitor] = []

    def on_rank_0() -> None:
        checkpoint.tidy(folder.checkpoints, state.step, say)
        write_run_files(folder, recipe_yaml=dump_recipe(recipe), deepspeed_config=deepspeed.config, topology=state.topology)
        monitor = RunMonitor(
            folder.path,
            task_metrics={spec.name: data.metric_names(spec) for spec in data.specs},
            settings=settings_dict(recipe),
            last_step=state.step,
            write_events=_deepspeed_events(engine) if engine.monitor.enabled else None,
        )
        opened.append(monitor)
        if monitor.num_discarded_lines:
            say(
                f"metrics.jsonl: {monitor.num_discarded_lines} lines after step {state.step} moved to metrics.discarded.jsonl; their steps are repeated"
            )

    dist.on_main(on_rank_0)
    return opened[0] if opened else None


def _engine(recipe: Recipe, model: MultiTaskModel, deepspeed: ResolvedDeepSpeed, *, say: Any) -> Any:
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
    return lambda events: engine.monitor.write_events([(tag, value, engine.global_samples) for tag, value, _ in events])


def _all_steps(run: Run) -> None:
    recipe, state, total_steps = run.recipe, run.state, run.plan.total_steps
    loader = TrainLoader(
        run.plan,
        run.data.train_sets,
        run.data.layout,
        run.settings,
        first_step=state.step + 1,
        last_step=total_steps,
    )
    with loader:
        for batches in loader:
            _one_step(run, batches, loader)
            step = state.step
            if step == total_steps or step in run.evaluate_after or (recipe.train.eval_every and step % recipe.train.eval_every == 0):
                _evaluate(run)
            if step == total_steps or (recipe.train.save_every and step % recipe.train.save_every == 0):
                checkpoint.save_checkpoint(
                    run.engine, run.folder.checkpoints, step=step, run_state=state.to_json(), keep_last=recipe.train.keep_last
                )


def _task_scales(run: Run, counts_N: np.ndarray) -> np.ndarray:
    scale = run.recipe.loss.scale
    return task_scales(
        counts_N,
        scale if isinstance(scale, str) else "explicit",
        num_classes=[len(spec.labels) for spec in run.data.specs],
        explicit=[spec.loss_scale for spec in run.data.specs],
    )


def _one_step(run: Run, batches: StepBatches, loader: TrainLoader) -> None:
    begin, waited = time.perf_counter(), loader.take_wait_seconds()
    lr = _learning_rate(run, batches.step)
    set_learning_rate(run.engine, lr)
    result = optimizer_step(
        run.engine,
        batches.micro_batches,
        unit_counts=batches.unit_counts,
        task_scales=_task_scales(run, batches.task_counts),
        losses=run.losses,
        layout=run.data.layout,
        step=batches.step,
        seed=run.recipe.train.seed,
        fp16=run.precision == "fp16",
        describe=run.data.describe,
        say=run.progress.say,
        penalty=run.penalty,
    )
    run.state.step = batches.step
    run.state.plan = run.plan.state_dict(batches.step)
    record = _record(run, batches, result, lr=lr, seconds=time.perf_counter() - begin + waited, waited=waited)
    if run.monitor is not None:
        run.monitor.write(record)
    run.progress.update(step=record.step, loss=record.loss, tokens_per_second=record.tokens_per_second)


def _learning_rate(run: Run, step: int) -> float:
    schedule, total_steps = run.recipe.schedule, run.plan.total_steps
    return learning_rate(
        step,
        name=schedule.name,
        peak=run.recipe.optimizer.lr,
        total_steps=total_steps,
        warmup_steps=num_warmup_steps(schedule.warmup, total_steps),
        final_lr_ratio=schedule.final_lr_ratio,
        power=schedule.power,
    )


def _record(run: Run, batches: StepBatches, result: StepResult, *, lr: float, seconds: float, waited: float) -> StepRecord:
    layout, counts_N = run.data.layout, batches.task_counts
    names = layout.task_names
    means_N = task_means(result.totals, result.units, layout.task_of_term, len(names))
    return StepRecord(
        step=batches.step,
        loss=step_loss(result.totals, result.coefficients) + result.penalty,
        penalty=result.penalty,
        task_loss={name: float(mean) for name, mean in zip(names, means_N, strict=True) if not np.isnan(mean)},
        task_examples={name: int(count) for name, count in zip(names, counts_N, strict=True) if count},
        lr=lr,
        grad_norm=result.grad_norm,
        loss_scale=result.loss_scale,
        skipped=result.skipped,
        tokens=batches.tokens,
        tokens_per_second=batches.tokens / seconds,
        padding_efficiency=batches.padding_efficiency,
        rank_imbalance=batches.rank_imbalance,
        micro_batches=len(batches.micro_batches),
        seconds=seconds,
        mfu=run.cost.mfu(
            tokens=batches.tokens, sum_squared_lengths=batches.sum_squared_lengths, seconds=seconds, num_devices=dist.world_size()
        ),
        wait_fraction=waited / seconds,
    )


def _evaluate(run: Run) -> None:
    state = run.state
    evaluation = evaluate(run.engine, run.data.specs, run.data.layout, run.data.examples, run.settings, run.engine.device)
    state.evaluation, state.evaluated_at = evaluation, state.step
    if not evaluation.metrics:
        run.progress.say_once("no task has a dev split: nothing is evaluated, and no best checkpoint is kept")
        return
    scores = {**evaluation.scores, "average": evaluation.average}
    winners = [name for name, score in scores.items() if name not in state.best or score > state.best[name]["score"]]
    if winners:
        save_best(run.engine, run.folder.best, winners=winners, step=state.step, metrics=evaluation.metrics)
        state.best.update({name: {"score": scores[name], "step": state.step} for name in winners})
    if run.monitor is not None:
        run.monitor.write(EvalRecord(step=state.step, eval=evaluation.metrics, average=evaluation.average))
    run.progress.say(
        f"step {state.step}: dev average {evaluation.average:.4f}  "
        + "  ".join(f"{name} {score:.3f}" for name, score in evaluation.scores.items())
    )
