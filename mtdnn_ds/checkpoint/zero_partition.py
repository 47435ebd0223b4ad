"""Which part of each trained parameter this rank keeps in float32, and where: DeepSpeed 0.19.8's layouts in memory. Moves no value.

    ZeRO 0     every rank keeps all parameters, whole
    ZeRO 1, 2  a group of parameters is laid end to end and cut into equal parts; parameters end wherever they fall
    ZeRO 3     every parameter is cut into equal parts, the last one padded

DeepSpeed's own link from parameters to ZeRO 1's and 2's parts (`_hp_mapping`) takes the order of the group, which
`round_robin_gradients` changes; here the offsets come from the order that was really used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtdnn_ds import dist


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Elements [start, start + numel) of a flattened parameter, at `offset` of the flattened tensor `flat` that the optimizer updates."""

    flat: Tensor  # the parameter itself, or parts of many
    group: int  # the optimizer's parameter group
    offset: int
    start: int
    numel: int


def held_parts(engine: Any) -> dict[nn.Parameter, Held]:
    """What this rank keeps of the trained parameters; those that it keeps nothing of are left out."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return {
            parameter: Held(flat=parameter, group=number, offset=0, start=0, numel=parameter.numel())
            for number, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }
    held = _held_by_rank(optimizer) if stage == 3 else _held_anywhere(optimizer)
    return {parameter: part for parameter, part in held.items() if part.numel > 0}


def _held_anywhere(optimizer: Any) -> dict[nn.Parameter, Held]:
    held: dict[nn.Parameter, Held] = {}
    # With bf16 weights and stage 1 another class of DeepSpeed's keeps them, under other names.
    is_bf16 = hasattr(optimizer, "fp32_groups_flat_partition")
    flats = optimizer.fp32_groups_flat_partition if is_bf16 else optimizer.single_partition_of_fp32_groups
    for number, (flat, group) in enumerate(
        zip(flats, optimizer.bf16_groups if is_bf16 else optimizer.round_robin_bit16_groups, strict=True)
    ):
        paddings = [0] * len(group) if is_bf16 else optimizer.round_robin_bit16_padding[number]
        first, last, begin = dist.rank() * flat.numel(), (dist.rank() + 1) * flat.numel(), 0
        for parameter, padding in zip(group, paddings, strict=True):
            low, high = max(begin, first), min(begin + parameter.numel(), last)
            held[parameter] = Held(
                flat=flat, group=number, offset=low - first, start=low - begin, numel=max(high - low, 0)
            )
            begin += parameter.numel() + padding
    return held


def _held_by_rank(optimizer: Any) -> dict[nn.Parameter, Held]:
    held: dict[nn.Parameter, Held] = {}
    for number, (flat, group) in enumerate(
        zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True)
    ):
        offset = 0
        for parameter in group:
            size = parameter.ds_tensor.numel()
            start = min(dist.rank() * size, parameter.ds_numel)
            numel = min(size, parameter.ds_numel - start)
            held[parameter] = Held(
                flat=flat,
                group=optimizer.sub_group_to_group_id[number],
                offset=offset,
                start=start,
                numel=numel,
            )
            offset += size
    return held
