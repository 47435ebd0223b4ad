"""What this machine can compute: device, fast bf16, fp16; and how its memory is kept. Chooses no format.

(config/precision.py does.)
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Literal

import torch

from mtdnn_ds import dist
from mtdnn_ds.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Capabilities that decide how a DeepSpeed JSON's "auto" values, and --dtype, are read."""

    type: Literal["cpu", "cuda"]
    fast_bf16: bool  # bf16 arithmetic in hardware
    fp16: bool  # DeepSpeed's fp16 mode runs; of probe_answering: fp16 arithmetic in hardware


def probe_device() -> Device:
    """This process's device. Imports DeepSpeed on CPUs, to ask it whether its fp16 mode runs."""
    if torch.cuda.is_available():
        return Device(
            type="cuda", fast_bf16=torch.cuda.is_bf16_supported(including_emulation=False), fp16=True
        )
    return Device(type="cpu", fast_bf16=_cpu_has_bf16(), fp16=_cpu_has_fp16())


def probe_answering(device: torch.device) -> Device:
    """What `device`, which need not be this process's own, computes without DeepSpeed: of a trained model."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            fast_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device(type="cuda", fast_bf16=fast_bf16, fp16=True)

    has_fp16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return Device(type="cpu", fast_bf16=_cpu_has_bf16(), fp16=bool(has_fp16))


def take_device() -> torch.device:
    """This rank's device, made the current one and DeepSpeed's: the CPU, or a GPU of this node.

    The GPU is that of the rank's place on the node, or the only one that it has been given (`srun
    --gpus-per-task=1`). Call it before DeepSpeed starts. Raises ConfigError where there are too few GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    index = gpu_index(
        dist.local_rank(), dist.local_size(), num_visible=torch.cuda.device_count(), named=named
    )
    if index != dist.local_rank():
        dist.use_device(index)
    torch.cuda.set_device(index)

    # It plans anew for every shape, and those of packed micro-batches hardly repeat; on Hopper and newer
    # scaled_dot_product_attention would try it first.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda", index)


def make_deterministic() -> None:
    """Lets CUDA add in a fixed order, so that a resumed run is the uninterrupted one (docs/resume.md: where).

    An operation that has no such form warns once instead of ending the run. Call it before CUDA's first
    product, at which cuBLAS reads the environment.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would cost a kernel for every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def without_waiting(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device: through page-locked memory, else a GPU would be waited for."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def share_threads() -> None:
    """Gives each process of this node its part of the cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // dist.local_size()))


def gpu_index(local_rank: int, local_size: int, *, num_visible: int, named: str) -> int:
    """Which of `num_visible` GPUs a rank takes; `named` is its CUDA_VISIBLE_DEVICES.

    Raises ConfigError on every rank of a node with too few of them.
    """
    if num_visible == 1 and named and "," not in named:
        return 0  # by CUDA_VISIBLE_DEVICES each has one, and the others have other ones

    num_processes = max(local_size, local_rank + 1)
    if num_processes > num_visible:
        raise ConfigError(
            f"{num_processes} processes on this node, and {num_visible} GPUs: each needs its own; "
            "start one process for each GPU "
            "(sbatch --gpus-per-node=N, deepspeed --num_gpus N, torchrun --nproc_per_node N)"
        )
    return local_rank


def _cpu_has_bf16() -> bool:
    # AVX512-BF16 and AMX compute bf16 in hardware; elsewhere PyTorch emulates it, some 20 times slower than
    # fp32.
    checks = (
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(bool(check()) for check in checks if check is not None)


def _cpu_has_fp16() -> bool:
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().is_fp16_supported())


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of handing it back and faulting it in again at every large tensor.

    For training on CPUs: a MiniLM step of 570 tokens on two cores takes 0.51 s instead of 0.74 s. Elsewhere
    than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # malloc.h: M_TRIM_THRESHOLD -1, M_TOP_PAD -2, M_MMAP_MAX -4
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20)):
            mallopt(parameter, value)
