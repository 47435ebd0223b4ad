"""Whole weights out of a sharded engine, and the best ones of each task. No optimizer state (train/checkpoint.py).

runs/NAME/best/TASK and runs/NAME/best/average each hold model.safetensors (names as in MultiTaskModel) and best.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mtdnn_ds import dist
from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.train.safe_load import load, safe_loads

WEIGHTS = "model.safetensors"
BEST = "best.json"


def gather_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The model's whole state dict on the CPU of rank 0 (empty elsewhere), in the dtype it computes in.

    Collective: all ranks must call this; under ZeRO 3 it gathers one parameter at a time.
    """
    if engine.zero_optimization_stage() < 3:
        return _on_cpu(engine.module.state_dict()) if dist.is_main() else {}
    from deepspeed.runtime.zero import GatheredParameters

    weights = {}
    for name, parameter in engine.module.named_parameters():
        with GatheredParameters([parameter]):
            if dist.is_main():
                weights[name] = parameter.detach().cpu().clone()
    if dist.is_main():
        weights.update(_on_cpu({name: buffer for name, buffer in engine.module.state_dict().items() if name not in weights}))
    return weights


def save_best(engine: Any, best: Path, *, winners: Sequence[str], step: int, metrics: Mapping[str, Any]) -> None:
    """Keep the present weights as the best of `winners` (task names or "average"); written once, then hard-linked.

    Collective: all ranks must call this with equal arguments.
    """
    weights = gather_weights(engine)
    dist.on_main(lambda: _write_best(weights, best, winners, step, metrics))


def _write_best(weights: dict[str, torch.Tensor], best: Path, winners: Sequence[str], step: int, metrics: Mapping[str, Any]) -> None:
    best.mkdir(parents=True, exist_ok=True)
    source: Path | None = None
    for name in winners:
        aside, final, old = (best / prefix for prefix in (f".new_{name}", name, f".old_{name}"))
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        if source is None:
            save_file(weights, aside / WEIGHTS)
        else:
            _link(source, aside / WEIGHTS)
        (aside / BEST).write_text(json.dumps({"step": step, "metrics": metrics if name == "average" else metrics[name]}, indent=1))
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            os.replace(final, old)
        os.replace(aside, final)
        shutil.rmtree(old, ignore_errors=True)
        source = final / WEIGHTS


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights from best/NAME, or from a checkpoint step_N of any ZeRO stage and world size, as the run computed with them.

    ZeRO 3 keeps no whole weights: there they are put together from the float32 masters. A checkpoint must be whole
    (train/checkpoint.py has checked it). Needs no GPU and no process group.
    """
    if (folder / WEIGHTS).is_file():
        try:
            return load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / WEIGHTS}: is damaged ({error}); give another --checkpoint") from error
    shard = folder / "mp_rank_00_model_states.pt"
    if shard.is_file():
        return dict(load(shard)["module"])
    if list(folder.glob("zero_pp_rank_*_model_states.pt")):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with safe_loads(folder):
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name))
    raise CheckpointError(f"{folder}: neither {WEIGHTS} nor {shard.name} is there; give best/TASK, best/average or checkpoints/step_N")


def weights_sha256(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 of names, types, shapes and values: equal for the same weights in best/NAME and in a checkpoint."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _on_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
