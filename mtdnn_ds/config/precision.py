"""Which number format a run computes in, from the bf16, fp16 and torch_autocast sections of a DeepSpeed JSON.
Pure. The words for that of a trained model, whose format runs/number_format.py chooses, stand here too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

Precision = Literal["fp32", "bf16", "fp16", "autocast_bf16"]

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
"""What --dtype may be: the format that a trained model answers in."""

DTYPES: tuple[str, ...] = get_args(Dtype)

# Names that DeepSpeed's DtypeEnum knows (deepspeed.runtime.config).
_DTYPES = {
    **dict.fromkeys(("fp32", "float32", "float", "torch.float32"), "fp32"),
    **dict.fromkeys(("bf16", "bfloat16", "torch.bfloat16"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "half", "torch.float16"), "fp16"),
}
_SECTIONS = ("bf16", "fp16", "torch_autocast")


def resolve_precision(
    config: dict[str, Any], *, stage: int, fast_bf16: bool, fp16_supported: bool, device_type: str
) -> tuple[Precision, list[str], list[str]]:
    """(precision, notes, problems); the sections of `config` are changed to say true or false, not "auto".

    "auto" takes the format where the machine computes it at speed, else fp32 with a note; true takes it
    wherever it works. bf16 and fp16 may both be "auto", as Hugging Face's examples have it: bf16 first, then
    fp16, then fp32.
    """
    asked = {name: config.get(name, {}).get("enabled", False) for name in _SECTIONS}
    problems = list(_too_many(asked))
    dtype = _autocast_dtype(config, problems)
    problems += _misfits(asked, dtype, stage)
    if asked["fp16"] is True and not fp16_supported:
        device = "CPU" if device_type == "cpu" else "GPU"
        problems.append(
            f"fp16.enabled=true: this {device} has no fp16 arithmetic; "
            "use ds_configs/zero2_fp32.json, or ds_configs/zero2.json for bf16"
        )

    chosen = _choose(asked, dtype, fast_bf16=fast_bf16, fp16_supported=fp16_supported)
    notes = []
    if chosen == "fp32" and "auto" in asked.values():
        notes.append(_why_fp32(asked, dtype, device_type))
    if chosen == "fp32" and device_type == "cuda":
        notes.append("fp32 with TF32 off: exact, and slow on a GPU; ds_configs/zero2.json computes in bf16")

    is_on = {"bf16": chosen == "bf16", "fp16": chosen == "fp16", "torch_autocast": chosen == "autocast_bf16"}
    for name in _SECTIONS:
        if name in config:
            config[name]["enabled"] = is_on[name]
    _data_types(config, chosen, problems)
    if chosen == "bf16" and config["bf16"].setdefault("check_grad_overflow", True) is False:
        problems.append(
            "bf16.check_grad_overflow=false: a gradient that is not finite would reach the weights; remove it"
        )
    return chosen, notes, problems


def _too_many(asked: dict[str, Any]) -> Iterator[str]:
    wanted = [name for name in _SECTIONS if asked[name]]
    both_automatic = wanted == ["bf16", "fp16"] and set(asked.values()) == {"auto", False}
    if len(wanted) > 1 and not both_automatic:
        yield f"{' and '.join(wanted)} are both on: a run has one number format; leave one of them"


def _misfits(asked: dict[str, Any], dtype: str, stage: int) -> Iterator[str]:
    """Formats that DeepSpeed does not compute exactly, or not at all, at this stage of ZeRO."""
    for name in ("bf16", "fp16"):
        if asked[name] and stage == 0:
            yield (
                f"{name} with ZeRO stage 0: DeepSpeed cannot accumulate gradients in fp32 there; "
                "use torch_autocast (ds_configs/zero0.json) or stage 1, 2 or 3"
            )

    if asked["torch_autocast"] and dtype == "fp16":
        # Read in 0.19.8, deepspeed.runtime.zero.stage_1_and_2: the norm that clips is taken before the
        # GradScaler's factor is removed, and an overflow updates the optimizer's own loss scaler (which is
        # not used here) instead of the GradScaler. At stage 0 it is silent.
        yield (
            "torch_autocast in float16: DeepSpeed clips the scaled gradients there and never lowers the "
            'scale after an overflow; use dtype "bfloat16", or the fp16 section'
        )
    only_autocast = [name for name in _SECTIONS if asked[name]] == ["torch_autocast"]
    if only_autocast and stage > 0:
        # deepspeed.runtime.base_optimizer: with autocast, ZeRO reduces the gradients of linear layers in the
        # autocast type, whatever the JSON says.
        yield (
            f"torch_autocast with ZeRO stage {stage}: DeepSpeed exchanges gradients in {dtype} there, so a "
            "step would depend on the number of ranks; use the bf16 section, or stage 0"
        )


def _choose(asked: dict[str, Any], dtype: str, *, fast_bf16: bool, fp16_supported: bool) -> Precision:
    fast = {"bf16": fast_bf16, "fp16": fp16_supported}
    if asked["torch_autocast"] is True or (asked["torch_autocast"] == "auto" and fast[dtype]):
        return "autocast_bf16"
    if asked["bf16"] is True or (asked["bf16"] == "auto" and fast_bf16):
        return "bf16"
    if asked["fp16"] is True or (asked["fp16"] == "auto" and fp16_supported):
        return "fp16"
    return "fp32"


def _why_fp32(asked: dict[str, Any], dtype: str, device_type: str) -> str:
    names = [name for name in _SECTIONS if asked[name] == "auto"]
    lacking = sorted({dtype if name == "torch_autocast" else name for name in names})
    device = "CPU" if device_type == "cpu" else "GPU"
    return (
        f"{' and '.join(names)} 'auto': this {device} has no fast {' and no '.join(lacking)} instructions; "
        f"training in fp32; set {names[0]}.enabled to true to force it"
    )


def _autocast_dtype(config: dict[str, Any], problems: list[str]) -> str:
    section = config.get("torch_autocast")
    if section is None:
        return "bf16"
    given = section.setdefault("dtype", "bfloat16")  # DeepSpeed has no default of its own
    dtype = _DTYPES.get(given, "")
    if dtype in ("bf16", "fp16"):
        return dtype
    problems.append(f'torch_autocast.dtype="{given}": must be "bfloat16" or "float16"')
    return "bf16"


def _data_types(config: dict[str, Any], precision: Precision, problems: list[str]) -> None:
    """Gradients accumulate in fp32, whatever the weights are in: DeepSpeed's default is the weights'
    format."""
    section = config.setdefault("data_types", {})
    given = section.setdefault("grad_accum_dtype", "fp32")
    if _DTYPES.get(given) != "fp32":
        problems.append(
            f'data_types.grad_accum_dtype="{given}": gradients accumulate in fp32, so that a step does not '
            "depend on how it was cut up; remove it"
        )

    exchanged = config.setdefault("communication_data_type", "fp32")
    if _DTYPES.get(exchanged) != "fp32":
        problems.append(
            f'communication_data_type="{exchanged}": ranks exchange gradients in fp32, so that a step does '
            "not depend on how it was cut up; remove it"
        )

    weights = precision if precision in ("bf16", "fp16") else "fp32"
    wanted = section.get("param_dtype")
    if wanted is not None and _DTYPES.get(wanted) != weights:
        problems.append(
            f'data_types.param_dtype="{wanted}": this run keeps its weights in {weights}; remove it'
        )
