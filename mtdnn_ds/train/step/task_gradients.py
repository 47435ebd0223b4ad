"""How long each task's part of a step's gradient is, in the encoder: measured beside the step, no part of it.

The part of task t is the gradient of w_t sum_m (sum_i l_i) / U_m over its terms m (losses/objective.py), of
the whole step, over all micro-batches and ranks, before clipping: the parts of a step's tasks add up to its
gradient. The norm is over every trained parameter of the encoder, all of its copies and low-rank changes, and
without the pooler, which token-wise tasks do not read. A tied decoder of masked words is the encoder's.

Forward passes of the bare module and torch.autograd.grad: nothing is left in a parameter's .grad, and the
hooks by which ZeRO 1 and 2 take gradients hang on its accumulation, which does not happen. ZeRO 3 has no
whole parameters outside the engine's forward: refused (config/deepspeed.py), as regularisers are, whose
passes are more than a task's losses (config/crosscheck.py).

Tasks are the outer loop, so that one float32 copy of the encoder's gradient is held, not one for each task.
The price is a forward and a backward pass of the step's micro-batches for each task. A task's passes begin
with the step's own seed and run its micro-batches in the step's order: dropout masks are the step's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtdnn_ds import dist
from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.data.batches.loader import StepBatches
from mtdnn_ds.faults.heartbeat import heartbeat
from mtdnn_ds.losses.forms import Losses
from mtdnn_ds.losses.objective import micro_batch_loss, term_coefficients
from mtdnn_ds.runs.device import without_waiting
from mtdnn_ds.train.start import Run
from mtdnn_ds.train.step.optimizer_step import loss_scale, seed_step
from mtdnn_ds.train.step.step_read import foreach_norms


def task_gradient_norms(
    run: Run, batches: StepBatches, units_M: np.ndarray, scales_N: np.ndarray
) -> dict[str, float] | None:
    """The norm of each task that is in the step about to be done; None unless the step is to measure them.

    `units_M`: the whole step's units, `scales_N`: its w_t. Not finite where a loss is not, or where fp16
    gradients overflow at the present loss scale. Collective: all ranks must call this.
    """
    every = run.recipe.train.gradient_norms_every
    if not every or batches.step % every:
        return None

    engine, layout = run.engine, run.data.layout
    coefficients_M = term_coefficients(scales_N, units_M, layout.task_of_term)
    parameters = encoder_parameters(engine.module)
    scale = loss_scale(engine)

    norms: dict[str, Tensor] = {}
    for task in np.flatnonzero(scales_N).tolist():
        heartbeat(f"step {batches.step}, gradient norm of {layout.task_names[task]}")
        is_own_M = np.array(layout.task_of_term) == task
        seed_step(run.recipe.train.seed, batches.step)
        gradient = _task_gradient(
            engine,
            batches.micro_batches,
            parameters,
            losses=run.losses,
            is_own_M=is_own_M,
            coefficients_M=coefficients_M * is_own_M * scale,
        )
        for each in gradient:
            dist.sum_tensor(each)
        norms[layout.task_names[task]] = foreach_norms(gradient, torch.float32).norm() / scale

    on_host = torch.stack([*norms.values()]).tolist()
    return dict(zip(norms, on_host, strict=True))


def encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those that the norms are of."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name.startswith("encoder.") and ".pooler." not in name
    ]


def _task_gradient(
    engine: Any,
    micro_batches: Sequence[PackedBatch],
    parameters: Sequence[nn.Parameter],
    *,
    losses: Losses,
    is_own_M: np.ndarray,
    coefficients_M: np.ndarray,
) -> list[Tensor]:
    """This rank's part of a task's gradient, each parameter's in float32."""
    coefficients = without_waiting(torch.tensor(coefficients_M, dtype=torch.float32), engine.device)
    totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]

    for host_batch in micro_batches:
        batch = host_batch.to(engine.device)
        # Also of a micro-batch without the task: the next one's masks follow from it.
        with _precision(engine):
            outputs = engine.module(batch)
        if not host_batch.unit_counts[is_own_M].any():
            continue

        sums = losses.sums(losses.of_batch(outputs, batch.targets))
        part = micro_batch_loss(sums, coefficients)
        gradients = torch.autograd.grad(part, parameters, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:  # a copy of the encoder that is another group's
                total += gradient
    return totals


def _precision(engine: Any) -> AbstractContextManager[Any]:
    """What the engine's forward runs in."""
    if not engine.torch_autocast_enabled():
        return nullcontext()
    return torch.autocast(engine.device.type, dtype=engine.torch_autocast_dtype())
