"""encoder.compile: torch.compile of each layer of the encoder, or why not. Writes no kernel.

A layer is compiled for any number of tokens and sequences at once: attention is one op to the compiler
(varlen_attention.py), so a layer is one graph, which all layers share. That fuses dropout + add + LayerNorm
and bias + GELU. On CPUs it loses (docs/log.md).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mtdnn_ds.config.choices import ATTENTION_BACKENDS
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.tasks.sharing import Mode


def compile_if_asked(
    net: MultiTaskNet,
    asked: Literal["auto", "always", "never"],
    *,
    device_type: str,
    zero_stage: int,
    gradient_checkpointing: bool,
    dropout: DropoutMode,
    sharing: Mode,
) -> tuple[str, ...]:
    """Compiles the encoder's layers where `asked`, or where `auto` and it can be done; returns what to say.

    Raises ConfigError where it is asked for and cannot be done.
    """
    if asked == "never" or (asked == "auto" and device_type != "cuda"):
        return ()
    if device_type != "cuda":
        raise ConfigError(
            "encoder.compile=always: this run is on the CPU, where compiled layers are slower; use 'auto'"
        )

    obstacles = [
        *_machine_obstacles(),
        *_run_obstacles(zero_stage, gradient_checkpointing, dropout, sharing),
        *_encoder_obstacles(net),
    ]
    if obstacles and asked == "auto":
        return (f"layers are not compiled (encoder.compile): {obstacles[0]}",)
    if obstacles:
        raise ConfigError(f"encoder.compile=always: {' and '.join(obstacles)}; use 'auto' or 'never'")

    compile_layers(net)
    return ("layers are compiled (encoder.compile): the first steps take a minute longer",)


def compile_layers(net: nn.Module, **settings: Any) -> None:
    """Compiles every layer for any number of tokens; `settings` go to torch.compile."""
    for layer in _layers(net):
        layer.compile(dynamic=True, **settings)


def _layers(net: nn.Module) -> list[nn.Module]:
    """The layers of the encoder, and of each of its copies."""
    return [module for module in net.modules() if isinstance(module, GradientCheckpointingLayer)]


def _machine_obstacles() -> list[str]:
    # What Triton compiles its launchers with (its runtime.build): CC alone where it is set.
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    obstacles = []
    if importlib.util.find_spec("triton") is None:
        obstacles.append("the Python package triton is not installed")
    if not any(shutil.which(name) for name in compilers):
        obstacles.append(f"triton needs a C compiler, and there is no {' or '.join(compilers)}")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        obstacles.append("triton needs Python's headers (Python.h, in a package python3-dev)")
    return obstacles


def _run_obstacles(
    zero_stage: int, gradient_checkpointing: bool, dropout: DropoutMode, sharing: Mode
) -> list[str]:
    obstacles = []
    if zero_stage == 3:
        obstacles.append("ZeRO stage 3 gathers parameters by hooks inside layers")
    if gradient_checkpointing:
        obstacles.append("encoder.gradient_checkpointing runs layers twice")
    if dropout == "counter":
        obstacles.append("train.dropout=counter counts the runs of each layer in Python")
    if sharing == "low_rank":
        obstacles.append("sharing.mode=low_rank changes layers by hooks")
    return obstacles


def _encoder_obstacles(net: MultiTaskNet) -> list[str]:
    obstacles = []
    encoders = [module for module in net.modules() if isinstance(module, PackedEncoder)]
    if not all(encoder.packs for encoder in encoders):
        obstacles.append("the encoder runs on padded input")
    elif not all(ATTENTION_BACKENDS[encoder.attention].is_kernel for encoder in encoders):
        obstacles.append(f"attention back end {encoders[0].attention} breaks a layer into several graphs")
    # One graph serves all layers, and what Inductor finds of the first one's parameters it takes for all:
    # ZeRO has them end to end in one buffer, so all must begin at a multiple of 16 bytes.
    sizes = {parameter.numel() for layer in _layers(net) for parameter in layer.parameters()}
    if any(size % 8 for size in sizes):
        obstacles.append("a parameter of a layer has a number of elements that is no multiple of 8")
    if not _layers(net):
        obstacles.append(f"{type(encoders[0].model).__name__} has no layers of transformers' kind")
    return obstacles
