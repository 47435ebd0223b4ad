"""The training loop: plan -> micro-batches -> engine -> log, evaluate, keep the best, save. Calls the other files of train/; none calls back."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.weights import save_best
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.errors import Stopped, TrainingError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.loader import StepBatches, TrainLoader
from mtdnn_ds.faults import stop_requests
from mtdnn_ds.faults.heartbeat import in_loop, mark
from mtdnn_ds.faults.stop_log import write_stop
from mtdnn_ds.faults.stop_requests import Heed
from mtdnn_ds.faults.watchdog.watch import joining, watching
from mtdnn_ds.files import SaveFailed, reason, writing
from mtdnn_ds.losses.objective import Scale, task_means, task_scales
from mtdnn_ds.monitor.console import Progress
from mtdnn_ds.monitor.projector import dev_embeddings
from mtdnn_ds.monitor.run_monitor import EvalRecord, check_monitors
from mtdnn_ds.runs.evaluate import EvaluationStopped, evaluate
from mtdnn_ds.runs.lock import locked
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.engine import (
    count_units,
    free_memory,
    optimizer_step,
    set_learning_rate,
    start_distributed,
    stop_engine,
)
from mtdnn_ds.train.results import show_results
from mtdnn_ds.train.start import Run, start_run
from mtdnn_ds.train.step_record import step_learning_rate, step_record


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
    Raises UserErrors: ConfigError, DataError and CheckpointError before the first step, TrainingError after it. Raises Stopped when any
    rank was asked to stop and all is saved; before the first step such a process ends at once, with exit code 85.
    """
    check_monitors(deepspeed.config)
    with stop_requests.listening():
        stop_requests.heed(Heed.AT_ONCE)
        with joining(recipe.train.stall_timeout):
            device = start_distributed()
        with (
            watching(recipe.train.stall_timeout),
            locked(output_dir, Progress(num_steps=0, is_main=dist.is_main() and not quiet).say),
        ):
            run = start_run(
                recipe,
                specs,
                deepspeed,
                device=device,
                output_dir=output_dir,
                resume=resume,
                evaluate_after=evaluate_after,
                quiet=quiet,
            )
            stopped = _train(run)
            if stopped is not None:
                dist.barrier()  # so that no rank is ended by its launcher, which sees another one leave, while it still writes
                raise Stopped(stopped)
            stop_engine(run.engine)
            show_results(run.data, run.state, run.folder, say=run.progress.say)
            del run
            free_memory()  # for the next run of this process


def _train(run: Run) -> str | None:
    """All steps, and the end of the log. Returns what to say if they were cut short by a request to stop."""
    if run.limit.end is not None:
        run.progress.say(
            f"{run.limit.describe()}: the run saves and stops {run.limit.margin:g} s before that, and earlier by its longest step and save"
        )
    stop_requests.heed(Heed.BETWEEN_STEPS)
    succeeded = False
    try:
        stopped = _all_steps(run)
        succeeded = stopped is None
        return stopped
    except TrainingError:
        run.saver.wait()  # what is still being written is an earlier step, and whole
        raise
    finally:
        in_loop(False)
        stop_requests.heed(Heed.NO_MORE)
        run.progress.close()
        if run.monitor is not None:
            run.monitor.close(succeeded=succeeded)


def _wants_to_stop(run: Run) -> bool:
    """Whether this rank does."""
    if run.monitor is not None and run.monitor.problem is not None:
        if run.recipe.train.on_save_error == "stop":
            return True  # _stop says why
        run.progress.say_once(
            f"{run.monitor.problem}; its lines wait in memory (train.on_save_error=continue)"
        )
    if run.limit.is_near():
        stop_requests.request(run.limit.describe())
    return stop_requests.requested() is not None


def _all_steps(run: Run) -> str | None:
    """What to say if a request to stop cut them short."""
    recipe, state, total_steps = run.recipe, run.state, run.plan.total_steps
    # No rank's request ends it alone from here on: one that came before has been heard by all of them here.
    if any(dist.gather(_wants_to_stop(run))) and state.step < total_steps:
        return _stop(run)
    in_loop(True)
    if state.step and state.evaluated_at != state.step and _evaluation_is_due(run) and not _evaluate(run):
        return _stop(run)  # its evaluation was cut short when it was stopped, and is again
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
            begin = time.monotonic()
            if _one_step(run, batches, loader):
                return _stop(run)
            run.saver.poll()
            run.limit.longest_step = max(run.limit.longest_step, time.monotonic() - begin)
            step = state.step
            if step == total_steps:
                stop_requests.heed(Heed.NO_MORE)
            if _evaluation_is_due(run) and not _evaluate(run):
                return _stop(run)
            if _is_due(run, recipe.train.save_every):
                _save(run, must=step == total_steps)
    _refuse_lost_lines(run)
    return None


def _evaluation_is_due(run: Run) -> bool:
    return run.state.step in run.evaluate_after or _is_due(run, run.recipe.train.eval_every)


def _is_due(run: Run, every: int) -> bool:
    step = run.state.step
    return step == run.plan.total_steps or bool(every and step % every == 0)


def _save(run: Run, *, must: bool) -> float:
    """A checkpoint of the present step; returns the seconds it took. `must`: else the run cannot end well."""
    begin = time.monotonic()
    mark(f"saving step {run.state.step}")
    momentum = None if run.regularizer is None else run.regularizer.momentum
    also = () if momentum is None else (momentum.save,)
    run.saver.save(step=run.state.step, run_state=run.state.to_json(), also=also, must=must)
    run.limit.longest_save = max(run.limit.longest_save, run.saver.longest_seconds)
    return time.monotonic() - begin


def _stop(run: Run) -> str:
    """Save the present step unless it is saved, and note why. Collective; returns what to say."""
    step = run.state.step
    run.saver.wait()
    seconds = _save(run, must=True) if step > run.saver.saved_step else None
    _refuse_lost_lines(run)
    reasons = [
        f"rank {rank}: {reason}"
        for rank, reason in enumerate(dist.gather(stop_requests.requested()))
        if reason
    ]

    def note() -> None:
        with writing(f"step {step} is saved, but stops.jsonl"):
            write_stop(run.folder.path, step=step, reasons=reasons, save_seconds=seconds)

    dist.on_main(note)
    how = (
        "nothing was to be saved"
        if step == 0
        else f"saved in {seconds:.1f} s"
        if seconds is not None
        else "saved before"
    )
    return f"stopped after step {step} of {run.plan.total_steps} ({'; '.join(reasons)}); {how}; the same command with --resume auto goes on"


def _refuse_lost_lines(run: Run) -> None:
    """Raise TrainingError if the log cannot be written; for a run that ends here. Collective."""
    if run.monitor is not None:
        run.monitor.flush()
    problem = dist.broadcast(None if run.monitor is None else run.monitor.problem)
    if problem is not None:
        raise TrainingError(
            f"step {run.state.step}: the log could not be written: {problem}; the checkpoint of this step is saved"
        )


def _task_scales(run: Run, step: int, counts_N: np.ndarray) -> np.ndarray:
    if run.scales is not None:
        return run.scales.weights(counts_N > 0, step)
    scale = run.recipe.loss.scale
    return task_scales(
        counts_N,
        "explicit" if isinstance(scale, dict) else cast(Scale, scale),
        # A ranking's labels only say which candidates are relevant: its loss has no classes.
        num_classes=[1 if spec.kind == "ranking" else len(spec.labels) for spec in run.data.specs],
        explicit=[spec.loss_scale for spec in run.data.specs],
    )


def _one_step(run: Run, batches: StepBatches, loader: TrainLoader) -> bool:
    """The step of `batches`, unless any rank wants to stop before it: then True, and it is not begun. Collective."""
    mark(f"step {batches.step}, beginning")
    begin, waited = time.perf_counter(), loader.take_wait_seconds()
    units, stops = count_units(run.engine, batches.unit_counts, stop=_wants_to_stop(run))
    if stops:
        return True
    lr = step_learning_rate(run, batches.step)
    set_learning_rate(run.engine, lr)
    scales_N = _task_scales(run, batches.step, batches.task_counts)
    result = optimizer_step(
        run.engine,
        batches.micro_batches,
        units=units,
        task_scales=scales_N,
        losses=run.losses,
        layout=run.data.layout,
        step=batches.step,
        seed=run.recipe.train.seed,
        fp16=run.precision == "fp16",
        describe=run.data.describe,
        say=run.progress.say,
        regularizer=run.regularizer,
    )
    penalty = None if run.penalty is None else run.penalty.pull(lr)
    means_N = task_means(result.totals, result.units, run.data.layout.task_of_term, len(scales_N))
    if run.regularizer is not None and run.regularizer.momentum is not None:
        run.regularizer.momentum.follow(run.engine)
    if run.scales is not None:
        run.scales.observe(means_N)
        run.state.loss_scales = run.scales.state_dict()
    run.state.step = batches.step
    run.state.plan = run.plan.state_dict(batches.step)
    record = step_record(
        run,
        batches,
        result,
        means_N,
        scales_N,
        penalty,
        lr=lr,
        seconds=time.perf_counter() - begin + waited,
        waited=waited,
    )
    if run.monitor is not None:
        run.monitor.write(record)
    mark(f"step {batches.step}, done")
    run.progress.update(step=record.step, loss=record.loss, tokens_per_second=record.tokens_per_second)
    return False


def _evaluate(run: Run) -> bool:
    """Score the present step and keep the best; False, with nothing changed, if any rank wants to stop meanwhile. Collective.

    That of the last step is never cut short: there is nothing to go on with after it.
    """
    state, data = run.state, run.data
    mark(f"evaluating step {state.step}")
    asked = None if state.step == run.plan.total_steps else partial(_wants_to_stop, run)
    try:
        evaluation = evaluate(
            run.engine,
            data.specs,
            data.layout,
            data.examples,
            run.settings,
            run.engine.device,
            stop_asked=asked,
        )
    except EvaluationStopped:
        return False
    state.evaluation, state.evaluated_at = evaluation, state.step
    if not evaluation.metrics:
        run.progress.say_once("no task has a dev split: nothing is evaluated, and no best checkpoint is kept")
        return True
    scores = {**evaluation.scores, "average": evaluation.average}
    winners = [
        name for name, score in scores.items() if name not in state.best or score > state.best[name]["score"]
    ]
    if winners:
        mark(f"keeping the best weights of step {state.step}")
        if _save_best(run, winners, evaluation.metrics):
            state.best.update({name: {"score": scores[name], "step": state.step} for name in winners})
    if run.monitor is not None:
        run.monitor.write(EvalRecord(step=state.step, eval=evaluation.metrics, average=evaluation.average))
    if state.step == run.plan.total_steps and run.recipe.board.embeddings:
        _show_embeddings(run)
    run.progress.say(
        f"step {state.step}: dev average {evaluation.average:.4f}  "
        + "  ".join(f"{name} {score:.3f}" for name, score in evaluation.scores.items())
    )
    return True


def _show_embeddings(run: Run) -> None:
    """Development rows as the encoder sees them, for the board's projector. Collective; a full disk costs the run nothing else."""
    mark("embedding development rows")
    found = dev_embeddings(
        run.engine, run.engine.module.encoder, run.data.specs, run.data.layout, run.data.examples, run.settings, run.engine.device,
        rows_per_task=run.recipe.board.embeddings,
    )  # fmt: skip
    if run.monitor is not None:
        try:
            run.monitor.write_projector(found.vectors, ("task", "label", "row"), found.metadata)
        except OSError as error:
            run.progress.say(f"the board's embeddings could not be written: {reason(error)}")


def _save_best(run: Run, winners: Sequence[str], metrics: Mapping[str, Any]) -> bool:
    """Whether the present weights are now the best ones of `winners`; if not, those of a later evaluation may be. Collective."""
    try:
        save_best(run.engine, run.folder.best, winners=winners, step=run.state.step, metrics=metrics)
    except SaveFailed as error:
        if run.recipe.train.on_save_error == "stop":
            raise
        run.progress.say(f"{error}; going on (train.on_save_error=continue)")
        return False
    return True
