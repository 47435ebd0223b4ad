"""Optimizers by name, each probed for what it needs. Builds them; does not step them (the DeepSpeed engine does)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.faults.op_build_lock import wait_for_lock

Name = Literal["adamw", "torch_adamw", "adamax", "lamb", "apex_adam"]


def build_optimizer(
    name: Name,
    parameter_groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    offloaded: bool,
    say: Callable[[str], None],
) -> torch.optim.Optimizer:
    """The optimizer over `parameter_groups` (weight decay is theirs).

    `adamw` is DeepSpeed's fused AdamW (its C++ form on CPUs and for offloaded states, compiled on first use),
    `torch_adamw` needs no compiler, `adamax` is the paper's (MT-DNN section 4.2) with decay by `weight_decay` as L2.
    Raises ConfigError, saying what to do, where the machine cannot run it.
    """
    settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}
    if name == "torch_adamw":
        return torch.optim.AdamW(parameter_groups, fused=True, **settings)
    if name == "adamax":
        return torch.optim.Adamax(parameter_groups, **settings)
    if name == "lamb":
        return _lamb(parameter_groups, settings, say=say)
    if name == "apex_adam":
        return _apex_adam(parameter_groups, settings)
    return _deepspeed_adamw(parameter_groups, settings, offloaded=offloaded, say=say)


def _deepspeed_adamw(
    parameter_groups: list[dict[str, Any]],
    settings: dict[str, Any],
    *,
    offloaded: bool,
    say: Callable[[str], None],
) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    _check_compiler(
        "adamw",
        "cpu_adam" if offloaded else "fused_adam",
        on_cpu=offloaded or not torch.cuda.is_available(),
        say=say,
    )
    if offloaded:
        return DeepSpeedCPUAdam(parameter_groups, adamw_mode=True, **settings)
    return FusedAdam(parameter_groups, adam_w_mode=True, **settings)


def _check_compiler(name: str, op: str, *, on_cpu: bool, say: Callable[[str], None]) -> None:
    """Raise ConfigError if DeepSpeed would have to compile `op` and cannot; say so if it will."""
    from deepspeed.git_version_info import installed_ops
    from torch.utils import cpp_extension

    if installed_ops.get(op):
        return
    missing = [tool for tool in (["g++"] if on_cpu else []) + ["ninja"] if shutil.which(tool) is None]
    if not on_cpu and cpp_extension.CUDA_HOME is None:
        missing.append("the CUDA toolkit (nvcc; set CUDA_HOME)")
    if missing:
        raise ConfigError(
            f"optimizer.name={name} compiles DeepSpeed's {op}, but {' and '.join(missing)} is missing: "
            "install it (ninja: activate .venv), or set optimizer.name to torch_adamw"
        )
    folder = Path(cpp_extension._get_build_directory(op, False))
    wait_for_lock(folder, op, say)
    if not (folder / f"{op}.so").exists():
        say(
            f"compiling DeepSpeed's {op} for this machine (first time only, about a minute; kept in {folder})"
        )


def _lamb(
    parameter_groups: list[dict[str, Any]], settings: dict[str, Any], *, say: Callable[[str], None]
) -> torch.optim.Optimizer:
    if not torch.cuda.is_available():
        raise ConfigError(
            "optimizer.name=lamb needs a CUDA device (DeepSpeed's FusedLamb has no CPU form): set optimizer.name to adamw, torch_adamw or adamax here"
        )
    from deepspeed.ops.lamb import FusedLamb

    _check_compiler("lamb", "fused_lamb", on_cpu=False, say=say)
    return FusedLamb(parameter_groups, **settings)


def _apex_adam(parameter_groups: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        import amp_C  # noqa: F401  (apex's compiled kernels; PyPI's package named apex is another project and has none)
        from apex.optimizers import FusedAdam
    except ImportError as error:
        raise ConfigError(
            f"optimizer.name=apex_adam needs NVIDIA apex built with its CUDA extensions ({error}); "
            "PyPI's 'apex' is another project: build https://github.com/NVIDIA/apex, or set optimizer.name to adamw"
        ) from error
    return FusedAdam(parameter_groups, adam_w_mode=True, **settings)
