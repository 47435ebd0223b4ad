"""One evaluation of a run that trains: dev scores, best weights, embeddings. Not when (trainer.py)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtdnn_ds.checkpoint.weights import save_best
from mtdnn_ds.faults.heartbeat import heartbeat
from mtdnn_ds.files import SaveFailed, reason
from mtdnn_ds.monitor.projector import dev_embeddings
from mtdnn_ds.monitor.run_monitor import EvalRecord
from mtdnn_ds.runs.evaluate import Evaluation, EvaluationStopped, evaluate
from mtdnn_ds.train.start import Run

log = logging.getLogger(__name__)


def evaluate_step(run: Run, stop_asked: Callable[[], bool] | None) -> bool:
    """Score the present step and keep the best; False, with nothing changed, if `stop_asked` says True on any
    rank meanwhile.

    Collective: all ranks must call this.
    """
    state = run.state
    is_last = state.step == run.plan.total_steps
    heartbeat(f"evaluating step {state.step}")
    try:
        evaluation = evaluate(run.engine, run.data, run.settings, run.engine.device, stop_asked=stop_asked)
    except EvaluationStopped:
        return False

    state.evaluation, state.evaluated_at = evaluation, state.step
    if not evaluation.metrics:
        run.progress.say_once("no task has a dev split: nothing is evaluated, and no best checkpoint is kept")
        return True

    _keep_best(run, evaluation)
    if run.monitor is not None:
        run.monitor.write(EvalRecord(step=state.step, eval=evaluation.metrics, average=evaluation.average))
    if is_last and run.recipe.board.embeddings:
        _show_embeddings(run)

    scores = "  ".join(f"{name} {score:.3f}" for name, score in evaluation.scores.items())
    log.info(f"step {state.step}: dev average {evaluation.average:.4f}  {scores}")
    return True


def _keep_best(run: Run, evaluation: Evaluation) -> None:
    """Keep the present weights for every task, and for the average, whose score is better than ever.
    Collective.
    """
    state = run.state
    scores = {**evaluation.scores, "average": evaluation.average}
    winners = [
        name for name, score in scores.items() if name not in state.best or score > state.best[name]["score"]
    ]
    if not winners:
        return

    heartbeat(f"keeping the best weights of step {state.step}")
    if _save_best(run, winners, evaluation.metrics):
        state.best.update({name: {"score": scores[name], "step": state.step} for name in winners})


def _save_best(run: Run, winners: Sequence[str], metrics: Mapping[str, Any]) -> bool:
    """Whether the present weights are now the best ones of `winners`; if not, a later evaluation's may be.
    Collective.
    """
    try:
        save_best(run.engine, run.folder.best, winners=winners, step=run.state.step, metrics=metrics)
    except SaveFailed as error:
        if run.recipe.train.on_save_error == "stop":
            raise
        log.info(f"{error}; going on (train.on_save_error=continue)")
        return False
    return True


def _show_embeddings(run: Run) -> None:
    """Development rows as the encoder sees them, for the board's projector; a full disk costs nothing else.
    Collective.
    """
    heartbeat("embedding development rows")
    embeddings = dev_embeddings(
        run.engine,
        run.engine.module.encoder,
        run.data.specs,
        run.data.layout,
        run.data.examples,
        run.settings,
        run.engine.device,
        rows_per_task=run.recipe.board.embeddings,
    )

    if run.monitor is not None:
        try:
            run.monitor.write_projector(embeddings.vectors, ("task", "label", "row"), embeddings.metadata)
        except OSError as error:
            log.info(f"the board's embeddings could not be written: {reason(error)}")
