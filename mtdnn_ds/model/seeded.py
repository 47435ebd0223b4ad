"""Weights drawn from (seed, purpose), streams that no other draw disturbs. Never a global generator."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose of one run; the same on every machine."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


@torch.no_grad()
def seeded_normal_(weight: Tensor, *, std: float, seed: int, purpose: str) -> None:
    """Fills `weight` (on the CPU) in place from N(0, std^2)."""
    generator = torch.Generator().manual_seed(derived_seed(seed, purpose))
    weight.normal_(0.0, std, generator=generator)


@torch.no_grad()
def reset_linear_layers(module: nn.Module, *, std: float, seed: int, purpose: str) -> None:
    """Weights from N(0, std^2) and zero biases for every linear layer in `module`, as BERT draws them."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            seeded_normal_(child.weight, std=std, seed=seed, purpose=f"{purpose}.{name}")
            if child.bias is not None:
                child.bias.zero_()
