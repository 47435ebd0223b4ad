"""The DeepSpeed JSON meets the recipe: "auto" filled in, contradictions refused, what exactness needs written out.

Pure: no torch, no deepspeed, no machine; what the machine can do comes in as arguments. The tables are in deepspeed_keys.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mtdnn_ds.config.deepspeed_check import drop_automatic_sizes, key_problems, load_deepspeed_json
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.precision import Precision, resolve_precision
from mtdnn_ds.config.recipe import Recipe

__all__ = ["ResolvedDeepSpeed", "load_deepspeed_json", "resolve_deepspeed"]

_NEVER_PRINT = 1_000_000_000  # steps: DeepSpeed's own progress lines know no task; ours replace them

# Optimizers outside DeepSpeed's ZERO_SUPPORTED_OPTIMIZERS (runtime/zero/utils.py). Adamax is element-wise, hence exact on any partition.
_UNTESTED = ("adamax",)
_DEEPSPEED_TYPES = {
    "adamw": ("adamw", "adam"),
    "torch_adamw": ("adamw", "adam"),
    "lamb": ("lamb",),
    "adamax": (),
    "apex_adam": (),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedDeepSpeed:
    """What deepspeed.initialize gets, and what the rest of a run must know about it."""

    config: dict[str, Any]
    precision: Precision
    zero_stage: int
    offload_optimizer: bool
    offload_param: bool
    notes: tuple[str, ...]  # to be said once, by rank 0


def resolve_deepspeed(
    settings: Mapping[str, Any],
    recipe: Recipe,
    *,
    device_type: Literal["cpu", "cuda"],
    fast_bf16: bool,
    fp16_supported: bool,
    world_size: int,
    source: str = "the DeepSpeed JSON",
) -> ResolvedDeepSpeed:
    """`settings` (as load_deepspeed_json gives them) completed from `recipe`. `source` names the file in messages.

    `fast_bf16`: CUDA with bf16, or a CPU with AVX512-BF16 or AMX. `fp16_supported`: DeepSpeed's fp16 mode runs here.
    Raises ConfigError with every problem. Resolving a resolved configuration at the same world size changes nothing.
    """
    config = copy.deepcopy(dict(settings))
    problems = key_problems(config, source)
    if problems:
        raise ConfigError(problems)  # values are only worth comparing where the keys mean what they say
    found: list[str] = []
    notes = list(drop_automatic_sizes(config))
    zero = config.setdefault("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    if stage > 3:
        found.append(f"zero_optimization.stage={stage}: there are stages 0, 1, 2 and 3")
    precision, said, wrong = resolve_precision(
        config, stage=stage, fast_bf16=fast_bf16, fp16_supported=fp16_supported, device_type=device_type
    )
    notes += said
    found += wrong
    offload_optimizer = _offload(zero, "offload_optimizer", stage, found)
    offload_param = _offload(zero, "offload_param", stage, found)
    _batch_sizes(config, recipe, world_size, found)
    _clipping(config, recipe, found)
    _optimizer_section(config, recipe, found)
    _optimizer_fits(config, recipe, stage, device_type, offload_optimizer, found, notes)
    _cadence(config)
    if found:
        raise ConfigError([f"{source}: {line}" for line in found])
    return ResolvedDeepSpeed(
        config=config,
        precision=precision,
        zero_stage=stage,
        offload_optimizer=offload_optimizer,
        offload_param=offload_param,
        notes=tuple(f"{source}: {note}" for note in notes),
    )


def _offload(zero: dict[str, Any], key: str, stage: int, found: list[str]) -> bool:
    section = zero.get(key)
    device = section.get("device", "none") if section else "none"
    if device == "none":
        zero.pop(key, None)
        return False
    needed = {"offload_optimizer": 1, "offload_param": 3}[key]
    if stage < needed:
        found.append(
            f"zero_optimization.{key}: needs stage {needed}{' or higher' if needed < 3 else ''}, not {stage}; raise the stage or remove it"
        )
    return True


def _batch_sizes(config: dict[str, Any], recipe: Recipe, world_size: int, found: list[str]) -> None:
    """DeepSpeed wants train_batch_size = micro x accumulation x ranks. Ours vary by step, so these are nominal: nothing is computed from them."""
    examples = recipe.batch.examples_per_step
    micro = -(-examples // world_size)
    total = config.get("train_batch_size", "auto")
    if total not in ("auto", examples, micro * world_size):
        found.append(
            f'train_batch_size={total} contradicts batch.examples_per_step={examples} of the recipe; write "auto"'
        )
    given = config.get("train_micro_batch_size_per_gpu", "auto")
    if given not in ("auto", micro):
        found.append(
            f"train_micro_batch_size_per_gpu={given}: micro-batches are cut by tokens here "
            f'(batch.max_tokens_per_micro_batch={recipe.batch.max_tokens_per_micro_batch} of the recipe); write "auto"'
        )
    accumulation = config.get("gradient_accumulation_steps", "auto")
    if accumulation not in ("auto", 1):
        found.append(
            f"gradient_accumulation_steps={accumulation}: the number of micro-batches follows from "
            'batch.examples_per_step and batch.max_tokens_per_micro_batch of the recipe and differs from step to step; write "auto"'
        )
    (
        config["train_micro_batch_size_per_gpu"],
        config["gradient_accumulation_steps"],
        config["train_batch_size"],
    ) = (
        micro,
        1,
        micro * world_size,
    )


def _clipping(config: dict[str, Any], recipe: Recipe, found: list[str]) -> None:
    # Always written: DeepSpeed 0.19 clips at 1.0 where the key is absent (runtime/constants.py).
    ours, given = recipe.optimizer.gradient_clipping, config.get("gradient_clipping", "auto")
    if given not in ("auto", ours):
        found.append(
            f'gradient_clipping={given} contradicts optimizer.gradient_clipping={ours:g} of the recipe; write "auto"'
        )
    config["gradient_clipping"] = ours


def _optimizer_section(config: dict[str, Any], recipe: Recipe, found: list[str]) -> None:
    """The optimizer is built from the recipe (per-parameter decay); the sections may only agree with it, and are taken out."""
    scheduler = config.pop("scheduler", "auto")
    if scheduler != "auto":
        found.append(
            f'scheduler: the learning rate follows schedule.name={recipe.schedule.name} of the recipe; write "auto" or remove it'
        )
    section = config.pop("optimizer", "auto")
    if section == "auto":
        return
    if not isinstance(section, dict):
        found.append('optimizer: must be "auto" or a section with type and params')
        return
    ours = recipe.optimizer
    for key in sorted(section.keys() - {"type", "params"}):
        found.append(f"optimizer.{key}: only type and params are understood; remove it")
    name = section.get("type", "auto")
    if name != "auto" and str(name).lower() not in _DEEPSPEED_TYPES[ours.name]:
        found.append(
            f'optimizer.type="{name}" contradicts optimizer.name={ours.name} of the recipe; write "auto" or remove the section'
        )
    wanted = {"lr": ours.lr, "betas": list(ours.betas), "eps": ours.eps, "weight_decay": ours.weight_decay}
    params = section.get("params", "auto")
    for key, given in params.items() if isinstance(params, dict) else []:
        if key == "torch_adam" and given == (ours.name == "torch_adamw"):
            continue
        if key not in wanted:
            found.append(
                f"optimizer.params.{key}: only {', '.join(wanted)} are shared with the recipe; remove it"
            )
        elif given not in ("auto", wanted[key]):
            found.append(
                f'optimizer.params.{key}={given} contradicts optimizer.{key}={wanted[key]} of the recipe; write "auto" or remove the section'
            )


def _optimizer_fits(
    config: dict[str, Any],
    recipe: Recipe,
    stage: int,
    device_type: str,
    offloaded: bool,
    found: list[str],
    notes: list[str],
) -> None:
    name = recipe.optimizer.name
    if name in ("lamb", "apex_adam") and (device_type == "cpu" or offloaded):
        place = (
            "this machine has no CUDA device"
            if device_type == "cpu"
            else "zero_optimization.offload_optimizer moves it to the CPU"
        )
        found.append(
            f"optimizer.name={name} of the recipe runs on CUDA only, and {place}; set optimizer.name to adamw, torch_adamw or adamax"
        )
    if name == "lamb" and stage > 0:
        # LAMB scales each layer's update by norms of that layer (You et al. 2020, algorithm 2); ZeRO hands it flat pieces of all layers.
        found.append(
            f"zero_optimization.stage={stage}: optimizer.name=lamb of the recipe needs whole layers, which ZeRO cuts up; "
            "use stage 0 (ds_configs/zero0.json), or another optimizer"
        )
    if name in _UNTESTED and stage > 0:
        if config.get("zero_allow_untested_optimizer") is False:
            found.append(
                f"zero_allow_untested_optimizer=false: optimizer.name={name} of the recipe needs it under ZeRO; remove the key"
            )
        config["zero_allow_untested_optimizer"] = True
    if offloaded and name in ("adamax", "torch_adamw"):
        if config.get("zero_force_ds_cpu_optimizer") is True:
            found.append(
                f"zero_force_ds_cpu_optimizer=true: optimizer.name={name} of the recipe is not DeepSpeed's CPU Adam; remove the key"
            )
        config["zero_force_ds_cpu_optimizer"] = False
        notes.append(
            f"optimizer.name={name} runs in PyTorch on the offloaded states; adamw (DeepSpeed's CPU Adam) is faster"
        )


def _cadence(config: dict[str, Any]) -> None:
    config.setdefault("steps_per_print", _NEVER_PRINT)
    config.setdefault("checkpoint", {}).setdefault("tag_validation", "Fail")
