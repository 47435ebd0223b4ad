"""Sharing of the encoder on weights: building it, and taking one task's plain encoder out of it again. Records are in tasks/sharing.py.

Names of weights are those of MultiTaskModel: `encoder.model.X` and `encoder.pooler.X` with hard sharing; soft sharing has them below
`encoder.copies.N.`, low-rank sharing has `encoder.model.X.delta.a` and `.delta.b` beside `encoder.model.X.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.low_rank import DELTA, add_low_rank
from mtdnn_ds.tasks.sharing import Sharing

ENCODER = "encoder."


def share_encoder(encoder: PackedEncoder, sharing: Sharing, *, seed: int) -> PackedEncoder | CopiedEncoder:
    """`encoder` as its tasks share it; every task begins with its weights. Raises ConfigError where it cannot serve the mode."""
    if sharing.mode == "soft":
        return CopiedEncoder(encoder, sharing.groups)
    if sharing.mode == "low_rank":
        add_low_rank(encoder, sharing, seed=seed)
    return encoder


def merged_encoder_state(weights: Mapping[str, Tensor], sharing: Sharing, task: int) -> dict[str, Tensor]:
    """The encoder of one task (index into the run's tasks) as a PackedEncoder's state dict: `model.X` are Hugging Face's names X.

    `weights`: of the whole run, or at least all that begin with `encoder.`. Low-rank changes are added to the weights they change,
    in float32 whatever the dtype.
    """
    if sharing.mode == "hard":
        return _encoder(weights)
    return group_state(weights, sharing, sharing.group_of_task[task])


def group_state(weights: Mapping[str, Tensor], sharing: Sharing, group: int) -> dict[str, Tensor]:
    """The same for a group of tasks; not for hard sharing."""
    if sharing.mode == "soft":
        return _below(weights, f"{ENCODER}copies.{group}.")
    whole, rows = _encoder(weights), slice(group * sharing.rank, (group + 1) * sharing.rank)
    state = {name: tensor for name, tensor in whole.items() if f".{DELTA}." not in name}
    for name in whole:
        if name.endswith(f".{DELTA}.a"):
            layer = name.removesuffix(f".{DELTA}.a")
            a, b, weight = whole[name][rows], whole[f"{layer}.{DELTA}.b"][rows], whole[f"{layer}.weight"]
            state[f"{layer}.weight"] = (weight.float() + b.float().T @ a.float()).to(weight.dtype)
    return state


def _encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _below(weights, ENCODER)


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
