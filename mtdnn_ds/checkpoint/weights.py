"""Whole weights out of a sharded engine, and the best ones of each task.

No optimizer state (checkpoint/find.py). runs/NAME/best/TASK and runs/NAME/best/average each hold
model.safetensors (names as in MultiTaskNet) and best.json.
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
from mtdnn_ds.checkpoint.safe_load import load, safe_loads
from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.files import SaveFailed, file_sha256, free_bytes, reason, replace_file, size, sync

WEIGHTS = "model.safetensors"
BEST = "best.json"


def gather_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The model's whole state dict on the CPU of rank 0 (empty elsewhere), in the dtype it computes in.

    Collective: all ranks must call this; under ZeRO 3 it gathers one parameter at a time.
    """
    if engine.zero_optimization_stage() < 3:
        if not dist.is_main():
            return {}
        return _on_cpu(engine.module.state_dict())

    from deepspeed.runtime.zero import GatheredParameters

    weights = {}
    for name, parameter in engine.module.named_parameters():
        with GatheredParameters([parameter]):
            if dist.is_main():
                weights[name] = parameter.detach().cpu().clone()

    if dist.is_main():
        buffers = {name: value for name, value in engine.module.state_dict().items() if name not in weights}
        weights.update(_on_cpu(buffers))
    return weights


def save_best(
    engine: Any, best: Path, *, winners: Sequence[str], step: int, metrics: Mapping[str, Any]
) -> None:
    """Keep the present weights as the best of `winners` (task names or "average").

    They are written once, then hard-linked. Collective: all ranks must call this with equal arguments. Raises
    SaveFailed on all ranks; those of before are then untouched.
    """
    weights = gather_weights(engine)

    def write() -> None:
        try:
            _write_best(weights, best, winners, step, metrics)
        except (OSError, SafetensorError) as error:
            for name in winners:
                shutil.rmtree(best / f".new_{name}", ignore_errors=True)
            room = f"they take {size(sum(tensor.nbytes for tensor in weights.values()))}"
            free = free_bytes(best)
            if free is not None:
                room += f", {size(free)} are free"
            raise SaveFailed(
                f"step {step}: the best weights of {', '.join(winners)} could not be saved in {best}: "
                f"{reason(error)} ({room})"
            ) from error

    dist.on_main(write)


def _write_best(
    weights: dict[str, torch.Tensor],
    best: Path,
    winners: Sequence[str],
    step: int,
    metrics: Mapping[str, Any],
) -> None:
    best.mkdir(parents=True, exist_ok=True)
    source: Path | None = None  # the file that the first one's weights went to
    sha256 = ""
    for name in winners:
        aside, final = best / f".new_{name}", best / name
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()

        if source is None:
            save_file(weights, aside / WEIGHTS)
            sha256 = file_sha256(aside / WEIGHTS)
        else:
            _link(source, aside / WEIGHTS)
        sync(aside / WEIGHTS)

        of_name = metrics if name == "average" else metrics[name]
        about = {"step": step, "metrics": of_name, "sha256": sha256}
        replace_file(aside / BEST, json.dumps(about, indent=1))

        _replace_folder(final, aside, old=best / f".old_{name}")
        source = final / WEIGHTS


def _replace_folder(final: Path, aside: Path, *, old: Path) -> None:
    """`aside` becomes `final`; what was there is `old` for a moment."""
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(aside, final)
    shutil.rmtree(old, ignore_errors=True)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights from best/NAME, or from a checkpoint step_N of any ZeRO stage and world size.

    They are as the run computed with them. ZeRO 3 keeps no whole weights: there they are put together from
    the float32 masters. A checkpoint must be whole (checkpoint/find.py has checked it). Needs no GPU and no
    process group.
    """
    if (folder / WEIGHTS).is_file():
        _check_best(folder)
        try:
            return load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / WEIGHTS}: is damaged ({error}); give another --checkpoint"
            ) from error

    shard = folder / "mp_rank_00_model_states.pt"
    if shard.is_file():
        return dict(load(shard)["module"])

    if list(folder.glob("zero_pp_rank_*_model_states.pt")):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with safe_loads(folder):
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name))

    raise CheckpointError(
        f"{folder}: neither {WEIGHTS} nor {shard.name} is there; "
        "give best/TASK, best/average or checkpoints/step_N"
    )


def _check_best(folder: Path) -> None:
    """Compare the weights with the sum in best.json; earlier versions wrote none."""
    if not (folder / BEST).is_file():
        return
    try:
        expected = json.loads((folder / BEST).read_text()).get("sha256")
        is_whole = expected is None or file_sha256(folder / WEIGHTS) == expected
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}); give another --checkpoint") from error

    if not is_whole:
        raise CheckpointError(
            f"{folder / WEIGHTS}: is damaged (its sha256 differs from that in {BEST}); "
            "give another --checkpoint"
        )


def weights_sha256(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 of names, types, shapes and values: the same in best/NAME and in a checkpoint."""
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
