"""What is logged of one optimizer step, and its learning rate. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtdnn_ds import dist
from mtdnn_ds.data.batches.loader import StepBatches
from mtdnn_ds.losses.objective import step_loss
from mtdnn_ds.monitor.run_monitor import StepRecord
from mtdnn_ds.runs.schedule import learning_rate, num_warmup_steps
from mtdnn_ds.train.start import Run
from mtdnn_ds.train.step.optimizer_step import StepResult


def step_learning_rate(run: Run, step: int) -> float:
    """The rate of optimizer step `step`."""
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


def step_record(
    run: Run,
    batches: StepBatches,
    result: StepResult,
    means_N: np.ndarray,
    scales_N: np.ndarray,
    penalty: float | None,
    grad_norms: Mapping[str, float] | None,
    *,
    lr: float,
    seconds: float,
    waited: float,
) -> StepRecord:
    """What rank 0 logs of a step that is done. `means_N`: each task's mean loss, `scales_N`: its w_t in the
    step, `grad_norms`: of each task's part of the gradient, if they were measured.
    """
    names = run.data.layout.task_names
    means = dict(zip(names, means_N.tolist(), strict=True))
    scales = dict(zip(names, scales_N.tolist(), strict=True))
    counts = dict(zip(names, batches.task_counts.tolist(), strict=True))
    examples = {name: int(count) for name, count in counts.items() if count}

    task_scale = None
    if run.model.scales is not None:
        task_scale = {name: scales[name] for name in examples}

    mfu = run.cost.mfu(
        tokens=batches.tokens,
        sum_squared_lengths=batches.sum_squared_lengths,
        seconds=seconds,
        num_devices=dist.world_size(),
    )
    return StepRecord(
        step=batches.step,
        loss=step_loss(result.totals, result.coefficients) + (result.regularizer or 0.0),
        penalty=penalty,
        regularizer=result.regularizer,
        task_scale=task_scale,
        task_grad_norm=grad_norms,
        task_loss={name: mean for name, mean in means.items() if not np.isnan(mean)},
        task_examples=examples,
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
        mfu=mfu,
        wait_fraction=waited / seconds,
    )
