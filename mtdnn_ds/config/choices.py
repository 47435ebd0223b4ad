"""What a recipe chooses by name: optimizers, loss scales, attention back ends, each with the facts that
checks go by.

Every list of these names is read off the tables here; what they name is built elsewhere, an optimizer in
train/optimizer.py, a loss scale in losses/objective.py or losses/adaptive.py, a back end in
model/attention.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerFacts:
    """An optimizer of optimizer.name. All of them take lr, betas, eps, weight_decay and gradient_clipping."""

    deepspeed_types: tuple[str, ...] = ()  # optimizer.type of a DeepSpeed JSON that means it, in lower case
    torch_adam: bool = False  # what params.torch_adam of a DeepSpeed JSON may say of it
    needs_compiler: bool = False  # its kernels are compiled on first use, or were when it was installed
    cuda_only: bool = False
    needs_whole_layers: bool = False  # which ZeRO cuts up, so it runs at stage 0 alone
    zero_tested: bool = True  # DeepSpeed takes it under ZeRO without zero_allow_untested_optimizer
    has_deepspeed_cpu_form: bool = False  # for offloaded states; the others run in PyTorch there


OPTIMIZERS: Mapping[str, OptimizerFacts] = {
    "adamw": OptimizerFacts(deepspeed_types=("adamw", "adam"), torch_adam=True),
    "deepspeed_adamw": OptimizerFacts(
        deepspeed_types=("adamw", "adam"), needs_compiler=True, has_deepspeed_cpu_form=True
    ),
    # Outside DeepSpeed's ZERO_SUPPORTED_OPTIMIZERS (deepspeed.runtime.zero.utils), but element-wise, hence
    # exact on any partition.
    "adamax": OptimizerFacts(zero_tested=False),
    # LAMB scales each layer's update by norms of that layer (You et al. 2020, algorithm 2); ZeRO would hand
    # it flat pieces of all layers.
    "lamb": OptimizerFacts(
        deepspeed_types=("lamb",), needs_compiler=True, cuda_only=True, needs_whole_layers=True
    ),
    "apex_adam": OptimizerFacts(needs_compiler=True, cuda_only=True),
}

EARLIER_OPTIMIZER_NAMES: Mapping[str, str] = {"torch_adamw": "adamw"}
"""What recipes of finished runs may still say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossScaleFacts:
    """A scale of loss.scale. Factors of the user's own, a mapping, are none of these."""

    is_adaptive: bool = False  # from the losses of the steps before, or drawn: losses/adaptive.py
    shares_out: bool = False  # a step among its tasks, so it needs several in a step
    settings: tuple[str, ...] = ()  # of section loss that have an effect with it alone
    default_lr: float | None = None  # where loss.scale_lr is not given


LOSS_SCALES: Mapping[str, LossScaleFacts] = {
    "examples": LossScaleFacts(),
    "task_mean": LossScaleFacts(),
    "log_classes": LossScaleFacts(),
    "uncertainty": LossScaleFacts(is_adaptive=True, settings=("scale_lr",), default_lr=0.01),
    "dwa": LossScaleFacts(is_adaptive=True, shares_out=True, settings=("scale_window", "scale_temperature")),
    "random": LossScaleFacts(is_adaptive=True, shares_out=True),
    "famo": LossScaleFacts(is_adaptive=True, shares_out=True, settings=("scale_lr",), default_lr=0.025),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionFacts:
    """A back end of encoder.attention."""

    # A kernel needs CUDA of compute capability 8.0, fp16 or bf16, and heads of a multiple of 8 elements; it
    # takes no masks from counters, and torch.compile has it as one op.
    is_kernel: bool = False
    function: tuple[str, str, str] | None = None  # that it needs: (module, name, its package on PyPI)


ATTENTION_BACKENDS: Mapping[str, AttentionFacts] = {
    "grouped": AttentionFacts(),
    "varlen": AttentionFacts(is_kernel=True),
    "flash": AttentionFacts(
        is_kernel=True, function=("flash_attn", "flash_attn_varlen_func", "flash-attn 2")
    ),
    "padded": AttentionFacts(),
}


# Types of the settings. A type checker cannot read a table, so to it they are texts.
if TYPE_CHECKING:
    OptimizerName = str
    LossScaleName = str
    AttentionName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    LossScaleName = Literal[tuple(LOSS_SCALES)]
    AttentionName = Literal[("auto", *ATTENTION_BACKENDS)]


def scales_with(setting: str) -> tuple[str, ...]:
    """The loss scales that a setting of section loss belongs to."""
    return tuple(name for name, facts in LOSS_SCALES.items() if setting in facts.settings)


def listed(names: Iterable[str]) -> str:
    """`adamw, deepspeed_adamw or adamax`."""
    *others, last = names
    if not others:
        return last
    return f"{', '.join(others)} or {last}"


OPTIMIZERS_OF_CPUS = listed(name for name, facts in OPTIMIZERS.items() if not facts.cuda_only)
"""Those that run without CUDA, for messages."""
