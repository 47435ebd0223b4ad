"""AveragedModel: the averaged model of SMART's Bregman proximal point term. Knows no loss.

    copy <- momentum copy + (1 - momentum) weights

after each step (Jiang et al. 2020, arXiv:1911.03437, section 2.2).

The copy is whole and in float32 on every rank, outside the DeepSpeed engine: a 16-bit copy would round such
small changes away, and no ZeRO stage has to know of it. Under ZeRO 3 an update gathers one parameter at a
time.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.model.multitask import MultiTaskNet

FILE = "momentum.safetensors"


class AveragedModel:
    """A model whose weights follow those of the run. `compute_dtype`: that of the run's own forward."""

    def __init__(
        self, model: MultiTaskNet, *, momentum: float, compute_dtype: torch.dtype, device: torch.device
    ) -> None:
        """Equal to `model`, which is not yet in an engine."""
        self.momentum, self.compute_dtype = momentum, compute_dtype
        self.model = copy.deepcopy(model).requires_grad_(False).eval().to(device)

    @property
    def num_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @torch.no_grad()
    def outputs(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Outputs of every form, without dropout and without a graph."""
        device_type = batch.input_ids.device.type
        is_16_bit = self.compute_dtype != torch.float32
        with torch.autocast(device_type, dtype=self.compute_dtype, enabled=is_16_bit):
            return self.model.outputs(batch)

    @torch.no_grad()
    def follow(self, engine: Any) -> None:
        """Move towards the engine's weights. Collective: all ranks must call this, after a step."""
        own = dict(self.model.named_parameters())
        for name, parameter in engine.module.named_parameters():
            if engine.zero_optimization_stage() < 3:
                own[name].lerp_(parameter.float(), 1 - self.momentum)
            else:
                from deepspeed.runtime.zero import GatheredParameters

                with GatheredParameters([parameter]):
                    own[name].lerp_(parameter.float(), 1 - self.momentum)

    def save(self, folder: Path) -> None:
        """Write the whole copy, which is the same for any number of ranks, into a checkpoint. Rank 0 only."""
        save_file({name: parameter.cpu() for name, parameter in self.model.named_parameters()}, folder / FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """The copy of a checkpoint."""
        saved = load_file(folder / FILE)
        for name, parameter in self.model.named_parameters():
            parameter.copy_(saved[name])
