"""The one time that an optimizer step waits for the device: loss totals and gradient norm, read together.

DeepSpeed 0.19.8 looks at every gradient for overflow, takes every gradient's norm, and reads back several
numbers on the way: 5,918 calls and 4 reads a step for BERT-large's 389 tensors under ZeRO 2, while the GPU
waits. Here a norm is one `torch._foreach_norm` and the read comes once, before the update. A gradient that is
not finite makes the norm so too, and DeepSpeed drops the update for that alone: its own look at every
gradient decides nothing more, so it is left out.

Norms, clipping and overflow are DeepSpeed's, on CPUs to the bit: the formulas below are those of its
functions that they stand in for. These are private, so each is replaced only where it still exists;
tests/train/ holds the values and the number of calls. Offloaded gradients keep DeepSpeed's own functions.

Shape legend: G groups of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtdnn_ds import dist


class StepRead:
    """What a step of `engine` reads from the device; made once, when the engine is.

    `joins`: whether DeepSpeed's update reads through it. If not (ZeRO 0), `with_norms` is to be called first.
    """

    def __init__(self, engine: Any) -> None:
        self._expected: Tensor | None = None
        self._found: Tensor | None = None
        self.joins = _join(engine.optimizer, self)

    def expect(self, totals: Tensor) -> None:
        """Tell the totals of the step, of any shape, before its update."""
        self._expected, self._found = totals.detach(), None

    def with_norms(self, norms_G: Tensor) -> Tensor:
        """Read the totals and these norms; the norms on the host, all infinite if a total is not finite."""
        totals = self._expected
        if totals is None:  # whoever steps the engine asks for no totals
            return norms_G.detach().cpu()

        # Norms of offloaded gradients are on the host already.
        norms = norms_G.detach().double().to(totals.device, non_blocking=True)
        both = torch.cat([totals.flatten().double(), norms]).cpu()
        found, norms_G = both[: totals.numel()], both[totals.numel() :].to(norms_G.dtype)
        self._expected, self._found = None, found.view(totals.shape)
        if not bool(torch.isfinite(found).all()):
            return torch.full_like(norms_G, float("inf"))
        return norms_G

    @property
    def totals(self) -> Tensor:
        """The totals, float64 on the host: as they were read with the norms, if the update asked for any."""
        if self._found is None:  # offloaded gradients overflowed
            assert self._expected is not None
            self.with_norms(self._expected.new_zeros(0))
        assert self._found is not None
        return self._found


def foreach_norms(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The norm of each tensor, accumulated in `dtype`, as one tensor."""
    return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=dtype))


def _join(optimizer: Any, read: StepRead) -> bool:
    """Lets DeepSpeed's optimizer take its norm through `read`; whether it does."""
    joins: dict[str, Callable[[Any, StepRead], None]] = {
        "DeepSpeedZeroOptimizer": _join_zero_1_and_2,
        "DeepSpeedZeroOptimizer_Stage3": _join_zero_3,
        "BF16_Optimizer": _join_bf16,
    }
    needed = {
        "DeepSpeedZeroOptimizer": ("scaled_global_norm", "check_overflow", "averaged_gradients"),
        "DeepSpeedZeroOptimizer_Stage3": ("_get_norm_groups", "check_overflow"),
        "BF16_Optimizer": ("get_grads_for_norm",),
    }
    name = type(optimizer).__name__
    if name not in joins or not all(hasattr(optimizer, each) for each in needed[name]):
        return False
    if not getattr(optimizer, "compute_grad_norm", True):
        return False
    joins[name](optimizer, read)
    return True


def _join_zero_1_and_2(optimizer: Any, read: StepRead) -> None:
    from deepspeed.runtime.utils import combine_grad_norm_groups

    if optimizer.cpu_offload:
        theirs = optimizer.scaled_global_norm
        optimizer.scaled_global_norm = lambda norm_type=2: read.with_norms(theirs()[None])[0]
        return

    def global_norm(norm_type: int = 2) -> Tensor:
        """scaled_global_norm and get_grad_norm_direct of deepspeed.runtime.zero.stage_1_and_2."""
        squares_G = torch.stack([squares(group) for group in range(len(optimizer.bit16_groups))])
        if dist.world_size() > 1:
            torch.distributed.all_reduce(squares_G, group=optimizer.dp_process_group)
        norms_G = read.with_norms(squares_G.sqrt())
        return combine_grad_norm_groups(norms_G.unbind())

    def squares(group: int) -> Tensor:
        gradients = [
            each for each in optimizer.averaged_gradients[group] if not getattr(each, "_zero_padding", False)
        ]
        own = gradients[: len(optimizer.params_in_partition[group])]
        if not own:
            return torch.zeros((), device=optimizer.device)
        return foreach_norms(own, torch.float64).pow(2).sum().float()

    optimizer.scaled_global_norm = global_norm
    optimizer.check_overflow = lambda partition_gradients=True: None


def _join_zero_3(optimizer: Any, read: StepRead) -> None:
    theirs = optimizer._get_norm_groups
    optimizer._get_norm_groups = lambda: list(read.with_norms(torch.stack(theirs())).unbind())
    if not optimizer.offload_optimizer:
        optimizer.check_overflow = lambda partition_gradients=True: None


def _join_bf16(optimizer: Any, read: StepRead) -> None:
    """ZeRO 1 in bf16: an optimizer of its own, which calls functions of a module."""
    from deepspeed.runtime import bf16_optimizer

    def global_norm(input_tensors: Sequence[Tensor], **_: Any) -> Tensor:
        """get_global_norm_of_tensors of deepspeed.runtime.utils."""
        norm = foreach_norms(input_tensors, torch.float32).pow(2).sum().sqrt()
        return read.with_norms(norm[None])[0]

    def clip(input_tensors: Sequence[Tensor], max_norm: float, global_norm: Tensor, **_: Any) -> None:
        """clip_tensors_by_global_norm, likewise."""
        factor = max_norm / (global_norm + 1e-6)
        if factor < 1:
            torch._foreach_mul_(list(input_tensors), float(factor))

    theirs = optimizer.step

    def step(closure: Any = None) -> None:
        ours: dict[str, Any] = {
            "get_global_norm_of_tensors": global_norm,
            "clip_tensors_by_global_norm": clip,
        }
        with _replaced(bf16_optimizer, ours):
            theirs(closure)

    optimizer.step = step


@contextmanager
def _replaced(module: Any, functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within it, the module has these functions: other engines of the process keep the module's own."""
    theirs = {name: getattr(module, name) for name in functions}
    vars(module).update(functions)
    try:
        yield
    finally:
        vars(module).update(theirs)
