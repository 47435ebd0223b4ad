"""The training loop: micro-batches -> engine -> log, evaluate, save, stop. Builds nothing (start.py does)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mtdnn_ds import dist
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.errors import Stopped, TrainingError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.batches.loader import StepBatches, TrainLoader
from mtdnn_ds.faults import stop_requests
from mtdnn_ds.faults.heartbeat import heartbeat, in_loop
from mtdnn_ds.faults.stop_requests import StopPolicy, write_stop
from mtdnn_ds.faults.watchdog.watch import joining, watching
from mtdnn_ds.files import writing
from mtdnn_ds.losses.objective import task_means, task_scales
from mtdnn_ds.monitor.console import silenced
from mtdnn_ds.monitor.run_monitor import check_monitors
from mtdnn_ds.runs.lock import locked
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.engine import free_memory, start_distributed, stop_engine
from mtdnn_ds.train.evaluation import evaluate_step
from mtdnn_ds.train.results import show_results
from mtdnn_ds.train.start import Run, start_run
from mtdnn_ds.train.step.optimizer_step import count_units, optimizer_step, set_learning_rate
from mtdnn_ds.train.step.step_record import step_learning_rate, step_record
from mtdnn_ds.train.step.task_gradients import task_gradient_norms

log = logging.getLogger(__name__)


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
    """Train a recipe to its last step, from the beginning or from a checkpoint. Collective: every rank calls
    this.

    `evaluate_after`: steps beside those of train.eval_every. `quiet`: nothing is said; the run folder is the
    same. Raises UserErrors: ConfigError, DataError and CheckpointError before the first step, TrainingError
    after it. Raises Stopped when any rank was asked to stop and all is saved; before the first step such a
    process ends at once, with exit code 85.
    """
    check_monitors(deepspeed.config)
    with silenced(quiet), stop_requests.listening():
        stop_requests.set_policy(StopPolicy.AT_ONCE)
        with joining(recipe.train.stall_timeout):
            device = start_distributed()

        with watching(recipe.train.stall_timeout), locked(output_dir):
            run = start_run(
                recipe,
                specs,
                deepspeed,
                device=device,
                output_dir=output_dir,
                resume=resume,
                evaluate_after=evaluate_after,
            )
            stopped = _train(run)

            if stopped is not None:
                # No rank is ended by its launcher, which sees another one leave, while it still writes.
                dist.barrier()
                raise Stopped(stopped)

            stop_engine(run.engine)
            show_results(run.data, run.state, run.folder)
            del run
            free_memory()  # for the next run of this process


def _train(run: Run) -> str | None:
    """All steps, and the end of the log. Returns what to say if they were cut short by a request to stop."""
    if run.limit.end is not None:
        log.info(
            f"{run.limit.describe()}: the run saves and stops {run.limit.margin:g} s before that, "
            "and earlier by its longest step and save"
        )

    stop_requests.set_policy(StopPolicy.BETWEEN_STEPS)
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
        stop_requests.set_policy(StopPolicy.IGNORE)
        run.progress.close()
        if run.monitor is not None:
            run.monitor.close(succeeded=succeeded)


def _all_steps(run: Run) -> str | None:
    """What to say if a request to stop cut them short."""
    state, total_steps = run.state, run.plan.total_steps

    # No rank's request ends it alone from here on: one that came before has been heard by all of them here.
    if any(dist.gather(_wants_to_stop(run))) and state.step < total_steps:
        return _stop(run)

    # An evaluation that was cut short when the run was stopped is done again, and may be cut short again.
    in_loop(True)
    is_evaluated = state.step == 0 or state.evaluated_at == state.step
    if not is_evaluated and _evaluation_is_due(run) and not _evaluate(run):
        return _stop(run)

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
            if one_step(run, batches, loader):
                return _stop(run)
            run.saver.poll()
            run.limit.longest_step = max(run.limit.longest_step, time.monotonic() - begin)

            is_last = state.step == total_steps
            if is_last:
                stop_requests.set_policy(StopPolicy.IGNORE)
            if _evaluation_is_due(run) and not _evaluate(run):
                return _stop(run)
            if _is_due(run, run.recipe.train.save_every):
                _save(run, must=is_last)

    _refuse_lost_lines(run)
    return None


def one_step(run: Run, batches: StepBatches, loader: TrainLoader) -> bool:
    """The step of `batches`, unless any rank wants to stop before it: then True, and it is not begun.
    Collective.
    """
    heartbeat(f"step {batches.step}, beginning")
    begin, waited = time.perf_counter(), loader.take_wait_seconds()
    units_M, stops = count_units(run.engine, batches.unit_counts, stop=_wants_to_stop(run))
    if stops:
        return True

    # The objective of the step: sum over terms m of w_task(m) / U_m times the losses of m, with U_m its units
    # in the whole step, on all ranks.
    lr = step_learning_rate(run, batches.step)
    set_learning_rate(run.engine, lr)
    if run.idle_heads is not None:
        run.idle_heads.begin_step(batches.task_counts)
    scales_N = _task_scales(run, batches.step, batches.task_counts)
    grad_norms = task_gradient_norms(run, batches, units_M, scales_N)
    result = optimizer_step(
        run.engine,
        run.read,
        batches.micro_batches,
        units=units_M,
        task_scales=scales_N,
        losses=run.losses,
        layout=run.data.layout,
        step=batches.step,
        seed=run.recipe.train.seed,
        fp16=run.precision == "fp16",
        describe=run.data.describe,
        regularizer=run.model.regularizer,
    )

    # What follows an update: weights of tasks drawn together, the averaged model, the next step's scales.
    penalty = None
    if run.penalty is not None:
        penalty = run.penalty.apply_proximal_step(lr)
    if run.model.averaged is not None:
        run.model.averaged.follow(run.engine)
    means_N = task_means(result.totals, result.units, run.data.layout.task_of_term, len(scales_N))
    if run.model.scales is not None:
        run.model.scales.observe(means_N)
        run.state.loss_scales = run.model.scales.state_dict()
    run.state.step = batches.step
    run.state.plan = run.plan.state_dict(batches.step)

    seconds = time.perf_counter() - begin + waited
    record = step_record(
        run, batches, result, means_N, scales_N, penalty, grad_norms, lr=lr, seconds=seconds, waited=waited
    )
    if run.monitor is not None:
        run.monitor.write(record)
    heartbeat(f"step {batches.step}, done")
    run.progress.update(step=record.step, loss=record.loss, tokens_per_second=record.tokens_per_second)
    return False


def _task_scales(run: Run, step: int, counts_N: np.ndarray) -> np.ndarray:
    """w_t of each task in the step."""
    if run.model.scales is not None:
        return run.model.scales.weights(counts_N > 0, step)

    scale = run.recipe.loss.scale
    if isinstance(scale, dict):
        scale = "explicit"
    return task_scales(
        counts_N,
        scale,
        log_spaces=run.log_spaces,
        explicit=[spec.loss_scale for spec in run.data.specs],
    )


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


def _evaluate(run: Run) -> bool:
    """Score the present step; False, with nothing changed, if any rank wants to stop meanwhile. Collective.

    The evaluation of the last step is never cut short: there is nothing to go on with after it.
    """
    stop_asked = None
    if run.state.step < run.plan.total_steps:
        stop_asked = partial(_wants_to_stop, run)
    return evaluate_step(run, stop_asked)


def _evaluation_is_due(run: Run) -> bool:
    return run.state.step in run.evaluate_after or _is_due(run, run.recipe.train.eval_every)


def _is_due(run: Run, every: int) -> bool:
    """Whether the present step is the last one or a multiple of `every` (0: none is)."""
    step = run.state.step
    return step == run.plan.total_steps or bool(every and step % every == 0)


def _save(run: Run, *, must: bool) -> float:
    """A checkpoint of the present step; returns the seconds it took. `must`: else the run cannot end well."""
    begin = time.monotonic()
    heartbeat(f"saving step {run.state.step}")
    also: tuple[Callable[[Path], None], ...] = ()
    if run.model.averaged is not None:
        also = (run.model.averaged.save,)

    run.saver.save(step=run.state.step, run_state=run.state.to_json(), also=also, must=must)
    run.limit.longest_save = max(run.limit.longest_save, run.saver.longest_seconds)
    return time.monotonic() - begin


def _stop(run: Run) -> str:
    """Save the present step unless it is saved, and note why. Collective; returns what to say."""
    step = run.state.step
    run.saver.wait()
    seconds = None
    how = "saved before"
    if step > run.saver.saved_step:
        seconds = _save(run, must=True)
        how = f"saved in {seconds:.1f} s"
    if step == 0:
        how = "nothing was to be saved"
    _refuse_lost_lines(run)

    requests = dist.gather(stop_requests.requested())
    reasons = [f"rank {rank}: {request}" for rank, request in enumerate(requests) if request]

    def note() -> None:
        with writing(f"step {step} is saved, but stops.jsonl"):
            write_stop(run.folder.path, step=step, reasons=reasons, save_seconds=seconds)

    dist.on_main(note)
    return (
        f"stopped after step {step} of {run.plan.total_steps} ({'; '.join(reasons)}); {how}; "
        "the same command with --resume auto goes on"
    )


def _refuse_lost_lines(run: Run) -> None:
    """Raise TrainingError if the log cannot be written; for a run that ends here. Collective."""
    problem = None
    if run.monitor is not None:
        run.monitor.flush()
        problem = run.monitor.problem

    problem = dist.broadcast(problem)
    if problem is not None:
        raise TrainingError(
            f"step {run.state.step}: the log could not be written: {problem}; "
            "the checkpoint of this step is saved"
        )
