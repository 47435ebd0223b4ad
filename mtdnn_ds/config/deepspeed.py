"""The DeepSpeed JSON meets the recipe: "auto" filled in, contradictions refused, what exactness needs written
out.

Pure: no torch, no deepspeed, no machine; what the machine can do comes in as arguments. Which keys there are
is in deepspeed_keys.py, and whether a file's keys are among them in deepspeed_check.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mtdnn_ds.config.choices import OPTIMIZERS, OPTIMIZERS_OF_CPUS
from mtdnn_ds.config.deepspeed_check import drop_automatic_sizes, key_problems, load_deepspeed_json
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.precision import Precision, resolve_precision
from mtdnn_ds.config.recipe import Recipe

__all__ = ["ResolvedDeepSpeed", "load_deepspeed_json", "resolve_deepspeed"]

_NEVER_PRINT = 1_000_000_000  # steps: DeepSpeed's own progress lines know no task; ours replace them
_OFFLOAD_STAGES = {"offload_optimizer": (1, "stage 1 or higher"), "offload_param": (3, "stage 3")}


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
    """`settings` (as load_deepspeed_json gives them) completed from `recipe`. `source` names the file in
    messages.

    `fast_bf16`: CUDA with bf16, or a CPU with AVX512-BF16 or AMX. `fp16_supported`: DeepSpeed's fp16 mode
    runs here. Raises ConfigError with every problem. Resolving a resolved configuration at the same world
    size changes nothing.
    """
    config = copy.deepcopy(dict(settings))
    problems = key_problems(config, source)
    if problems:
        raise ConfigError(problems)  # values are only worth comparing where the keys mean what they say

    notes = list(drop_automatic_sizes(config))
    zero = config.setdefault("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    precision, said, wrong = resolve_precision(
        config, stage=stage, fast_bf16=fast_bf16, fp16_supported=fp16_supported, device_type=device_type
    )
    notes += said
    if stage > 3:
        wrong.insert(0, f"zero_optimization.stage={stage}: there are stages 0, 1, 2 and 3")

    is_offloaded = {}
    for key in _OFFLOAD_STAGES:
        is_offloaded[key] = _drop_idle_offload(zero, key)
        if is_offloaded[key]:
            wrong += _offload_problems(key, stage)
    offloaded = is_offloaded["offload_optimizer"]

    wrong += _fill_in_batch_sizes(config, recipe, world_size)
    wrong += _fill_in_clipping(config, recipe)
    wrong += _take_out_optimizer(config, recipe)
    wrong += _optimizer_misfits(recipe.optimizer.name, stage, device_type, offloaded)
    if stage == 3 and recipe.train.gradient_norms_every:
        wrong.append(
            "zero_optimization.stage=3: "
            f"train.gradient_norms_every={recipe.train.gradient_norms_every} of the recipe "
            "needs whole parameters, which stage 3 cuts up; use stage 2 (ds_configs/zero2.json), "
            "or set the former to 0"
        )
    wrong += _let_optimizer_pass(config, recipe.optimizer.name, stage, offloaded)
    if offloaded and _runs_in_torch(recipe.optimizer.name):
        notes.append(
            f"optimizer.name={recipe.optimizer.name} runs in PyTorch on the offloaded states; "
            "deepspeed_adamw (its CPU Adam) is faster"
        )
    config.setdefault("steps_per_print", _NEVER_PRINT)
    config.setdefault("checkpoint", {}).setdefault("tag_validation", "Fail")

    if wrong:
        raise ConfigError([f"{source}: {line}" for line in wrong])
    return ResolvedDeepSpeed(
        config=config,
        precision=precision,
        zero_stage=stage,
        offload_optimizer=offloaded,
        offload_param=is_offloaded["offload_param"],
        notes=tuple(f"{source}: {note}" for note in notes),
    )


def _drop_idle_offload(zero: dict[str, Any], key: str) -> bool:
    """Whether the section moves anything; one that does not is removed."""
    section = zero.get(key) or {}
    if section.get("device", "none") == "none":
        zero.pop(key, None)
        return False
    return True


def _offload_problems(key: str, stage: int) -> Iterator[str]:
    lowest, needed = _OFFLOAD_STAGES[key]
    if stage < lowest:
        yield f"zero_optimization.{key}: needs {needed}, not {stage}; raise the stage or remove it"


def _fill_in_batch_sizes(config: dict[str, Any], recipe: Recipe, world_size: int) -> list[str]:
    """DeepSpeed wants train_batch_size = micro x accumulation x ranks. Ours vary by step, so these are
    nominal: nothing is computed from them."""
    examples = recipe.batch.examples_per_step
    micro = -(-examples // world_size)
    found = []

    total = config.get("train_batch_size", "auto")
    if total not in ("auto", examples, micro * world_size):
        found.append(
            f"train_batch_size={total} contradicts batch.examples_per_step={examples} of the recipe; "
            'write "auto"'
        )
    given = config.get("train_micro_batch_size_per_gpu", "auto")
    if given not in ("auto", micro):
        found.append(
            f"train_micro_batch_size_per_gpu={given}: micro-batches are cut by tokens here "
            f"(batch.max_tokens_per_micro_batch={recipe.batch.max_tokens_per_micro_batch} of the recipe); "
            'write "auto"'
        )
    accumulation = config.get("gradient_accumulation_steps", "auto")
    if accumulation not in ("auto", 1):
        found.append(
            f"gradient_accumulation_steps={accumulation}: the number of micro-batches follows from "
            "batch.examples_per_step and batch.max_tokens_per_micro_batch of the recipe and differs from "
            "step to "
            'step; write "auto"'
        )

    config["train_micro_batch_size_per_gpu"] = micro
    config["gradient_accumulation_steps"] = 1
    config["train_batch_size"] = micro * world_size
    return found


def _fill_in_clipping(config: dict[str, Any], recipe: Recipe) -> list[str]:
    # Always written: DeepSpeed 0.19 clips at 1.0 where the key is absent (deepspeed.runtime.constants).
    ours, given = recipe.optimizer.gradient_clipping, config.get("gradient_clipping", "auto")
    config["gradient_clipping"] = ours
    if given in ("auto", ours):
        return []
    return [
        f"gradient_clipping={given} contradicts optimizer.gradient_clipping={ours:g} of the recipe; "
        'write "auto"'
    ]


def _take_out_optimizer(config: dict[str, Any], recipe: Recipe) -> list[str]:
    """The optimizer is built from the recipe (per-parameter decay); the sections may only agree with it."""
    found = []
    if config.pop("scheduler", "auto") != "auto":
        found.append(
            f"scheduler: the learning rate follows schedule.name={recipe.schedule.name} of the recipe; "
            'write "auto" or remove it'
        )
    section = config.pop("optimizer", "auto")
    if section == "auto":
        return found
    if not isinstance(section, dict):
        return [*found, 'optimizer: must be "auto" or a section with type and params']

    name, ours = section.get("type", "auto"), recipe.optimizer
    found += [
        f"optimizer.{key}: only type and params are understood; remove it"
        for key in sorted(section.keys() - {"type", "params"})
    ]
    if name != "auto" and str(name).lower() not in OPTIMIZERS[ours.name].deepspeed_types:
        found.append(
            f'optimizer.type="{name}" contradicts optimizer.name={ours.name} of the recipe; '
            'write "auto" or remove the section'
        )

    params = section.get("params", "auto")
    if isinstance(params, dict):
        found += _params_problems(params, recipe)
    return found


def _params_problems(params: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    ours = recipe.optimizer
    wanted = {"lr": ours.lr, "betas": list(ours.betas), "eps": ours.eps, "weight_decay": ours.weight_decay}

    for key, given in params.items():
        if key == "torch_adam" and given == OPTIMIZERS[ours.name].torch_adam:
            continue
        if key not in wanted:
            yield f"optimizer.params.{key}: only {', '.join(wanted)} are shared with the recipe; remove it"
        elif given not in ("auto", wanted[key]):
            yield (
                f"optimizer.params.{key}={given} contradicts optimizer.{key}={wanted[key]} of the recipe; "
                'write "auto" or remove the section'
            )


def _optimizer_misfits(name: str, stage: int, device_type: str, offloaded: bool) -> Iterator[str]:
    """Why the optimizer cannot run in such a run."""
    facts = OPTIMIZERS[name]
    place = ""
    if device_type == "cpu":
        place = "this machine has no CUDA device"
    elif offloaded:
        place = "zero_optimization.offload_optimizer moves it to the CPU"

    if facts.cuda_only and place:
        yield (
            f"optimizer.name={name} of the recipe runs on CUDA only, and {place}; "
            f"set optimizer.name to {OPTIMIZERS_OF_CPUS}"
        )
    if facts.needs_whole_layers and stage > 0:
        yield (
            f"zero_optimization.stage={stage}: optimizer.name={name} of the recipe needs whole layers, "
            "which ZeRO cuts up; use stage 0 (ds_configs/zero0.json), or another optimizer"
        )


def _let_optimizer_pass(config: dict[str, Any], name: str, stage: int, offloaded: bool) -> list[str]:
    """DeepSpeed's switches for optimizers that it does not know: set where the recipe's needs them."""
    found = []
    if stage > 0 and not OPTIMIZERS[name].zero_tested:
        if config.get("zero_allow_untested_optimizer") is False:
            found.append(
                f"zero_allow_untested_optimizer=false: optimizer.name={name} of the recipe needs it under "
                "ZeRO; remove the key"
            )
        config["zero_allow_untested_optimizer"] = True

    if offloaded and _runs_in_torch(name):
        if config.get("zero_force_ds_cpu_optimizer") is True:
            found.append(
                f"zero_force_ds_cpu_optimizer=true: optimizer.name={name} of the recipe is not "
                "DeepSpeed's CPU Adam; remove the key"
            )
        config["zero_force_ds_cpu_optimizer"] = False
    return found


def _runs_in_torch(name: str) -> bool:
    """Whether the optimizer can step offloaded states, and does so in PyTorch."""
    return not OPTIMIZERS[name].cuda_only and not OPTIMIZERS[name].has_deepspeed_cpu_form
