"""Optimizers by name, each probed for what it needs. Builds them; the engine steps them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mtdnn_ds.config.choices import OPTIMIZERS_OF_CPUS, OptimizerName
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.faults.op_build_lock import wait_for_lock
from mtdnn_ds.train.adamax import AdamaxW

log = logging.getLogger(__name__)


def build_optimizer(
    name: OptimizerName,
    parameter_groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    offloaded: bool,
) -> torch.optim.Optimizer:
    """The optimizer over `parameter_groups` (weight decay is theirs).

    `adamw` is torch's fused AdamW, `deepspeed_adamw` DeepSpeed's (its C++ form on CPUs and for offloaded
    states, compiled on first use), `adamax` is the paper's (MT-DNN section 4.2). All of them decay weights
    beside the gradient, not as a part of it. Raises ConfigError, saying what to do, where the machine cannot
    run it.
    """
    settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps}

    if name == "adamw":
        return torch.optim.AdamW(parameter_groups, fused=True, **settings)
    if name == "adamax":
        return AdamaxW(parameter_groups, **settings)
    if name == "lamb":
        return _lamb(parameter_groups, settings)
    if name == "apex_adam":
        return _apex_adam(parameter_groups, settings)
    assert name == "deepspeed_adamw", name
    return _deepspeed_adamw(parameter_groups, settings, offloaded=offloaded)


def _deepspeed_adamw(
    parameter_groups: list[dict[str, Any]], settings: dict[str, Any], *, offloaded: bool
) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    name = "deepspeed_adamw"
    if offloaded:
        _check_compiler(name, "cpu_adam", on_cpu=True)
        return compiled_op(name, partial(DeepSpeedCPUAdam, parameter_groups, adamw_mode=True, **settings))

    _check_compiler(name, "fused_adam", on_cpu=not torch.cuda.is_available())
    return compiled_op(name, partial(FusedAdam, parameter_groups, adam_w_mode=True, **settings))


def compiled_op(name: str, build: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """What `build` gives. Raises ConfigError where nvcc is not the one that torch was built with."""
    from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException

    try:
        return build()
    except (CUDAMismatchException, MissingCUDAException) as error:
        raise ConfigError(
            f"optimizer.name={name}: DeepSpeed cannot compile its kernels here ({error}); "
            "set optimizer.name to adamw"
        ) from error


def _check_compiler(name: str, op: str, *, on_cpu: bool) -> None:
    """Raise ConfigError if DeepSpeed would have to compile `op` and cannot; say so if it will."""
    from deepspeed.git_version_info import installed_ops
    from torch.utils import cpp_extension

    if installed_ops.get(op):
        return

    tools = ["g++", "ninja"] if on_cpu else ["ninja"]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if not on_cpu and cpp_extension.CUDA_HOME is None:
        missing.append("the CUDA toolkit (nvcc; set CUDA_HOME)")
    if missing:
        raise ConfigError(
            f"optimizer.name={name} compiles DeepSpeed's {op}, but {' and '.join(missing)} is missing: "
            "install it (ninja: activate .venv), or set optimizer.name to adamw"
        )

    folder = Path(cpp_extension._get_build_directory(op, False))
    wait_for_lock(folder, op)
    if not (folder / f"{op}.so").exists():
        log.info(
            f"compiling DeepSpeed's {op} for this machine (first time only, about a minute; kept in {folder})"
        )


def _lamb(parameter_groups: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer:
    if not torch.cuda.is_available():
        raise ConfigError(
            "optimizer.name=lamb needs a CUDA device (DeepSpeed's FusedLamb has no CPU form): "
            f"set optimizer.name to {OPTIMIZERS_OF_CPUS} here"
        )
    from deepspeed.ops.lamb import FusedLamb

    _check_compiler("lamb", "fused_lamb", on_cpu=False)
    return compiled_op("lamb", partial(FusedLamb, parameter_groups, **settings))


def _apex_adam(parameter_groups: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        # apex's compiled kernels; PyPI's package named apex is another project and has none
        import amp_C  # noqa: F401
        from apex.optimizers import FusedAdam
    except ImportError as error:
        raise ConfigError(
            f"optimizer.name=apex_adam needs NVIDIA apex built with its CUDA extensions ({error}); "
            "PyPI's 'apex' is another project: build https://github.com/NVIDIA/apex, "
            "or set optimizer.name to adamw"
        ) from error
    return FusedAdam(parameter_groups, adam_w_mode=True, **settings)
