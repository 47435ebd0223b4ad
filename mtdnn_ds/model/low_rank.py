"""Low-rank sharing: W x + b becomes W x + b + B_g A_g x for a token of task group g. Not the penalty.

The form is LoRA's (Hu et al. 2021, arXiv:2106.09685, section 4.1) with alpha = r: A_g is drawn, B_g starts at
0, so training starts from the shared encoder. Unlike there W and b are trained too. The changes of all N
groups are one matrix product each way: B (m * (A x)) with A (N r, D_in), B (D_out, N r), and m keeping the r
values of the token's own group.

Shape legend: T packed tokens, S sequences, N groups, r rank, R = N r.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.attention_layout import AttentionLayout
from mtdnn_ds.model.dropout.replayed import Replayed
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.seeded import seeded_normal_
from mtdnn_ds.tasks.sharing import Sharing

DELTA = "delta"  # name of the module below its linear layer


class LowRankDelta(nn.Module):
    """The changes of one linear layer.

    Rows g r .. g r + r - 1 of `a` (R, D_in) are A_g, those of `b` (R, D_out) are B_g transposed.
    """

    def __init__(self, linear: nn.Linear, sharing: Sharing, *, seed: int, purpose: str) -> None:
        """A is drawn from N(0, 1 / D_in), so that A x is of the size of x and |B A| nearly |B|; B is 0."""
        super().__init__()
        rows = len(sharing.groups) * sharing.rank
        self.a = nn.Parameter(torch.empty(rows, linear.in_features))
        self.b = nn.Parameter(torch.zeros(rows, linear.out_features))
        seeded_normal_(self.a, std=linear.in_features**-0.5, seed=seed, purpose=purpose)
        self.to(linear.weight.dtype)

    def forward(self, input_TD: Tensor, own_TR: Tensor) -> Tensor:
        """B_g A_g x of each token, (..., T, D_out); `own_TR` is true for the r values of its own group."""
        return (functional.linear(input_TD, self.a) * own_TR) @ self.b


class _TokenGroups:
    """Which of the R values belong to each token of the micro-batch that is running."""

    def __init__(self, num_groups: int, rank: int, running: Replayed) -> None:
        self.group_of_value = torch.arange(num_groups).repeat_interleave(rank)
        self.running = running

    def read(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the encoder's forward: from the layout that travels with the tokens."""
        layout: AttentionLayout = kwargs["packed_layout"]
        assert layout.token_groups is not None, (
            "a micro-batch for low-rank sharing says which group its sequences belong to"
        )
        self.group_of_value = self.group_of_value.to(layout.token_groups.device, non_blocking=True)
        self.running.values["own_TR"] = layout.token_groups[:, None] == self.group_of_value

    def change(self, linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """After a linear layer's forward: its output with the changes added."""
        return output + linear.get_submodule(DELTA)(args[0], self.running.values["own_TR"])


def add_low_rank(encoder: PackedEncoder, sharing: Sharing, *, seed: int) -> None:
    """Gives every linear layer below the pooler a LowRankDelta as a child module.

    The layer's own parameters keep their names.

    Raises ConfigError where the encoder cannot serve it.
    """
    if not encoder.packs:
        raise ConfigError(
            f"sharing.mode=low_rank: the encoder does not run on packed tokens ({encoder.notes[-1]}); "
            "use soft or hard"
        )

    linears = {
        name: module for name, module in encoder.model.named_modules() if isinstance(module, nn.Linear)
    }
    most = min(min(linear.weight.shape) for linear in linears.values())
    if sharing.rank > most:
        raise ConfigError(
            f"sharing.rank={sharing.rank}: a linear layer of the encoder has rank {most} at most; "
            "set it lower"
        )

    groups = _TokenGroups(len(sharing.groups), sharing.rank, encoder.running)
    encoder.model.register_forward_pre_hook(groups.read, with_kwargs=True)
    for name, linear in linears.items():
        linear.add_module(DELTA, LowRankDelta(linear, sharing, seed=seed, purpose=f"{DELTA}.{name}"))
        linear.register_forward_hook(groups.change)

    deltas = [linear.get_submodule(DELTA) for linear in linears.values()]
    size = sum(values.numel() for delta in deltas for values in delta.parameters()) / 1e6
    note = (
        f"low-rank sharing: changes of rank {sharing.rank} for {', '.join(sharing.groups)} on {len(linears)} "
        f"linear layers, {size:,.1f} M parameters"
    )
    encoder.notes = (*encoder.notes, note)
