"""Which back end of attention (attention.py) a run takes, and why. Computes nothing."""

from __future__ import annotations

import importlib

import torch
from torch.backends.cuda import is_flash_attention_available

from mtdnn_ds.config.choices import ATTENTION_BACKENDS
from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.model.attention_layout import Backend
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.model.varlen_attention import HAS_FLASH_OP


def choose_backend(
    requested: str,
    device_type: str,
    dtype: torch.dtype,
    *,
    head_size: int | None,
    attention_dropout: float,
    dropout: DropoutMode,
) -> tuple[Backend, tuple[str, ...]]:
    """The back end of an encoder in a run of this `dropout`, and what the run says of it at start.

    Raises ConfigError as resolve_backend and counter_backend do.
    """
    backend, reason = resolve_backend(
        requested, device_type, dtype, head_size=head_size, attention_dropout=attention_dropout
    )
    if dropout == "counter":
        backend, reason = counter_backend(requested, backend, reason, attention_dropout)
    return backend, (reason, *dropout_notes(backend, attention_dropout))


def resolve_backend(
    requested: str,
    device_type: str,
    dtype: torch.dtype,
    *,
    head_size: int | None = None,
    attention_dropout: float = 0.0,
) -> tuple[Backend, str]:
    """The back end to use on this device for attention in `dtype`, and the reason in one sentence.

    `head_size` and `attention_dropout` are the encoder's; None: unknown, so not checked. `auto` takes varlen
    where it runs and drops out as the encoder says, else grouped. Raises ConfigError when a back end is asked
    for by name and cannot run.
    """
    if requested == "auto":
        obstacles = _obstacles("varlen", device_type, dtype, head_size)
        if attention_dropout > 0 and not has_dropout("varlen"):
            obstacles.append(f"that of torch {torch.__version__} has no dropout")
        if obstacles:
            return "grouped", f"attention back end grouped (varlen: {obstacles[0]})"
        return "varlen", "attention back end varlen: attention runs in half precision on CUDA"

    if requested not in ATTENTION_BACKENDS:
        hint = did_you_mean(requested, ("auto", *ATTENTION_BACKENDS))
        raise ConfigError(f"encoder.attention={requested}: unknown back end{hint}")
    obstacles = _obstacles(requested, device_type, dtype, head_size)
    if obstacles:
        raise ConfigError(
            f"encoder.attention={requested} cannot run here: {' and '.join(obstacles)}; "
            "use 'auto' or 'grouped'"
        )
    return requested, f"attention back end {requested}: asked for by encoder.attention"


def _obstacles(backend: Backend, device_type: str, dtype: torch.dtype, head_size: int | None) -> list[str]:
    """Why a back end cannot run on such a device, in such a format, on heads of such a size."""
    facts = ATTENTION_BACKENDS[backend]
    found = []
    if facts.is_kernel:
        if device_type != "cuda":
            found.append(f"it needs CUDA and this run is on {device_type}")
        else:
            found += kernel_obstacles(torch.cuda.get_device_capability(), head_size)
        if device_type == "cuda" and backend == "varlen" and not is_flash_attention_available():
            found.append("this torch was built without flash attention")
        if dtype not in (torch.float16, torch.bfloat16):
            found.append(f"it needs fp16 or bf16 and attention runs in {str(dtype).removeprefix('torch.')}")

    if facts.function is not None:
        module, name, package = facts.function
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            found.append(f"{package} is not installed ({error})")
    return found


def kernel_obstacles(capability: tuple[int, int], head_size: int | None) -> list[str]:
    """Why the flash kernels cannot run on a GPU of this compute capability, on heads of this size."""
    found = []
    if capability < (8, 0):
        found.append("it needs a GPU of compute capability 8.0 (Ampere) or newer")
    if head_size is None:
        return found

    # The kernels' backward pass for the largest heads does not fit into the shared memory of smaller chips
    # (flash-attn, README, "FlashAttention-2 currently supports").
    most = 192
    if capability in ((8, 0), (9, 0), (10, 0)):
        most = 256
    if head_size % 8 or head_size > most:
        found.append(
            f"it takes heads of a multiple of 8 and at most {most} elements, and these have {head_size}"
        )
    return found


def counter_backend(
    requested: str, backend: Backend, reason: str, attention_dropout: float
) -> tuple[Backend, str]:
    """The resolved back end and its reason, or, with train.dropout=counter, one that takes its masks.

    Raises ConfigError where a kernel that cannot take them is asked for by name.
    """
    if not ATTENTION_BACKENDS[backend].is_kernel or attention_dropout == 0:
        return backend, reason
    if requested == "auto":
        return "grouped", (
            f"attention back end grouped ({backend} cannot take the attention dropout masks of "
            "train.dropout=counter)"
        )
    raise ConfigError(
        f"encoder.attention={requested}: it cannot take the masks of train.dropout=counter, and the "
        f"encoder's attention dropout is {attention_dropout}; use 'auto' or 'grouped', or train.dropout=model"
    )


def cpu_backend(backend: Backend) -> Backend:
    """What stands in for a back end on the CPU, where an encoder is checked: itself if it runs there."""
    return "grouped" if ATTENTION_BACKENDS[backend].is_kernel else backend


def has_dropout(backend: Backend) -> bool:
    """Whether a back end can drop out: all but varlen, where torch's private op is not the one it was."""
    return backend != "varlen" or HAS_FLASH_OP


def dropout_notes(backend: Backend, attention_dropout: float) -> tuple[str, ...]:
    """What a run says at start of a back end that cannot apply the encoder's attention dropout."""
    if has_dropout(backend) or attention_dropout == 0:
        return ()
    return (
        f"attention back end varlen of torch {torch.__version__} has no dropout: the encoder's attention "
        f"dropout of {attention_dropout} is not applied",
    )
