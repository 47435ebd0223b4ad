"""Dropout on CPUs from raw random words: nn.Dropout's distribution, four times as fast. No counters.

On GPUs it is nn.Dropout's own. `bernoulli_` draws one double per element (17 ms for 2 million elements, two
threads); one 64-bit word holds the 16-bit draws of four elements (5 ms). An element is dropped when its draw
is below round(p * 2^16), and the others are scaled by 1 / (1 - p'), p' being that rounded probability, so the
mean is exact and p is off by at most 2^-17.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

DropoutMode = Literal["model", "none", "counter"]
"""Of a run (train.dropout): as encoder and tasks say; off everywhere; as they say, with masks from counters.

The last is counter_dropout.py's.
"""

LEVELS = 2**16


class WordDropout(nn.Module):
    """nn.Dropout with the same `p`, without state; draws from torch's default generator, as it does."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        if input.device.type == "cpu":
            return word_dropout(input, self.p)
        return functional.dropout(input, self.p, training=True)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def word_dropout(input: Tensor, p: float) -> Tensor:
    """`input` with each element zeroed with probability `p` (0 <= p < 1), others scaled up; on CPUs."""
    dropped_levels = min(round(p * LEVELS), LEVELS - 1)
    words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    draws = words.view(torch.int16)[: input.numel()].view(input.shape)

    # int16 draws start at -2^15, so the dropped ones are the lowest `dropped_levels` of them.
    is_kept = draws >= dropped_levels - LEVELS // 2
    return input * is_kept.to(input.dtype).mul_(LEVELS / (LEVELS - dropped_levels))


def replace_dropout(module: nn.Module) -> None:
    """Puts a WordDropout in place of every nn.Dropout below `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, WordDropout(child.p))
