"""IdleHeads: heads of tasks that a step has no example of stay as they were (optimizer.idle_heads: freeze).

Such a head has a gradient of zeros, which it needs under ZeRO. Adam and its kin still move it, by the
momentum of earlier steps and by weight decay. Here weights and moments of its elements are copied before the
optimizer's own step and put back after it, on each rank those that it keeps. What DeepSpeed then casts,
gathers and saves are the old values, so this needs no collective and no state of its own, at any ZeRO stage.
A count of steps that a head shares with others goes on.

Not whole parameters: a bank of heads is one, and ZeRO lays many end to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtdnn_ds.checkpoint.zero_partition import owned_parts
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.tasks.layout import HeadLayout

_WEIGHTS = "weights"  # beside the names of an optimizer's states


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadElements:
    """Elements [start, stop) of a flattened parameter, which `tasks` alone read."""

    parameter: nn.Parameter
    start: int
    stop: int
    tasks: frozenset[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """Elements [start, stop) of a tensor that the optimizer updates as one."""

    start: int
    stop: int
    tasks: frozenset[int]


class IdleHeads:
    """Built when the engine is, and restored; works from within the optimizer's step, by torch's hooks."""

    def __init__(self, engine: Any) -> None:
        self._pieces = _pieces(engine)
        self._idle: dict[Tensor, list[slice]] = {}  # of the present step
        self._kept: dict[Tensor, dict[str, list[Tensor]]] = {}  # within an optimizer's step

        for optimizer in _optimizers(engine):
            optimizer.register_step_pre_hook(self._keep)
            optimizer.register_step_post_hook(self._put_back)

    def begin_step(self, counts_N: np.ndarray) -> None:
        """Tell how many examples of each task the step has, on all ranks together."""
        present = frozenset(np.flatnonzero(counts_N).tolist())
        idle = {flat: _merged(pieces, present) for flat, pieces in self._pieces.items()}
        self._idle = {flat: ranges for flat, ranges in idle.items() if ranges}

    @torch.no_grad()
    def _keep(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._kept:
            return  # the step of a class that another one's step calls

        # DeepSpeed may hand the optimizer one group, or a part of one, at a time.
        for group in optimizer.param_groups:
            for flat in group["params"]:
                if flat in self._idle:
                    self._kept[flat] = {
                        name: [part.clone() for part in self._parts(flat, tensor)]
                        for name, tensor in _tensors(optimizer, flat).items()
                    }

    @torch.no_grad()
    def _put_back(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for flat, kept in self._kept.items():
            for name, tensor in _tensors(optimizer, flat).items():
                parts = self._parts(flat, tensor)
                if name in kept:
                    torch._foreach_copy_(parts, kept[name])
                else:  # made in this step, of zeros
                    torch._foreach_zero_(parts)
        self._kept = {}

    def _parts(self, flat: Tensor, tensor: Tensor) -> list[Tensor]:
        return [tensor.view(-1)[own] for own in self._idle[flat]]


def idle_heads(engine: Any, choice: str) -> IdleHeads | None:
    """For `optimizer.idle_heads` of a recipe and an engine that has been started; None where heads always
    move.
    """
    if choice == "update":
        return None
    return IdleHeads(engine)


def head_elements(net: MultiTaskNet) -> list[HeadElements]:
    """What of the heads belongs to tasks alone, each element once, whatever else its parameter holds."""
    owners: dict[tuple[nn.Parameter, int, int], set[int]] = {}
    for name, head in net.heads.items():
        for parameter, start, stop, tasks in _of_head(name, head, net.layout):
            owners.setdefault((parameter, start, stop), set()).update(tasks)
    return [
        HeadElements(parameter=parameter, start=start, stop=stop, tasks=frozenset(tasks))
        for (parameter, start, stop), tasks in owners.items()
        if start < stop
    ]


def _of_head(
    name: str, head: nn.Module, layout: HeadLayout
) -> Iterator[tuple[nn.Parameter, int, int, set[int]]]:
    """(parameter, start, stop, tasks), by what the head says of its parameters (train/init/from_run.py)."""
    terms = [term for term in layout.terms if term.head == name]
    columns_first: Sequence[str] = getattr(head, "per_column", ())
    terms_first: Sequence[str] = getattr(head, "per_term", ())
    module: str | None = getattr(head, "per_term_module", None)
    if not columns_first and module is None:  # one for all its tasks
        for parameter in head.parameters():
            yield parameter, 0, _shape(parameter).numel(), {term.task for term in terms}
        return

    for index, term in enumerate(terms):
        for own in columns_first:
            parameter = head.get_parameter(own)
            yield parameter, *_rows(parameter, term.columns), {term.task}
        for own in terms_first:
            parameter = head.get_parameter(own)
            yield parameter, *_rows(parameter, range(index, index + 1)), {term.task}
        if module is not None:
            for parameter in head.get_submodule(f"{module}.{index}").parameters():
                yield parameter, 0, _shape(parameter).numel(), {term.task}


def _rows(parameter: nn.Parameter, rows: range) -> tuple[int, int]:
    """Where these rows of a parameter begin and end in it."""
    shape = _shape(parameter)
    width = shape[1:].numel()
    return rows.start * width, rows.stop * width


def _shape(parameter: Any) -> torch.Size:
    """Also under ZeRO 3, which leaves an empty tensor."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _pieces(engine: Any) -> dict[Tensor, list[_Piece]]:
    """What this rank keeps of the trained heads, by the tensor that the optimizer updates, in order."""
    parts = owned_parts(engine)
    pieces: dict[Tensor, list[_Piece]] = {}
    for own in head_elements(engine.module):
        part = parts.get(own.parameter)
        if part is None:
            continue
        low, high = max(own.start, part.start), min(own.stop, part.start + part.numel)
        if low < high:
            shift = part.offset - part.start
            piece = _Piece(start=low + shift, stop=high + shift, tasks=own.tasks)
            pieces.setdefault(part.flat, []).append(piece)
    return {flat: sorted(own, key=lambda piece: piece.start) for flat, own in pieces.items()}


def _merged(pieces: Sequence[_Piece], present: frozenset[int]) -> list[slice]:
    """The pieces that no present task reads; neighbours as one."""
    ranges: list[slice] = []
    for piece in pieces:
        if piece.tasks & present:
            continue
        start = piece.start
        if ranges and ranges[-1].stop == start:
            start = ranges.pop().start
        ranges.append(slice(start, piece.stop))
    return ranges


def _tensors(optimizer: torch.optim.Optimizer, flat: Tensor) -> Mapping[str, Tensor]:
    """The weights and their states, those with a value for each element."""
    states = optimizer.state.get(flat, {})
    return {
        _WEIGHTS: flat,
        **{
            name: state
            for name, state in states.items()
            if torch.is_tensor(state) and state.shape == flat.shape and name != "step"
        },
    }


def _optimizers(engine: Any) -> list[torch.optim.Optimizer]:
    """The optimizers that update weights: under ZeRO 3 two, where a part of the states is offloaded."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 0:
        return [optimizer]
    both = (optimizer.optimizer, getattr(optimizer, "backup_optimizer", None))
    return [each for each in both if each is not None]
