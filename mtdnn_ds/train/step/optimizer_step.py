"""One optimizer step over micro-batches whose number may differ by step. No loop over steps, no files.

DeepSpeed averages gradients over ranks, so each micro-batch's share of the objective is multiplied by the
number of ranks and nothing is divided by the number of micro-batches (scale_wrt_gas=False): the sum over
ranks and micro-batches is then exactly the gradient of the objective.

Shape legend: M terms, N tasks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtdnn_ds import dist
from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.errors import TrainingError
from mtdnn_ds.faults.heartbeat import heartbeat
from mtdnn_ds.losses.forms import Losses, UnitLosses
from mtdnn_ds.losses.objective import micro_batch_loss, step_loss, term_coefficients
from mtdnn_ds.runs.device import without_waiting
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.train.regularizers.regularizer import PLAIN, Regularizer, mean_losses
from mtdnn_ds.train.step.step_read import StepRead, foreach_norms

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one optimizer step did, equal on every rank."""

    totals: np.ndarray  # (M,) float64, sum of each term's losses over the whole step
    units: np.ndarray  # (M,) float64, number of each term's supervised units in the whole step
    coefficients: np.ndarray  # (M,) float64, w_t / U_m
    grad_norm: float  # before clipping
    loss_scale: float  # 1 unless fp16
    skipped: int  # attempts that overflowed in fp16 before this step was applied
    regularizer: float | None = None  # the term that the run's regulariser added to the objective


@dataclass(frozen=True, kw_only=True, slots=True)
class _Passes:
    """What the forward and backward passes of a step found."""

    totals: Tensor  # (2, M): sums over the whole step of each term's losses, and of what was added to them
    unit_losses: list[dict[str, UnitLosses]]  # this rank's losses one by one, for each pass


def set_learning_rate(engine: Any, lr: float) -> None:
    """The rate of the step about to be done, in every parameter group (model/multitask.py says which have a
    factor).
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def seed_step(seed: int, step: int) -> None:
    """Derive this rank's dropout randomness of one step from (seed, step, rank) alone, so that resuming needs
    no saved state.

    With train.dropout=counter nothing draws from it (model/dropout/counter_masks.py).
    """
    state = np.random.SeedSequence([seed, step, dist.rank()]).generate_state(2, np.uint32)
    torch.manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def count_units(engine: Any, unit_counts: np.ndarray, *, stop: bool) -> tuple[np.ndarray, bool]:
    """(M,) each term's supervised units in the whole step, from every rank's own; whether any rank wants to
    `stop` before it.

    Collective: all ranks must call this. The wish rides with the counts, so that all ranks know of it before
    the same step.
    """
    if dist.world_size() == 1:
        return unit_counts, stop

    # The one read of a step before it begins: whether any rank wants to stop has to be known by then.
    own = without_waiting(torch.tensor([*unit_counts, float(stop)], dtype=torch.float64), engine.device)
    summed = dist.sum_tensor(own).cpu().numpy()
    return summed[:-1], bool(summed[-1])


def optimizer_step(
    engine: Any,
    read: StepRead,
    micro_batches: tuple[PackedBatch, ...],
    *,
    units: np.ndarray,
    task_scales: np.ndarray,
    losses: Losses,
    layout: HeadLayout,
    step: int,
    seed: int,
    fp16: bool,
    describe: Callable[[int, int], str],
    regularizer: Regularizer | None = None,
) -> StepResult:
    """Do step `step`: all micro-batches, one update. Collective: all ranks must call this with equally many
    micro-batches.

    `units` (M,) are those of the whole step, `task_scales` (N,) the step's w_t. An fp16 overflow drops the
    update and lowers the loss scale; the same examples are then repeated, so plan, schedule and step count
    never lose them. A loss or gradient that is not finite otherwise ends the run with TrainingError before
    the weights change; `describe(task_id, row)` names an example.
    """
    coefficients_M = term_coefficients(task_scales, units, layout.task_of_term)  # w_t / U_m
    skipped = 0
    while True:
        seed_step(seed, step)
        skipped_before = engine.skipped_steps
        passes = _forward_backward(
            engine,
            micro_batches,
            losses=losses,
            coefficients_M=coefficients_M,
            regularizer=regularizer,
            step=step,
        )

        # Nothing that is not finite may reach the weights: the norm, read with the totals, drops the update.
        read.expect(passes.totals)
        of_passes = tuple(batch for batch in micro_batches for _ in range(_num_passes(regularizer)))
        refuse_not_finite = partial(
            _refuse_not_finite, step, read, passes, of_passes, layout, losses, describe
        )
        scale = loss_scale(engine)
        norm = None
        if not read.joins:
            norms = read.with_norms(gradient_norm(engine))
            refuse_not_finite()
            norm = float(norms) if norms.numel() else None
            if norm is not None and not math.isfinite(norm):
                raise TrainingError(_bad_gradient(step, layout.task_names))

        try:
            _update(engine, step, scale)
        except TrainingError:  # a loss that is not finite says more than the overflow that follows from it
            refuse_not_finite()
            raise
        refuse_not_finite()
        if engine.skipped_steps == skipped_before:
            break

        # The engine has dropped the update: the gradients overflowed at this loss scale.
        if not fp16:
            raise TrainingError(_bad_gradient(step, layout.task_names))
        skipped += 1
        log.info(
            f"step {step}: gradients overflowed in fp16 at loss scale {scale:g}; "
            f"repeating its examples at {loss_scale(engine):g}"
        )

    if norm is None:
        norm = float(engine.get_global_grad_norm())
    totals_M, added_M = read.totals.numpy()
    added = None
    if regularizer is not None and regularizer.adds_term:
        added = step_loss(added_M, coefficients_M)
    return StepResult(
        totals=totals_M,
        units=units,
        coefficients=coefficients_M,
        grad_norm=norm,
        loss_scale=scale,
        skipped=skipped,
        regularizer=added,
    )


def _forward_backward(
    engine: Any,
    micro_batches: tuple[PackedBatch, ...],
    *,
    losses: Losses,
    coefficients_M: np.ndarray,
    regularizer: Regularizer | None,
    step: int,
) -> _Passes:
    """All passes of the step on this rank, with their gradients; sums are of all ranks. Collective."""
    world_size = dist.world_size()
    coefficients = without_waiting(torch.tensor(coefficients_M, dtype=torch.float32), engine.device)
    totals = torch.zeros((2, len(coefficients_M)), device=engine.device)
    unit_losses: list[dict[str, UnitLosses]] = []

    for index, host_batch in enumerate(micro_batches):
        batch = host_batch.to(engine.device)
        heartbeat(f"step {step}, micro-batch {index + 1} of {len(micro_batches)}")
        passes = [PLAIN] if regularizer is None else regularizer.passes(host_batch, batch, step)
        for number, one in enumerate(passes, start=1):
            is_last = index == len(micro_batches) - 1 and number == _num_passes(regularizer)
            engine.set_gradient_accumulation_boundary(is_last)
            outputs, added_M = engine(batch, within=one.within)

            # share * sum over m of coefficient_m * (losses of m + what is added to them)
            of_batch = mean_losses(losses, outputs, batch.targets)
            sums = losses.sums(of_batch)
            total_M = sums.total
            if added_M is not None:
                total_M = sums.total + added_M
            objective = micro_batch_loss(replace(sums, total=total_M), coefficients * one.share)

            # DeepSpeed divides by the number of ranks, and by nothing else.
            engine.backward(objective * world_size, scale_wrt_gas=False)

            totals += one.share * torch.stack([sums.total, total_M - sums.total]).detach()
            unit_losses.append(
                {form: replace(part, losses=part.losses.detach()) for form, part in of_batch.items()}
            )
            if not is_last:
                engine.step()  # counts the pass; updates nothing before the boundary

    return _Passes(totals=dist.sum_tensor(totals), unit_losses=unit_losses)


def _num_passes(regularizer: Regularizer | None) -> int:
    return 1 if regularizer is None else regularizer.num_passes


def _update(engine: Any, step: int, scale: float) -> None:
    heartbeat(f"step {step}, update")
    try:
        engine.step()
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        raise TrainingError(
            f"step {step}: fp16 gradients overflow even at the smallest loss scale ({scale:g}): "
            "train in bf16 (ds_configs/zero2.json), or lower optimizer.lr"
        ) from error


def loss_scale(engine: Any) -> float:
    """By which fp16 losses are multiplied; 1 without fp16."""
    scale = getattr(engine.optimizer, "cur_scale", None) or getattr(engine.optimizer, "loss_scale", None)
    return float(scale or 1.0)


def gradient_norm(engine: Any) -> Tensor:
    """(1,): the global norm where DeepSpeed keeps none itself (ZeRO 0); gradients are averaged by then. (0,)
    elsewhere.
    """
    if engine.zero_optimization_stage() > 0:
        return torch.zeros(0, device=engine.device)
    gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return foreach_norms(gradients, torch.float32).norm()[None]


def _bad_gradient(step: int, task_names: tuple[str, ...]) -> str:
    return (
        f"step {step}: a gradient is not finite although the loss is; "
        "the weights are unchanged by this step; "
        f"lower optimizer.lr, or check the data of {', '.join(task_names)}"
    )


def _refuse_not_finite(
    step: int,
    read: StepRead,
    passes: _Passes,
    batches: Sequence[PackedBatch],
    layout: HeadLayout,
    losses: Losses,
    describe: Callable[[int, int], str],
) -> None:
    """Raise TrainingError if the losses, or what was added to them, are not finite. Collective."""
    totals_M, added_M = read.totals
    if not bool(torch.isfinite(totals_M).all()):
        raise TrainingError(_not_finite(step, totals_M, passes, batches, layout, losses, describe))
    if not bool(torch.isfinite(added_M).all()):
        raise TrainingError(
            f"step {step}: the regulariser's term is not finite although the losses are; "
            "the weights are unchanged by this step; "
            "lower optimizer.lr, or regularizer.radius if there is one"
        )


def _not_finite(
    step: int,
    totals_M: Tensor,
    passes: _Passes,
    batches: Sequence[PackedBatch],
    layout: HeadLayout,
    losses: Losses,
    describe: Callable[[int, int], str],
) -> str:
    """Names the tasks and the examples of all ranks whose loss is not finite. `batches`: of each pass.
    Collective.
    """
    own: list[str] = []
    for of_batch, batch in zip(passes.unit_losses, batches, strict=True):
        for form, part in of_batch.items():
            targets = batch.targets[form]
            for unit in torch.nonzero(~torch.isfinite(part.losses)).flatten().tolist():
                place = unit if losses.per_example[form] else int(targets.groups[unit])
                example = targets.examples[place]
                own.append(describe(int(batch.example_tasks[example]), int(batch.example_rows[example])))
    examples = [name for names in dist.gather(list(dict.fromkeys(own))) for name in names]

    listed = ", ".join(examples[:8])
    if len(examples) > 8:
        listed += f" and {len(examples) - 8} more"

    totals = totals_M.tolist()
    bad = {term.task for term, total in zip(layout.terms, totals, strict=True) if not math.isfinite(total)}
    tasks = [name for task, name in enumerate(layout.task_names) if task in bad]
    return (
        f"step {step}: the loss of {', '.join(tasks)} is not finite; examples: {listed}; "
        "the weights are unchanged by this step; lower optimizer.lr, or look at these rows"
    )
