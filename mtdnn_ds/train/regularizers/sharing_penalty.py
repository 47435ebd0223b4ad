"""SharingPenalty: draws weights of tasks together, beside the optimizer. Shares nothing itself (model/).

    soft      R = p/2 sum over parameters and copies g of |theta_g - m|^2, with m the mean over the copies
    low_rank  R = p/2 sum over linear layers and groups g of |B_g|^2, which is nearly |B_g A_g|^2: the rows of
              A_g begin nearly orthonormal

After each update with learning rate a the weights move to argmin_x |x - theta|^2 / 2 + a R(x), the proximal
step of R (Parikh and Boyd 2014, "Proximal algorithms", section 4.2):

    soft      theta_g <- m + (theta_g - m) / (1 + a p)          the copies' mean stays where it is
    low_rank  B_g     <- B_g / (1 + a p)

So any p is stable; with p = 0 nothing is tied, and with p to infinity all copies are the same, or all B_g are
0, after each step: hard sharing. As part of the loss, R would go through Adam's division by the root of
squared gradients (Loshchilov and Hutter 2019, arXiv:1711.05101): a weight that a task has no gradient for
would move by whole steps however small p is, and a large p would drown the tasks' gradients.

Deviations are those of the weights that the model computes with; they move the optimizer's fp32 copies, of
which each rank holds a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.zero_partition import OwnedPart, owned_parts
from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.low_rank import LowRankDelta
from mtdnn_ds.tasks.sharing import Sharing


def sharing_penalty(engine: Any, sharing: Sharing) -> SharingPenalty | None:
    """The penalty of a run whose engine has been started; None where there is none."""
    if sharing.mode == "hard" or not sharing.penalty:
        return None
    return SharingPenalty(engine, sharing.penalty)


class SharingPenalty:
    """Holds no state: everything follows from the engine's weights."""

    def __init__(self, engine: Any, penalty: float) -> None:
        self.penalty = penalty
        self._engine = engine
        self._families = _families(engine.module.encoder)
        self._held = owned_parts(engine)

    @torch.no_grad()
    def apply_proximal_step(self, lr: float) -> float:
        """Move the weights as belongs to an update with learning rate `lr`; returns R of the weights after
        it.

        Collective: all ranks must call this, after the update.
        """
        squares = torch.zeros((), dtype=torch.float64, device=self._engine.device)
        shrink = 1 + lr * self.penalty  # a deviation d becomes d / (1 + a p): it moves by -d a p / (1 + a p)
        for family in self._families:
            for parameter, deviation in self._deviations(family):
                squares += deviation.square().sum().to(squares)
                _move(parameter, self._held[parameter], deviation.mul_(-lr * self.penalty / shrink))
        _refresh(self._engine)

        # Without ZeRO every rank holds, and has added, everything.
        shares = 1
        if self._engine.zero_optimization_stage() == 0:
            shares = dist.world_size()
        return 0.5 * self.penalty * float(dist.sum_tensor(squares)) / shares / shrink**2

    def _deviations(self, family: Sequence[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
        """For each parameter of which this rank holds a part: how far the part is from the family's mean, or
        from 0 without a family.

        New tensors in float32, all taken before any weight moves.
        """
        held = []
        for parameter in family:
            if parameter in self._held:
                part = self._held[parameter]
                held.append((parameter, part.start, part.numel))
        if len(family) == 1:
            return [(parameter, _values(parameter, start, size).clone()) for parameter, start, size in held]
        if not held:
            return []

        low = min(start for _, start, _ in held)
        high = max(start + size for _, start, size in held)
        # From the first copy on, so that rounding is of the size of the differences: equal copies have no
        # deviation.
        first = _values(family[0], low, high - low)
        differences = torch.zeros_like(first)
        for parameter in family[1:]:
            differences += _values(parameter, low, high - low) - first
        mean = first + differences / len(family)

        return [
            (parameter, _values(parameter, start, size) - mean[start - low : start - low + size])
            for parameter, start, size in held
        ]


def _families(encoder: nn.Module) -> list[tuple[nn.Parameter, ...]]:
    """The trained parameters that belong together: one of each copy, or the factor B of one layer alone."""
    if isinstance(encoder, CopiedEncoder):
        families = zip(*(copy.parameters() for copy in encoder.copies), strict=True)
        return [family for family in families if family[0].requires_grad]
    return [
        (module.b,)
        for module in encoder.modules()
        if isinstance(module, LowRankDelta)
        if module.b.requires_grad
    ]


def _values(parameter: Any, start: int, size: int) -> Tensor:
    """Values that the model computes with, in float32; under ZeRO 3 of a part that this rank holds."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.detach()[:size].float()
    return parameter.detach().flatten()[start : start + size].float()


def _move(parameter: Any, held: OwnedPart, change: Tensor) -> None:
    """Add `change` to the part of the fp32 values that this rank holds."""
    held.flat.view(-1)[held.offset : held.offset + held.numel] += change.to(held.flat.device)
    if hasattr(parameter, "ds_tensor"):
        parameter.ds_tensor.view(-1)[: held.numel].copy_(held.flat[held.offset : held.offset + held.numel])


def _refresh(engine: Any) -> None:
    """Bring the moved fp32 values back to the weights of the forward, on all ranks. Collective."""
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer.update_lp_params()
    elif engine.zero_optimization_stage() == 3 and engine.optimizer.persistent_parameters:
        # Small parameters stay whole on every rank between steps: let them go, and gather them again.
        persistent = engine.optimizer.persistent_parameters
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)
