"""Which part of each trained parameter this rank keeps in float32, and where. Moves no value.

DeepSpeed 0.19.8's layouts in memory:

    ZeRO 0     every rank keeps all parameters, whole
    ZeRO 1, 2  a group of parameters is laid end to end and cut into equal parts; they end wherever they fall
    ZeRO 3     every parameter is cut into equal parts, the last one padded

DeepSpeed's own link from parameters to ZeRO 1's and 2's parts (`_hp_mapping`) takes the order of the group,
which `round_robin_gradients` changes; here the offsets come from the order that was really used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtdnn_ds import dist

# Parts of a run's topology that say which rank keeps what; checkpoint/restore.py carries a state over to
# others. The precision is the rest.
PARTITION = (
    "world_size",
    "zero_stage",
    "offload_optimizer",
    "round_robin_gradients",
    "parameter_alignment",
    "sub_group_size",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnedPart:
    """Elements [start, start + numel) of a flattened parameter, at `offset` of the flat tensor `flat`."""

    flat: Tensor  # what the optimizer updates: the parameter itself, or parts of many
    group: int  # the optimizer's parameter group
    offset: int
    start: int
    numel: int


def owned_parts(engine: Any) -> dict[nn.Parameter, OwnedPart]:
    """What this rank keeps of the trained parameters; those that it keeps nothing of are left out."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return _whole(optimizer)

    parts = _cut_by_rank(optimizer) if stage == 3 else _cut_anywhere(optimizer)
    return {parameter: part for parameter, part in parts.items() if part.numel > 0}


def _whole(optimizer: Any) -> dict[nn.Parameter, OwnedPart]:
    """ZeRO 0."""
    parts: dict[nn.Parameter, OwnedPart] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            parts[parameter] = OwnedPart(
                flat=parameter, group=number, offset=0, start=0, numel=parameter.numel()
            )
    return parts


def _cut_anywhere(optimizer: Any) -> dict[nn.Parameter, OwnedPart]:
    """ZeRO 1 and 2."""
    # With bf16 weights and stage 1 another class of DeepSpeed's keeps them, under other names, and unpadded.
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        flats, groups = optimizer.fp32_groups_flat_partition, optimizer.bf16_groups
        paddings = [[0] * len(group) for group in groups]
    else:
        flats, groups = optimizer.single_partition_of_fp32_groups, optimizer.round_robin_bit16_groups
        paddings = optimizer.round_robin_bit16_padding

    parts: dict[nn.Parameter, OwnedPart] = {}
    for number, (flat, group) in enumerate(zip(flats, groups, strict=True)):
        first, last = dist.rank() * flat.numel(), (dist.rank() + 1) * flat.numel()
        begin = 0
        for parameter, padding in zip(group, paddings[number], strict=True):
            low, high = max(begin, first), min(begin + parameter.numel(), last)
            parts[parameter] = OwnedPart(
                flat=flat, group=number, offset=low - first, start=low - begin, numel=max(high - low, 0)
            )
            begin += parameter.numel() + padding
    return parts


def _cut_by_rank(optimizer: Any) -> dict[nn.Parameter, OwnedPart]:
    """ZeRO 3."""
    parts: dict[nn.Parameter, OwnedPart] = {}
    flats, groups = optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups
    for number, (flat, group) in enumerate(zip(flats, groups, strict=True)):
        offset = 0
        for parameter in group:
            size = parameter.ds_tensor.numel()
            start = min(dist.rank() * size, parameter.ds_numel)
            parts[parameter] = OwnedPart(
                flat=flat,
                group=optimizer.sub_group_to_group_id[number],
                offset=offset,
                start=start,
                numel=min(size, parameter.ds_numel - start),
            )
            offset += size
    return parts
