"""FLOPs, utilisation and memory of an encoder by formula. Pure functions of plain numbers; measures nothing.

Legend: T tokens, L tokens of one sequence, D hidden size, F intermediate size, P parameters, N ranks.

Forward FLOPs of one layer per token (a multiply-add counts as 2):
    query, key, value, output projections   2 * 4 D^2
    the two feed-forward matrices           2 * 2 D F
    scores (q.k) and weighted values        2 * 2 L D       each token against the L of its own sequence
Backward is twice forward (gradients for inputs and for weights), so training is 3 times forward.
Left out, since below 1 % of BERT-large: embeddings, layer norms, softmax, pooler, heads. Recomputation is not
counted as useful work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mtdnn_ds.config.precision import Precision


def encoder_flops(
    *, num_layers: int, hidden_size: int, intermediate_size: int, num_tokens: int, sum_squared_lengths: int
) -> float:
    """Training FLOPs (forward and backward) of real tokens: summed over sequences, T = sum L and the
    attention term needs sum L^2.
    """
    d, f = hidden_size, intermediate_size
    return 3.0 * num_layers * (2 * (4 * d * d + 2 * d * f) * num_tokens + 4 * d * sum_squared_lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuPeak:
    """Dense tensor-core peak with fp32 accumulation, in FLOP/s (data sheets that print the sparse figure:
    half of it).
    """

    name: str  # regular expression for torch.cuda.get_device_name()
    bf16: float | None  # None: no bf16 tensor cores
    fp16: float


# Most specific name first. Each figure is from the vendor's page on the line above it.
GPU_PEAKS = (
    # https://www.nvidia.com/en-us/data-center/hgx/ : 36 PFLOPS with sparsity for 8 GPUs, of either
    GpuPeak(name=r"\bB300\b", bf16=2250e12, fp16=2250e12),
    GpuPeak(name=r"\bB200\b", bf16=2250e12, fp16=2250e12),
    # https://www.nvidia.com/en-us/data-center/gb300-nvl72/ : 360 PFLOPS with sparsity for 72 GPUs
    GpuPeak(name=r"\bGB300\b", bf16=2500e12, fp16=2500e12),
    # https://www.nvidia.com/en-us/data-center/gb200-nvl72/ : 10 PFLOPS with sparsity for 2 GPUs
    GpuPeak(name=r"\bGB200\b", bf16=2500e12, fp16=2500e12),
    # https://www.nvidia.com/en-us/data-center/grace-hopper-superchip/ , data sheet: 1,979 | 990
    GpuPeak(name=r"\bGH200\b", bf16=990e12, fp16=990e12),
    # https://www.nvidia.com/en-us/data-center/h200/
    GpuPeak(name=r"\bH200 NVL\b", bf16=836e12, fp16=836e12),
    GpuPeak(name=r"\bH200\b", bf16=989e12, fp16=989e12),
    # https://www.nvidia.com/en-us/data-center/h100/ ; PCIe: NVIDIA H100 Tensor Core GPU Architecture white
    # paper, table 1
    GpuPeak(name=r"\bH100 PCIe\b", bf16=756e12, fp16=756e12),
    GpuPeak(name=r"\bH100 NVL\b", bf16=835e12, fp16=835e12),
    GpuPeak(name=r"\bH100\b", bf16=989e12, fp16=989e12),
    # NVIDIA publishes no data sheet of it, but has the figure in NeMo AutoModel:
    # https://github.com/NVIDIA-NeMo/Automodel/blob/main/nemo_automodel/_transformers/mfu.py
    GpuPeak(name=r"\bH20\b", bf16=148e12, fp16=148e12),
    # https://www.nvidia.com/en-us/data-center/a100/
    GpuPeak(name=r"\bA100\b", bf16=312e12, fp16=312e12),
    # https://www.nvidia.com/en-us/data-center/products/a30-gpu/
    GpuPeak(name=r"\bA30\b", bf16=165e12, fp16=165e12),
    # https://www.nvidia.com/en-us/data-center/v100/ (PCIe 112, SXM2 125)
    GpuPeak(name=r"\bV100-PCIE\b", bf16=None, fp16=112e12),
    GpuPeak(name=r"\bV100-SXM", bf16=None, fp16=125e12),
    # https://www.nvidia.com/en-us/data-center/l40s/
    GpuPeak(name=r"\bL40S\b", bf16=362e12, fp16=362e12),
    # https://www.nvidia.com/en-us/data-center/l40/
    GpuPeak(name=r"\bL40\b", bf16=181e12, fp16=181e12),
    # https://www.nvidia.com/en-us/data-center/l4/
    GpuPeak(name=r"\bL4\b", bf16=121e12, fp16=121e12),
    # https://www.nvidia.com/en-us/data-center/products/a10-gpu/
    GpuPeak(name=r"\bA10\b", bf16=125e12, fp16=125e12),
    # https://www.nvidia.com/en-us/data-center/tesla-t4/
    GpuPeak(name=r"\bT4\b", bf16=None, fp16=65e12),
    # NVIDIA Ada GPU Architecture white paper, appendix A:
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf
    GpuPeak(name=r"\bRTX 4090\b(?! (D|Laptop))", bf16=165.2e12, fp16=165.2e12),
    # NVIDIA RTX Blackwell GPU Architecture white paper, appendix A:
    # https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf
    GpuPeak(name=r"\bRTX 5090\b(?! (D|Laptop))", bf16=209.5e12, fp16=209.5e12),
    # NVIDIA Ada GPU Architecture white paper for professional graphics, which has both cards:
    # https://images.nvidia.com/aem-dam/en-zz/Solutions/technologies/NVIDIA-ADA-GPU-PROVIZ-Architecture-Whitepaper_1.1.pdf
    GpuPeak(name=r"\bRTX 6000 Ada\b", bf16=364.2e12, fp16=364.2e12),
    GpuPeak(name=r"\bRTX A6000\b", bf16=154.8e12, fp16=154.8e12),
)


def peak_flops_per_second(device_name: str, precision: Precision) -> float | None:
    """One device's peak, or None where it is unknown: a device outside the table, a CPU, fp32 (depends on
    TF32), bf16 on a GPU without it.

    `autocast` counts as bf16.
    """
    for gpu in GPU_PEAKS:
        if re.search(gpu.name, device_name):
            return {"fp32": None, "bf16": gpu.bf16, "autocast_bf16": gpu.bf16, "fp16": gpu.fp16}[precision]
    return None


def model_flops_utilisation(
    *, flops: float, seconds: float, num_devices: int, peak_flops_per_second: float | None
) -> float | None:
    """Share of the peak spent on useful work (MFU; Chowdhery et al. 2022, arXiv:2204.02311, appendix B); None
    if the peak is unknown.

    `flops`: of all devices together in `seconds`, on real tokens only.
    """
    if peak_flops_per_second is None:
        return None
    return flops / (seconds * num_devices * peak_flops_per_second)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """What a step of a run costs: the encoder's sizes, and the peak of one of the run's devices (None:
    unknown).
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    peak_flops_per_second: float | None

    def mfu(self, *, tokens: int, sum_squared_lengths: int, seconds: float, num_devices: int) -> float | None:
        """Utilisation of a step of `tokens` real tokens, all ranks together; None if the peak is unknown."""
        flops = encoder_flops(
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_tokens=tokens,
            sum_squared_lengths=sum_squared_lengths,
        )
        return model_flops_utilisation(
            flops=flops,
            seconds=seconds,
            num_devices=num_devices,
            peak_flops_per_second=self.peak_flops_per_second,
        )


def step_cost(config: Any, *, precision: Precision, device: torch.device) -> StepCost:
    """The cost of a step with this Hugging Face config on this kind of device.

    A config without BERT's names for its sizes has no known formula here: its peak counts as unknown, so no
    MFU is shown.
    """
    names = ("num_hidden_layers", "hidden_size", "intermediate_size")
    num_layers, hidden_size, intermediate_size = (int(getattr(config, name, None) or 0) for name in names)

    peak = None
    if device.type == "cuda" and num_layers and hidden_size and intermediate_size:
        peak = peak_flops_per_second(torch.cuda.get_device_name(device), precision)

    return StepCost(
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        peak_flops_per_second=peak,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStateBytes:
    """What one rank holds, in bytes, on its device and (offloaded) in host memory."""

    parameters: float
    gradients: float
    optimizer: float  # states, and the fp32 master copy where parameters are 16-bit
    host: float

    @property
    def device(self) -> float:
        return self.parameters + self.gradients + self.optimizer


def model_state_bytes(
    *,
    num_parameters: int,
    zero_stage: Literal[0, 1, 2, 3],
    precision: Precision,
    num_ranks: int,
    num_optimizer_states: int = 2,
    gradient_bytes: int | None = None,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
) -> ModelStateBytes:
    """Parameters, gradients and optimizer states of one rank (ZeRO, Rajbhandari et al. 2020,
    arXiv:1910.02054, sections 3.1 and 5).

    Bytes per parameter, Adam: 16-bit 2 + 2 + (4 master + 4 + 4) = 16; fp32 and autocast (whose parameters
    stay fp32) 4 + 4 + (4 + 4) = 16. Stage 1 divides the optimizer's part by N, stage 2 the gradients' too,
    stage 3 the parameters' too. `gradient_bytes`: 4 where a 16-bit run accumulates in fp32 (DeepSpeed's
    data_types.grad_accum_dtype); default: the parameters' own size. An offloaded optimizer takes its
    gradients to the host with it (ZeRO-Offload, Ren et al. 2021, arXiv:2101.06840, section 4.1). Left out:
    communication buckets, ZeRO 3's gathered layer, pinned copies, the allocator's fragmentation. Raises
    ValueError for an offload that the stage does not have.
    """
    if offload_optimizer and zero_stage == 0:
        raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
    if offload_parameters and zero_stage != 3:
        raise ValueError("offload_parameters needs zero_stage 3")

    # A 16-bit run keeps an fp32 master copy beside its parameters.
    parameter_bytes, master_bytes = (2, 4) if precision in ("bf16", "fp16") else (4, 0)
    optimizer_bytes = master_bytes + 4 * num_optimizer_states

    parameters = float(num_parameters * parameter_bytes)
    gradients = float(num_parameters * (gradient_bytes or parameter_bytes))
    optimizer = float(num_parameters * optimizer_bytes)
    if zero_stage >= 1:
        optimizer /= num_ranks
    if zero_stage >= 2:
        gradients /= num_ranks
    if zero_stage == 3:
        parameters /= num_ranks

    host = 0.0
    if offload_optimizer:
        host += optimizer + num_parameters * (gradient_bytes or parameter_bytes) / num_ranks
        optimizer, gradients = 0.0, 0.0
    if offload_parameters:
        host += parameters
        parameters = 0.0

    return ModelStateBytes(parameters=parameters, gradients=gradients, optimizer=optimizer, host=host)


def activation_bytes(
    *,
    num_tokens: int,
    num_layers: int,
    hidden_size: int,
    intermediate_size: int,
    bytes_per_value: int,
    gradient_checkpointing: bool = False,
) -> float:
    """Activations kept for the backward pass of a packed micro-batch of T = `num_tokens` (Korthikanti et al.
    2022, arXiv:2205.05198, section 4.1).

    Per layer and token: 8 D + 2 F values (attention: input, q, k, v, its output: 5 D; feed-forward: input D,
    and 2 F around the GELU; two layer-norm inputs: 2 D) and two dropout masks of D bytes. At 2 bytes and F =
    4 D that is the paper's 34 D. With checkpointing a layer keeps its input only, and one layer at a time is
    rebuilt in full. Left out: the attention matrix (fused attention keeps none; unfused: heads * L * 5 bytes
    a token and layer, at 2 bytes a value), embeddings, heads, temporary buffers of the kernels.
    """
    # values a layer and token, and its two dropout masks
    per_layer = num_tokens * (bytes_per_value * (8 * hidden_size + 2 * intermediate_size) + 2 * hidden_size)
    if not gradient_checkpointing:
        return float(num_layers * per_layer)

    return float(num_layers * num_tokens * hidden_size * bytes_per_value + per_layer)
