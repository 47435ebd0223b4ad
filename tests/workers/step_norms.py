"""A few steps of a small engine with DeepSpeed's own norm, and with ours.

`python step_norms.py OUT.json STAGE DTYPE [offload]`. Gradients are given, not computed, the same for both:
one set clipped, one not, one with an infinity and one with a NaN on one rank. Rank 0 writes each step's norm,
None where the update was dropped, the loss scale and the weights after it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from mtdnn_ds import dist
from mtdnn_ds.train.engine import start_distributed, start_engine, stop_distributed, stop_engine
from mtdnn_ds.train.step.step_read import StepRead

SIZES = (1, 7, 64, 200)
STEPS = {"clipped": 3.0, "small": 1e-4, "inf": float("inf"), "nan": float("nan"), "after": 1.0}


class Weights(nn.Module):
    """A loss whose gradient is what it is given, whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.parts = nn.ParameterList(torch.randn(size, generator=generator) for size in SIZES)

    def forward(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        products = [(own * given).sum() for own, given in zip(self.parts, gradients, strict=True)]
        return torch.stack(products).sum()


def gradients_of(step: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Of this rank; the last rank alone has what is not finite."""
    generator = torch.Generator().manual_seed(dist.rank())
    factor = STEPS[step]
    is_finite = factor - factor == 0
    given = [torch.randn(size, generator=generator) * (factor if is_finite else 1.0) for size in SIZES]
    if not is_finite and dist.rank() == dist.world_size() - 1:
        given[1][3] = factor
    return [each.to(dtype) for each in given]


def steps(stage: int, precision: str, *, offloaded: bool, ours: bool) -> list[dict[str, Any]]:
    model = Weights()
    groups = [
        {"params": list(model.parts[:2]), "weight_decay": 0.1, "lr_factor": 1.0},
        {"params": list(model.parts[2:]), "weight_decay": 0.0, "lr_factor": 1.0},
    ]
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": stage},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if precision == "fp16":
        config["fp16"] = {"enabled": True, "initial_scale_power": 4, "hysteresis": 1}
    if offloaded:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        config["zero_force_ds_cpu_optimizer"] = False
    engine = start_engine(model, torch.optim.AdamW(groups, lr=0.1, fused=True), config)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    read = None
    if ours:
        read = StepRead(engine)
        assert read.joins

    found = []
    for step in STEPS:
        before = engine.skipped_steps
        engine.backward(engine(gradients_of(step, dtype)), scale_wrt_gas=False)
        if read is not None:
            read.expect(torch.tensor([[1.0, 2.0]]))
        engine.step()
        if read is not None:
            assert read.totals.tolist() == [[1.0, 2.0]]
        with_all = engine.module.parts
        norm = None if engine.skipped_steps > before else float(engine.get_global_grad_norm())
        scale = getattr(engine.optimizer, "loss_scale", 1.0)
        found.append({"step": step, "norm": norm, "scale": scale, "weights": weights_of(with_all, stage)})
    stop_engine(engine)
    return found


def weights_of(parts: nn.ParameterList, stage: int) -> list[list[float]]:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parts), enabled=stage == 3):
        return [part.detach().float().tolist() for part in parts]


def main(out: str, stage: str, precision: str, offload: str = "") -> None:
    start_distributed()
    get_accelerator().is_fp16_supported = lambda: True  # slow on CPUs, and DeepSpeed's own all the same
    found = {
        name: steps(int(stage), precision, offloaded=bool(offload), ours=name == "ours")
        for name in ("theirs", "ours")
    }
    if dist.is_main():
        Path(out).write_text(json.dumps(found))
    stop_distributed()


if __name__ == "__main__":
    main(*sys.argv[1:])
