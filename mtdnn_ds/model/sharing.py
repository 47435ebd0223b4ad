"""Sharing of the encoder on weights: built, one task's taken out, carried over. Not the penalty.

Names of weights are those of MultiTaskNet: `encoder.model.X` and `encoder.pooler.X` with hard sharing; soft
sharing has them below `encoder.copies.N.`, low-rank sharing has `encoder.model.X.delta.a` and `.delta.b`
beside `encoder.model.X.weight`. A plain state holds the encoder that some tasks run through, by the names of
a PackedEncoder: `model.X`, with Hugging Face's names X, and `pooler.X`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.low_rank import DELTA, add_low_rank
from mtdnn_ds.tasks.sharing import Sharing

Weights = Mapping[str, Tensor]
State = dict[str, Tensor]

ENCODER = "encoder."
_COPY = re.compile(r"^encoder\.copies\.\d+\.")


def share_encoder(encoder: PackedEncoder, sharing: Sharing, *, seed: int) -> PackedEncoder | CopiedEncoder:
    """`encoder` as its tasks share it; every task begins with its weights.

    Raises ConfigError where it cannot serve the mode.
    """
    if sharing.mode == "soft":
        return CopiedEncoder(encoder, tuple(sharing.groups))
    if sharing.mode == "low_rank":
        add_low_rank(encoder, sharing, seed=seed)
    return encoder


def num_parameters(model: nn.Module, sharing: Sharing) -> int:
    """Parameters of an encoder as its tasks share it; `model`: its Hugging Face model, pooler included."""
    values_per_rank = 0  # of the low-rank changes of one group, which the pooler has none of
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and not name.startswith("pooler"):
            values_per_rank += layer.in_features + layer.out_features
    changes = len(sharing.groups) * sharing.rank * values_per_rank

    own = sum(parameter.numel() for parameter in model.parameters())
    return sharing.num_copies * own + changes


def hard_name(name: str) -> str | None:
    """What a parameter of a shared encoder is called with hard sharing; None for a low-rank change."""
    if f".{DELTA}." in name:
        return None
    return _COPY.sub(ENCODER, name)


def merged_encoder_state(weights: Weights, sharing: Sharing, tasks: Sequence[str]) -> State:
    """The plain state of one task's encoder, or of several in one group.

    `weights`: a run's, or all of them that begin with `encoder.`. Low-rank changes are added to the weights
    they change, in float32 whatever the dtype. For tasks of several groups, or of none, it is what all share:
    the mean of the copies, or the weights without changes.
    """
    if sharing.mode == "hard":
        return _below(weights, ENCODER)

    group = sharing.only_group_of(tasks)
    if sharing.mode == "soft":
        copies = [_below(weights, f"{ENCODER}copies.{index}.") for index in range(sharing.num_copies)]
        if group is not None:
            return copies[group]
        return {name: _mean([copy[name] for copy in copies]) for name in copies[0]}

    own = _below(weights, ENCODER)
    state = {name: tensor for name, tensor in own.items() if f".{DELTA}." not in name}
    if group is None:
        return state

    # W + B_g A_g, of every layer that has changes
    rows = slice(group * sharing.rank, (group + 1) * sharing.rank)
    layers = [name.removesuffix(f".{DELTA}.a") for name in own if name.endswith(f".{DELTA}.a")]
    for layer in layers:
        a, b = own[f"{layer}.{DELTA}.a"][rows], own[f"{layer}.{DELTA}.b"][rows]
        weight = state[f"{layer}.weight"]
        state[f"{layer}.weight"] = (weight.float() + b.float().T @ a.float()).to(weight.dtype)
    return state


def carried_encoder(
    theirs: Weights, their_sharing: Sharing, ours: Weights, our_sharing: Sharing, tasks: Sequence[str]
) -> State:
    """The `encoder.` weights with which a run of `tasks` begins from another run's, by our names.

    Each of our encoders begins with what its tasks ran through there, or with what all shared there. Low-rank
    changes are carried to changes of the same rank, group by group; otherwise they keep the values in `ours`.
    """
    if our_sharing.mode == "soft":
        states = [merged_encoder_state(theirs, their_sharing, own) for own in our_sharing.groups.values()]
        return {
            f"{ENCODER}copies.{index}.{name}": tensor
            for index, state in enumerate(states)
            for name, tensor in state.items()
        }

    # With their changes carried over as changes, they must not be in the weights too.
    are_low_rank = our_sharing.mode == their_sharing.mode == "low_rank"
    keeps_changes = are_low_rank and our_sharing.rank == their_sharing.rank
    merged = merged_encoder_state(theirs, their_sharing, () if keeps_changes else tasks)
    carried = {ENCODER + name: tensor for name, tensor in merged.items()}

    for name, tensor in ours.items():
        if name.startswith(ENCODER) and f".{DELTA}." in name:
            if keeps_changes and name in theirs:
                tensor = _rows(theirs[name], their_sharing, tensor, our_sharing)
            carried[name] = tensor
    return carried


def _rows(theirs: Tensor, their_sharing: Sharing, ours: Tensor, our_sharing: Sharing) -> Tensor:
    """Our factor with the rows of every group whose tasks were in one group there."""
    rank = our_sharing.rank
    parts = []
    for own, tasks in zip(ours.split(rank), our_sharing.groups.values(), strict=True):
        group = their_sharing.only_group_of(tasks)
        if group is not None:
            own = theirs[group * rank : (group + 1) * rank]
        parts.append(own.to(ours.dtype))
    return torch.cat(parts)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.float() for tensor in tensors]).mean(0).to(tensors[0].dtype)


def _below(weights: Weights, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
