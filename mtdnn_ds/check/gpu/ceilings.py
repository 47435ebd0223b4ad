"""Part machine: versions, the device, and what it can reach: matrix products of BERT-large's shapes, copies.

Shape legend: T packed tokens, D hidden, F intermediate.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import partial
from importlib import metadata

import torch

from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.results import Row
from mtdnn_ds.check.gpu.timing import median_ms
from mtdnn_ds.monitor.flops import peak_flops_per_second

PACKAGES = ("torch", "deepspeed", "transformers", "triton", "flash-attn", "flash-attn-4", "numpy")
COPIED_BYTES = 2**30
SECONDS_FOR_NVIDIA_SMI = 10

# name -> (dtype, torch.set_float32_matmul_precision, precision of the table of peaks)
PRODUCTS = {
    "bf16": (torch.bfloat16, "highest", "bf16"),
    "fp16": (torch.float16, "highest", "fp16"),
    "tf32": (torch.float32, "high", "fp32"),
    "fp32": (torch.float32, "highest", "fp32"),
}


def look(bench: Bench) -> None:
    """Versions first: without them the rest says little."""
    bench.tried("versions", lambda: Row(name="versions", figures=versions()))
    bench.tried("device", lambda: Row(name="device", figures=device_facts(bench.device)))
    for name in PRODUCTS:
        bench.tried(f"products in {name}", partial(_products, bench, name))
    bench.tried("copies", partial(_copies, bench))


def versions() -> dict[str, str]:
    """Of what a run is made of; `-`: not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    found["CUDA"] = torch.version.cuda or "-"
    found["cuDNN"] = str(torch.backends.cudnn.version() or "-")
    found["NCCL"] = _nccl()
    found["driver"] = _nvidia_smi("driver_version")
    return found


def _nccl() -> str:
    if not torch.cuda.is_available():
        return "-"
    return ".".join(map(str, torch.cuda.nccl.version()))


def _nvidia_smi(field: str) -> str:
    if shutil.which("nvidia-smi") is None:
        return "-"
    words = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS_FOR_NVIDIA_SMI)
    except subprocess.TimeoutExpired:
        return "-"
    return asked.stdout.strip() or "-"


def device_facts(device: torch.device) -> dict[str, str | int | float]:
    """What is computed on."""
    if device.type != "cuda":
        return {"name": platform.processor() or platform.machine(), "cores": os.cpu_count() or 0}

    facts = torch.cuda.get_device_properties(device)
    return {
        "name": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "memory_GB": round(facts.total_memory / 1e9, 1),
        "processors": facts.multi_processor_count,
        "power_limit": _nvidia_smi("power.limit"),
        "host_cores": os.cpu_count() or 0,
    }


def _products(bench: Bench, name: str) -> Row:
    """The matrix products of one layer's forward pass, one after the other."""
    dtype, float32_precision, precision = PRODUCTS[name]
    if name == "tf32" and not bench.on_cuda:
        return Row(name=f"products in {name}", status="note", what="needs CUDA")

    num_tokens, hidden, intermediate = bench.sized(16_384, 64), bench.sized(1024, 32), bench.sized(4096, 64)
    shapes = {"query_key_value": (hidden, 3 * hidden), "output": (hidden, hidden)}
    shapes |= {"up": (hidden, intermediate), "down": (intermediate, hidden)}

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(float32_precision)
    try:
        figures: dict[str, float] = {}
        total_ms, total_flops = 0.0, 0.0
        for shape_name, (inner, outer) in shapes.items():
            left_TI = torch.randn(num_tokens, inner, device=bench.device, dtype=dtype)
            right_IO = torch.randn(inner, outer, device=bench.device, dtype=dtype)
            ms = median_ms(partial(torch.matmul, left_TI, right_IO), bench.device, warmup=3, repeats=10)
            flops = 2.0 * num_tokens * inner * outer
            figures[f"{shape_name}_TFLOP/s"] = round(flops / ms / 1e9, 1)
            total_ms, total_flops = total_ms + ms, total_flops + flops
    finally:
        torch.set_float32_matmul_precision(before)

    figures["layer_TFLOP/s"] = round(total_flops / total_ms / 1e9, 1)
    peak = None
    if bench.on_cuda:
        device_name = torch.cuda.get_device_name(bench.device)
        peak = peak_flops_per_second(device_name, precision)  # type: ignore[arg-type]
    what = ""
    if peak is not None:
        what = f"{total_flops / total_ms * 1e3 / peak:.0%} of the peak of {peak / 1e12:g} TFLOP/s"
    return Row(name=f"products in {name}", figures=figures, what=what)


def _copies(bench: Bench) -> Row:
    """Bytes copied a second; on the device each is read and written, so its memory does twice that."""
    num_bytes = bench.sized(COPIED_BYTES, 2**16)
    host = torch.empty(num_bytes, dtype=torch.uint8)
    ours = torch.empty(num_bytes, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(ours)
    copies = {"device": (other, ours), "host_to_device": (ours, host), "device_to_host": (host, ours)}
    if bench.on_cuda:
        pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        copies |= {"pinned_to_device": (ours, pinned), "device_to_pinned": (pinned, ours)}

    figures = {}
    for name, (target, source) in copies.items():
        copy = partial(target.copy_, source, non_blocking=True)
        figures[f"{name}_GB/s"] = round(
            num_bytes / median_ms(copy, bench.device, warmup=2, repeats=5) / 1e6, 1
        )
    return Row(name="copies", figures=figures)
