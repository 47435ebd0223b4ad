"""The DeepSpeed engine: its start, and one optimizer step over micro-batches whose number may differ by step. No loop, no files.

DeepSpeed averages gradients over ranks, so each micro-batch's share of the objective is multiplied by the number of ranks
and nothing is divided by the number of micro-batches (scale_wrt_gas=False): the sum over ranks and micro-batches is then
exactly the gradient of the objective.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtdnn_ds import dist
from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.config.errors import TrainingError
from mtdnn_ds.config.launch import free_port, take_place
from mtdnn_ds.faults.heartbeat import mark
from mtdnn_ds.faults.rendezvous import own_store
from mtdnn_ds.faults.shared_memory import remove_own_segments
from mtdnn_ds.losses.forms import Losses, UnitLosses
from mtdnn_ds.losses.objective import micro_batch_loss, step_loss, term_coefficients
from mtdnn_ds.runs.device import keep_freed_memory, take_device
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.train.regularizers.regularizer import PLAIN, Regularizer, mean_losses

# Other ranks wait in a collective while rank 0 tokenizes; DeepSpeed's own limit of 10 minutes would end a first run on large data.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


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


def start_distributed(timeout: timedelta = COLLECTIVE_TIMEOUT) -> torch.device:
    """Join the process group (NCCL on CUDA, gloo on CPUs). Collective: all ranks must call this. Returns this rank's device."""
    import deepspeed

    take_place()
    dist.fill_environment(free_port())
    device = take_device()
    if not torch.cuda.is_available():
        _skip_shared_memory_op(deepspeed)
    atexit.register(remove_own_segments)  # what is left of them, also by ranks of this node that were killed
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    own = None if torch.distributed.is_initialized() else own_store(dist.rank(), dist.world_size(), timeout)
    if own is not None:
        with own as store:
            torch.distributed.init_process_group(
                backend,
                store=store,
                rank=dist.rank(),
                world_size=dist.world_size(),
                timeout=timeout,
                device_id=device
                if device.type == "cuda" and dist.world_size() > 1
                else None,  # as DeepSpeed does
            )
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    if not torch.cuda.is_available():
        keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ:  # else every rank would take all cores
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // dist.local_size()))
    return device


def _skip_shared_memory_op(deepspeed: Any) -> None:
    # DeepSpeed builds (55 s) and starts a shared-memory all-reduce on CPUs that only inference uses, and leaves its 70 MB
    # a rank in /dev/shm behind. Its own switch is private, so it is only used where it still exists.
    compatible = getattr(getattr(deepspeed, "ops", None), "__compatible_ops__", None)
    if isinstance(compatible, dict) and "deepspeed_shm_comm" in compatible:
        compatible["deepspeed_shm_comm"] = False


def stop_distributed() -> None:
    """Leave the process group; another one may be joined after it. Collective: all ranks must call this, last."""
    if torch.distributed.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()  # which also forgets the groups that DeepSpeed keeps by name


def start_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]) -> Any:
    """The DeepSpeed engine around `model`. Collective: all ranks must call this."""
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )
    for module, parameter in getattr(model, "borrowed", ()):
        deepspeed.zero.register_external_parameter(
            module, parameter
        )  # ZeRO-3 then gathers it for this module too
    return engine


def stop_engine(engine: Any) -> None:
    """Undo what the engine has tied to the process; with the last reference to it, `free_memory` then gives its memory to another engine."""
    engine.destroy()  # its hooks on parameters are known to autograd alone, which no search for cycles looks into
    if engine.zero_optimization_stage() == 3:
        _forget_zero3_modules()


def free_memory() -> None:
    """Give back what nothing refers to any more. Engine and model refer to each other, so Python would not do it soon."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _forget_zero3_modules() -> None:
    # DeepSpeed 0.19.8 leaves the model on a list (runtime/zero/parameter_offload.py:315) and in a cache keyed by modules
    # (runtime/zero/partitioned_param_coordinator.py:633). Both are private, so they are only touched where they still exist.
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    getattr(parameter_offload, "FWD_MODULE_STACK", []).clear()
    release = getattr(
        partitioned_param_coordinator.PartitionedParameterCoordinator,
        "_PartitionedParameterCoordinator__params_to_release",
        None,
    )
    cached: Any = (
        inspect.getclosurevars(release).nonlocals.get("func") if inspect.isfunction(release) else None
    )
    if hasattr(cached, "cache_clear"):
        cached.cache_clear()


def set_learning_rate(engine: Any, lr: float) -> None:
    """The rate of the step about to be done, in every parameter group (model/multitask.py says which have a factor)."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def seed_step(seed: int, step: int) -> None:
    """Derive this rank's dropout randomness of one step from (seed, step, rank) alone, so that resuming needs no saved state.

    With train.dropout=counter nothing draws from it (model/dropout/counter_masks.py).
    """
    state = np.random.SeedSequence([seed, step, dist.rank()]).generate_state(2, np.uint32)
    torch.manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def count_units(engine: Any, unit_counts: np.ndarray, *, stop: bool) -> tuple[np.ndarray, bool]:
    """(M,) each term's supervised units in the whole step, from every rank's own; and whether any rank wants to `stop` before this step.

    Collective: all ranks must call this. The wish rides with the counts, so that all ranks know of it before the same step.
    """
    summed = (
        dist.sum_tensor(torch.tensor([*unit_counts, float(stop)], dtype=torch.float64, device=engine.device))
        .cpu()
        .numpy()
    )
    return summed[:-1], bool(summed[-1])


def optimizer_step(
    engine: Any,
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
    say: Callable[[str], None],
    regularizer: Regularizer | None = None,
) -> StepResult:
    """Do step `step`: all micro-batches, one update. Collective: all ranks must call this with equally many micro-batches.

    `units` (M,) are those of the whole step, `task_scales` (N,) the step's w_t. An fp16 overflow drops the update and lowers the loss
    scale; the same examples are then repeated, so plan, schedule and step count never lose them. A loss or gradient that is not
    finite otherwise ends the run with TrainingError before the weights change; `describe(task_id, row)` names an example.
    """
    coefficients_M = term_coefficients(task_scales, units, layout.task_of_term)
    adds_term = regularizer is not None and regularizer.adds_term
    skipped = 0
    while True:
        seed_step(seed, step)
        skipped_before = engine.skipped_steps
        (totals, added), unit_losses = _forward_backward(
            engine,
            micro_batches,
            losses=losses,
            coefficients_M=coefficients_M,
            regularizer=regularizer,
            step=step,
        )
        if not bool(torch.isfinite(totals).all()):
            passed = tuple(batch for batch in micro_batches for _ in range(_num_passes(regularizer)))
            raise TrainingError(_not_finite(step, totals, unit_losses, passed, layout, losses, describe))
        if not bool(torch.isfinite(added).all()):
            raise TrainingError(
                f"step {step}: the regulariser's term is not finite although the losses are; the weights are unchanged by this step; "
                "lower optimizer.lr, or regularizer.radius if there is one"
            )
        norm, scale = _gradient_norm(engine), _loss_scale(engine)
        if norm is not None and not math.isfinite(norm):
            raise TrainingError(_bad_gradient(step, layout.task_names))
        _update(engine, step, scale)
        if engine.skipped_steps == skipped_before:
            return StepResult(
                totals=totals.double().cpu().numpy(),
                units=units,
                coefficients=coefficients_M,
                grad_norm=float(engine.get_global_grad_norm()) if norm is None else norm,
                loss_scale=scale,
                skipped=skipped,
                regularizer=step_loss(added.double().cpu().numpy(), coefficients_M) if adds_term else None,
            )
        if not fp16:
            raise TrainingError(_bad_gradient(step, layout.task_names))
        skipped += 1
        say(
            f"step {step}: gradients overflowed in fp16 at loss scale {scale:g}; repeating its examples at {_loss_scale(engine):g}"
        )


def _bad_gradient(step: int, task_names: tuple[str, ...]) -> str:
    return (
        f"step {step}: a gradient is not finite although the loss is; the weights are unchanged by this step; "
        f"lower optimizer.lr, or check the data of {', '.join(task_names)}"
    )


def _forward_backward(
    engine: Any,
    micro_batches: tuple[PackedBatch, ...],
    *,
    losses: Losses,
    coefficients_M: np.ndarray,
    regularizer: Regularizer | None,
    step: int,
) -> tuple[Tensor, list[dict[str, UnitLosses]]]:
    """(2, M): sums of each term's losses over the whole step, and of what is added to them; this rank's losses one by one, for each pass."""
    world_size = dist.world_size()
    coefficients = torch.tensor(coefficients_M, dtype=torch.float32, device=engine.device)
    totals = torch.zeros((2, len(coefficients_M)), device=engine.device)
    unit_losses: list[dict[str, UnitLosses]] = []
    for index, host_batch in enumerate(micro_batches):
        batch = host_batch.to(engine.device)
        mark(f"step {step}, micro-batch {index + 1} of {len(micro_batches)}")
        passes = [PLAIN] if regularizer is None else regularizer.passes(host_batch, batch, step)
        for number, one in enumerate(passes, start=1):
            last = index == len(micro_batches) - 1 and number == _num_passes(regularizer)
            engine.set_gradient_accumulation_boundary(last)
            outputs, added_M = engine(batch, within=one.within)
            of_batch = mean_losses(losses, outputs, batch.targets)
            sums = losses.sums(of_batch)
            total_M = sums.total if added_M is None else sums.total + added_M
            objective = micro_batch_loss(replace(sums, total=total_M), coefficients * one.share)
            engine.backward(objective * world_size, scale_wrt_gas=False)
            totals += one.share * torch.stack([sums.total, total_M - sums.total]).detach()
            unit_losses.append(
                {form: replace(part, losses=part.losses.detach()) for form, part in of_batch.items()}
            )
            if not last:
                engine.step()  # counts the pass; updates nothing before the boundary
    return dist.sum_tensor(totals), unit_losses


def _num_passes(regularizer: Regularizer | None) -> int:
    return 1 if regularizer is None else regularizer.num_passes


def _update(engine: Any, step: int, scale: float) -> None:
    mark(f"step {step}, update")
    try:
        engine.step()
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        raise TrainingError(
            f"step {step}: fp16 gradients overflow even at the smallest loss scale ({scale:g}): train in bf16 (ds_configs/zero2.json), or lower optimizer.lr"
        ) from error


def _loss_scale(engine: Any) -> float:
    return float(
        getattr(engine.optimizer, "cur_scale", None) or getattr(engine.optimizer, "loss_scale", None) or 1.0
    )


def _gradient_norm(engine: Any) -> float | None:
    """Global norm where DeepSpeed keeps none itself (ZeRO 0 without its own optimizer wrapper); gradients are averaged by then."""
    if engine.zero_optimization() or engine.fp16_enabled() or engine.bfloat16_enabled():
        return None
    norms = [
        parameter.grad.float().norm()
        for parameter in engine.module.parameters()
        if parameter.grad is not None
    ]
    return float(torch.stack(norms).norm())


def _not_finite(
    step: int,
    totals: Tensor,
    unit_losses: list[dict[str, UnitLosses]],
    micro_batches: tuple[PackedBatch, ...],
    layout: HeadLayout,
    losses: Losses,
    describe: Callable[[int, int], str],
) -> str:
    mine: list[str] = []
    for of_batch, batch in zip(unit_losses, micro_batches, strict=True):
        for form, part in of_batch.items():
            targets = batch.targets[form]
            for unit in torch.nonzero(~torch.isfinite(part.losses)).flatten().tolist():
                example = targets.examples[unit if losses.per_example[form] else int(targets.groups[unit])]
                name = describe(int(batch.example_tasks[example]), int(batch.example_rows[example]))
                mine += [] if name in mine else [name]
    examples = [name for names in dist.gather(mine) for name in names]
    bad = {
        layout.task_names[term.task]
        for term, total in zip(layout.terms, totals.tolist(), strict=True)
        if not math.isfinite(total)
    }
    tasks = [name for name in layout.task_names if name in bad]
    listed = ", ".join(examples[:8]) + (f" and {len(examples) - 8} more" if len(examples) > 8 else "")
    return f"step {step}: the loss of {', '.join(tasks)} is not finite; examples: {listed}; the weights are unchanged by this step; lower optimizer.lr, or look at these rows"
