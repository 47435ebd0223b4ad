"""The number format that a trained model answers in: --dtype of predict, embed, serve and evaluate.

Not the format of a training run, which the DeepSpeed JSON chooses (config/precision.py), and not that of
answers: probabilities, scores and embeddings leave the model in float32 whatever it computes in.
"""

from __future__ import annotations

import logging

import torch

from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.precision import DTYPES
from mtdnn_ds.runs.device import Device, probe_answering

log = logging.getLogger(__name__)

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Every word of --dtype but auto."""


def answering_dtype(asked: str, device: torch.device) -> torch.dtype:
    """The format that `asked`, one of config/precision.py's DTYPES, means on `device`; says once which.

    Raises ConfigError for an unknown word, and for a format that the device cannot compute.
    """
    if asked not in DTYPES:
        raise ConfigError(f"--dtype {asked}: unknown{did_you_mean(asked, DTYPES)}")

    name, note = choose_format(asked, probe_answering(device), tf32_is_off=_tf32_is_off())
    log.info(note)
    return FORMATS[name]


def format_name(dtype: torch.dtype) -> str:
    """As --dtype has it."""
    return next(name for name, known in FORMATS.items() if known == dtype)


def choose_format(asked: str, device: Device, *, tf32_is_off: bool) -> tuple[str, str]:
    """(fp32, bf16 or fp16; what is said of it). Raises ConfigError where the device cannot compute it."""
    where = "GPU" if device.type == "cuda" else "CPU"
    if asked == "fp16" and not device.fp16:
        raise ConfigError(
            f"--dtype fp16: this {where} has no fp16 arithmetic; "
            "use fp32, or bf16 (which is slow on a CPU that emulates it)"
        )

    name = asked
    if asked == "auto":
        name = "bf16" if device.type == "cuda" and device.fast_bf16 else "fp32"
    said = f"number format {name}"
    if asked == "auto":
        said += " (--dtype auto)"

    if name == "bf16" and not device.fast_bf16:
        faster = "fp16" if device.type == "cuda" else "fp32"
        said += f": this {where} has no bf16 arithmetic and emulates it, slowly; {faster} is faster"
    elif name == "fp32" and device.type == "cuda" and tf32_is_off:
        faster = "bf16" if device.fast_bf16 else "fp16"
        said += f", with TF32 off: exact, and slow on a GPU; {faster} is faster"
    return name, said


def _tf32_is_off() -> bool:
    """Whether float32 matrix products on CUDA are exact: torch's default, which a program can change."""
    return str(torch.backends.cuda.matmul.fp32_precision) != "tf32"
