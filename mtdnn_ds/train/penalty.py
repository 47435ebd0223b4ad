"""SharingPenalty: the term of the objective that ties what tasks share, as gradients and as a value. Not the sharing itself (model/).

    soft      p/2 sum over parameters and copies g of |theta_g - m|^2, with m the mean over the copies     gradient p (theta_g - m)
    low_rank  p/2 sum over linear layers and groups g of |B_g A_g|^2 (Frobenius)        gradients p B_g A_g A_g^T and p B_g^T B_g A_g

The gradient of the soft term is exactly p (theta_g - m): what m contributes cancels, as the deviations of all copies add up to 0.

A parameter gets its gradient where autograd hands it over to DeepSpeed, once a step, in the last micro-batch: from there it is
accumulated, averaged over ranks, clipped and sharded like every other. No parameter is gathered for it: of a copy's tensor each rank
adds the gradient of its own slice (under ZeRO 3 the one it holds), times the number of ranks, because DeepSpeed averages over them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtdnn_ds import dist
from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.low_rank import LowRankDelta
from mtdnn_ds.tasks.sharing import Sharing


def sharing_penalty(engine: Any, sharing: Sharing) -> SharingPenalty | None:
    """The penalty of a run whose engine has been started; None where there is none."""
    return SharingPenalty(engine, engine.module.encoder, sharing.penalty) if sharing.mode != "hard" and sharing.penalty else None


class SharingPenalty:
    """Adds the penalty's gradient in the backward pass of each step's last micro-batch."""

    def __init__(self, engine: Any, encoder: nn.Module, penalty: float) -> None:
        self.penalty = penalty
        self._engine = engine
        self._gradient_scale = 1.0
        self._value = torch.zeros((), dtype=torch.float64, device=engine.device)  # this rank's share
        self._ties: list[_Tie] = []
        if isinstance(encoder, CopiedEncoder):
            for copies in zip(*(copy.parameters() for copy in encoder.copies), strict=True):
                if copies[0].requires_grad:
                    self._ties.append(_Tie(copies))
                    for parameter in copies:
                        parameter.register_hook(partial(self._tied, self._ties[-1], parameter))
        for module in encoder.modules():
            if isinstance(module, LowRankDelta):
                module.factors.register_hook(partial(self._shrunk, module))

    def begin(self, gradient_scale: float) -> None:
        """Before a step's first micro-batch. `gradient_scale`: fp16's loss scale, which DeepSpeed divides gradients by."""
        self._gradient_scale = gradient_scale
        self._value.zero_()
        for tie in self._ties:
            tie.measure()

    def value(self) -> float:
        """The penalty of the weights that the step began with; after its last micro-batch. Collective: all ranks must call this."""
        return float(dist.sum_tensor(self._value.clone()))

    def _tied(self, tie: _Tie, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        if not self._engine.is_gradient_accumulation_boundary():
            return gradient
        start, own = own_slice(parameter)
        deviation = (own.float() - tie.mean).to(gradient.device)
        self._add(deviation.square().sum())
        result = gradient.clone(memory_format=torch.contiguous_format)
        result.view(-1)[start : start + own.numel()] += (self._gradient_scale * self.penalty * dist.world_size() * deviation).to(gradient.dtype)
        return result

    def _shrunk(self, delta: LowRankDelta, gradient: Tensor) -> Tensor:
        if not self._engine.is_gradient_accumulation_boundary():
            return gradient
        factors_NRD = delta.factors.detach().float().view(delta.num_groups, delta.rank, -1)
        a_NRD, b_NRD = factors_NRD.tensor_split([delta.in_features], dim=2)
        gram_a_NRR, gram_b_NRR = a_NRD @ a_NRD.mT, b_NRD @ b_NRD.mT
        self._add((gram_a_NRR * gram_b_NRR).sum() / dist.world_size())  # |B A|^2 = <B^T B, A A^T>, equal on every rank
        slope_NRD = torch.cat([gram_b_NRR @ a_NRD, gram_a_NRR @ b_NRD], dim=2)
        return gradient + (self._gradient_scale * self.penalty * slope_NRD).view_as(gradient).to(gradient.dtype)

    def _add(self, squares: Tensor) -> None:
        self._value += 0.5 * self.penalty * squares.double()


class _Tie:
    """One parameter of every copy, and the mean of this rank's slice of them."""

    def __init__(self, copies: tuple[nn.Parameter, ...]) -> None:
        self.copies = copies
        self.mean = torch.empty(0)

    def measure(self) -> None:
        total = own_slice(self.copies[0])[1].float()
        for parameter in self.copies[1:]:
            total = total + own_slice(parameter)[1].float()
        self.mean = total / len(self.copies)


def own_slice(parameter: nn.Parameter) -> tuple[int, Tensor]:
    """(first index, values) of this rank's slice of the flattened parameter; it may be empty.

    Under ZeRO 3 it is the partition that the rank holds (DeepSpeed 0.19.8: `ds_tensor`, all of one size, the last ones padded).
    """
    partition: Tensor | None = getattr(parameter, "ds_tensor", None)
    numel = parameter.numel() if partition is None else int(getattr(parameter, "ds_numel"))  # noqa: B009
    size = -(-numel // dist.world_size()) if partition is None else partition.numel()
    start = min(dist.rank() * size, numel)
    size = min(size, numel - start)
    return start, parameter.detach().flatten()[start : start + size] if partition is None else partition.detach()[:size]
