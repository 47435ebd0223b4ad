"""Optimizers by name, each probed for what it needs. Builds them; does not step them (the DeepSpeed engine does)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch

from mtdnn_ds.config.errors import ConfigError

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
        return _lamb(parameter_groups, settings)
    if name == "apex_adam":
        return _apex_adam(parameter_groups, settings)
    return _deepspeed_adamw(parameter_groups, settings, offloaded=offloaded, say=say)


def _deepspeed_adamw(
    parameter_groups: list[dict[str, Any]], settings: dict[str, Any], *, offloaded: bool, say: Callable[[str], None]
) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from torch.utils.cpp_extension import _get_build_directory

    on_cpu = offloaded or not torch.cuda.is_available()
    if on_cpu:
        missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
        if missing:
            raise ConfigError(
                f"optimizer.name=adamw compiles DeepSpeed's CPU Adam, but {' and '.join(missing)} is missing: install it, or set optimizer.name to torch_adamw"
            )
        op = "cpu_adam" if offloaded else "fused_adam"
        built = _get_build_directory(op, False)
        from pathlib import Path

        if not (Path(built) / f"{op}.so").exists():
            say(f"compiling DeepSpeed's {op} for this machine (first time only, about a minute; kept in {built})")
    optimizer = DeepSpeedCPUAdam if offloaded else FusedAdam
    return (
        optimizer(parameter_groups, adamw_mode=True, **settings) if offloaded else optimizer(parameter_groups, adam_w_mode=True, **settings)
    )


def _lamb(parameter_groups: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer:
    if not torch.cuda.is_available():
        raise ConfigError(
            "optimizer.name=lamb needs a CUDA device (DeepSpeed's FusedLamb has no CPU form): set optimizer.name to adamw, torch_adamw or adamax here"
        )
    from deepspeed.ops.lamb import FusedLamb

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
