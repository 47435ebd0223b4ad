"""Every CUDA path of the project on this machine's GPUs: kernels against plain PyTorch, optimizers, DeepSpeed
configurations.

Nothing here needs the hub. On a machine without a GPU it says so and does nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mtdnn_ds import dist
from mtdnn_ds.check.doctor.findings import Finding
from mtdnn_ds.check.tiny_runs import TINY_STEPS, losses_of, tiny_run
from mtdnn_ds.config.choices import ATTENTION_BACKENDS, OPTIMIZERS
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.attention import attend
from mtdnn_ds.model.attention_choice import resolve_backend
from mtdnn_ds.model.attention_layout import Backend, attention_layout
from mtdnn_ds.model.probe import batch_of_lengths
from mtdnn_ds.runs.folder import RunFolder

PLAIN: dict[str, object] = {"zero_optimization": {"stage": 0}}

# name -> (DeepSpeed JSON without shared keys, largest relative difference of the losses from float32's)
CONFIGURATIONS: dict[str, tuple[dict[str, object], float]] = {
    "ZeRO 0, fp32": ({"zero_optimization": {"stage": 0}}, 1e-4),
    "ZeRO 1, fp32": ({"zero_optimization": {"stage": 1}}, 1e-4),
    "ZeRO 2, fp32": ({"zero_optimization": {"stage": 2}}, 1e-4),
    "ZeRO 3, fp32": ({"zero_optimization": {"stage": 3}}, 1e-4),
    "ZeRO 2, bf16": ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}, 3e-2),
    "ZeRO 3, bf16": ({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}, 3e-2),
    "ZeRO 2, fp16": ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}, 3e-2),
    "ZeRO 0, autocast bf16": (
        {"zero_optimization": {"stage": 0}, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        3e-2,
    ),
    "ZeRO 2, optimizer offload": (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        1e-4,
    ),
}
ATTENTION_TOLERANCE = 2e-2  # bf16 against float32, outputs of order 1


def gpu_findings(device: torch.device) -> list[Finding]:
    """A finding for each CUDA path. Collective: all ranks must call this."""
    if device.type != "cuda":
        advice = "run it on a node with GPUs, and look at nvidia-smi and torch.cuda.is_available()"
        return [Finding(check="GPU paths", status="fails", what="no CUDA device is seen", advice=advice)]

    plain_first = sorted(ATTENTION_BACKENDS, key=lambda name: ATTENTION_BACKENDS[name].is_kernel)
    findings = [attention_finding(backend, device) for backend in plain_first]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(dist.broadcast(folder))
        return [*findings, *run_findings(root, CONFIGURATIONS, tuple(OPTIMIZERS))]


def attention_finding(backend: Backend, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Finding:
    """A back end's output against softmax written out in float32, on sequences of four lengths."""
    check = f"attention {backend}"
    try:
        resolve_backend(backend, device.type, dtype)
    except ConfigError as error:
        return Finding(check=check, status="note", what=str(error))

    lengths, heads, width = (3, 17, 64, 128), 4, 32
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(sum(lengths), heads, width, generator=generator).to(device, dtype) for _ in range(3)
    )
    layout = attention_layout(batch_of_lengths(np.array(lengths)).to(device), backend)
    ours = attend(query, key, value, layout, dropout=0.0, scaling=width**-0.5).float()
    theirs = _plain_attention(query.float(), key.float(), value.float(), lengths)

    difference = float((ours - theirs).abs().max())
    what = f"differs from plain softmax by {difference:.1e} in {str(dtype).removeprefix('torch.')}"
    if difference < ATTENTION_TOLERANCE:
        return Finding(check=check, status="ok", what=what)
    advice = "set encoder.attention to grouped, and report it"
    return Finding(check=check, status="fails", what=what, advice=advice)


def _plain_attention(
    query_TNH: torch.Tensor, key_TNH: torch.Tensor, value_TNH: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """softmax(q k^T / sqrt(H)) v of each sequence alone, (T, N, H)."""
    scaling = query_TNH.shape[-1] ** -0.5
    parts, start = [], 0
    for length in lengths:
        rows = slice(start, start + length)
        query, key, value = (each[rows].transpose(0, 1) for each in (query_TNH, key_TNH, value_TNH))
        weights = (query @ key.transpose(1, 2) * scaling).softmax(-1)
        parts.append((weights @ value).transpose(0, 1))
        start += length
    return torch.cat(parts)


def run_findings(
    folder: Path, configurations: dict[str, tuple[dict[str, object], float]], optimizers: tuple[str, ...]
) -> list[Finding]:
    """A few training steps in each configuration against float32 without ZeRO, and with each optimizer.

    Collective.
    """
    reference = losses_of(tiny_run(folder / "reference", PLAIN, {"optimizer.name": "torch_adamw"}))

    findings = []
    for number, (name, (config, tolerance)) in enumerate(configurations.items()):
        run = partial(tiny_run, folder / f"config_{number}", config, {"optimizer.name": "adamw"})
        findings.append(_tried(name, partial(_compare, run, reference, tolerance)))
    for name in optimizers:
        run = partial(tiny_run, folder / f"optimizer_{name}", PLAIN, {"optimizer.name": name})
        findings.append(_tried(f"optimizer {name}", partial(_train, run)))
    return findings


def _compare(run: Callable[[], RunFolder], reference: np.ndarray, tolerance: float) -> tuple[bool, str]:
    """Whether the run has the losses of the reference, and by how much they differ."""
    losses = losses_of(run())
    difference = float(np.max(np.abs(losses - reference) / reference))
    what = f"{TINY_STEPS} steps differ from float32 without ZeRO by {difference:.1e} (at most {tolerance:g})"
    return difference < tolerance, what


def _train(run: Callable[[], RunFolder]) -> tuple[bool, str]:
    """Whether the run's losses are numbers, and the first and the last."""
    losses = losses_of(run())
    what = f"{TINY_STEPS} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}"
    return bool(np.isfinite(losses).all()), what


def _tried(check: str, function: Callable[[], tuple[bool, str]]) -> Finding:
    try:
        is_good, what = function()
    except ConfigError as error:  # something that is not installed
        return Finding(check=check, status="note", what="; ".join(error.problems))
    except Exception as error:  # whatever a driver or kernel raises is a finding
        return Finding(check=check, status="fails", what=f"{type(error).__name__}: {error}".splitlines()[0])
    return Finding(check=check, status="ok" if is_good else "fails", what=what)
