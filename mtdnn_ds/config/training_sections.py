"""Sections of a recipe: how a run trains, from the weights that it begins with to its length.

What it trains on, and the recipe as a whole, are in recipe.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mtdnn_ds.config.choices import (
    EARLIER_OPTIMIZER_NAMES,
    LOSS_SCALES,
    LossScaleName,
    OptimizerName,
    listed,
    scales_with,
)
from mtdnn_ds.config.setting_types import Fraction, PathText, Positive, Section


class InitSettings(Section):
    """Weights of an earlier run to begin with, instead of those of encoder.path and new heads."""

    run: PathText | None = Field(
        None,
        description="run folder whose encoder, pooler and heads this run begins with; its encoder must be "
        "the same",
    )
    checkpoint: PathText = Field(
        "latest", description="latest, step_N, best/average or best/TASK of that run"
    )
    heads: Literal["matching", "none"] = Field(
        "matching",
        description="matching: heads of tasks with the same name, labels and loss are taken too; none: all "
        "heads are new",
    )
    head_of: dict[str, str] | None = Field(
        None,
        description="task -> the task of that run whose head it begins with, where the names differ, e.g. "
        "{snli: mnli}; labels and loss must be equal",
    )


class SharingSettings(Section):
    """Which weights of the encoder the tasks share."""

    mode: Literal["hard", "soft", "low_rank"] = Field(
        "hard",
        description="hard: one encoder for all; soft: a copy for each group, drawn to the copies' mean; "
        "low_rank: one encoder and a low-rank change of it for each group",
    )
    groups: dict[str, Annotated[list[str], Field(min_length=1)]] | None = Field(
        None,
        description="for soft and low_rank: group -> its tasks; default: every task is a group of its own",
    )
    penalty: float = Field(
        100.0,
        ge=0,
        description="for soft and low_rank: factor of half the squared distance from the copies' mean, or "
        "of the low-rank changes",
    )
    rank: int = Field(8, ge=1, description="for low_rank: rank of a group's change of a linear layer")


class MixtureSettings(Section):
    """How often each task is drawn, and how tasks share a step."""

    rates: Literal["proportional", "temperature", "cap", "uniform", "annealed"] | dict[str, Positive] = (
        "proportional"
    )
    temperature: float = Field(2.0, ge=1, description="for rates=temperature: rate ~ size^(1/temperature)")
    cap: int = Field(
        2**17,
        ge=1,
        description="for rates=cap: rate ~ min(size, cap) (T5, Raffel et al. 2020, section 3.5.2)",
    )
    anneal_to: Fraction = Field(
        0.2,
        description="for rates=annealed: rate ~ size^alpha, alpha falls linearly from 1 to this over the "
        "run (Stickland & Murray 2019)",
    )
    mixing: Literal["per_example", "per_micro_batch", "per_step", "sequential"] = "per_example"
    order: Literal["random", "stratified"] = Field(
        "random",
        description="for mixing=per_step: the order of the steps; random: those of each epoch shuffled "
        "(Algorithm 1 of MT-DNN); stratified: each task's share in any ten",
    )
    only_task: str | None = Field(
        None,
        description="a task whose part of the mixture is trained alone: the steps that draw it, with its "
        "examples and without the other tasks'; steps and epochs are those of the whole mixture",
    )


class BatchSettings(Section):
    """How many examples a step has, and how many tokens one forward of a rank holds at most."""

    examples_per_step: int = Field(32, ge=1)
    max_tokens_per_micro_batch: int = Field(8192, ge=8)
    pad_tokens_to: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="a filler that nothing reads makes a micro-batch's tokens a multiple of this divisor of "
        "max_tokens_per_micro_batch, so that shapes repeat; default: on CUDA up to 512, else 1",
    )

    @model_validator(mode="after")
    def _divides(self) -> BatchSettings:
        if self.pad_tokens_to is not None and self.max_tokens_per_micro_batch % self.pad_tokens_to:
            raise ValueError(
                f"pad_tokens_to={self.pad_tokens_to} must divide max_tokens_per_micro_batch="
                f"{self.max_tokens_per_micro_batch}: a filled micro-batch has at most as many tokens"
            )
        return self


class OptimizerSettings(Section):
    """The optimizer and its learning rates, before the schedule."""

    name: OptimizerName = "adamw"
    lr: Positive = 5e-5
    head_lr_factor: Positive = Field(
        1.0, description="learning rate of pooler and heads, as a multiple of lr"
    )
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases and normalisation weights")
    idle_heads: Literal["update", "freeze"] = Field(
        "update",
        description="the head of a task without examples in a step; update: moves by momentum and decay, as "
        "all weights; freeze: stays as it is",
    )
    gradient_clipping: float = Field(1.0, ge=0, description="largest global gradient norm; 0 = off")

    @field_validator("name", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return EARLIER_OPTIMIZER_NAMES.get(value, value)
        return value

    @field_validator("betas", mode="before")
    @classmethod
    def _betas(cls, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value)
        return value


class ScheduleSettings(Section):
    """How the learning rate rises and falls over the run's steps."""

    name: Literal["linear", "cosine", "polynomial", "constant"] = "linear"
    warmup: float = Field(0.1, ge=0, description="below 1: fraction of all steps; 1 and above: steps")
    final_lr_ratio: Fraction = Field(
        0.0, description="learning rate at the end, as a fraction of optimizer.lr"
    )
    power: Positive = Field(2.0, description="for polynomial")


_SCALE_LR_DEFAULTS = ", ".join(
    f"{LOSS_SCALES[name].default_lr} for {name}" for name in scales_with("scale_lr")
)


class LossSettings(Section):
    """How much each task counts in a step's objective."""

    scale: LossScaleName | dict[str, Positive] = "examples"
    scale_lr: Positive | None = Field(
        None,
        description=f"for scale={listed(scales_with('scale_lr'))}: step size of the learned scales; "
        f"default {_SCALE_LR_DEFAULTS}",
    )
    scale_window: int = Field(
        50,
        ge=1,
        description=f"for scale={listed(scales_with('scale_window'))}: steps whose mean losses are compared "
        "with those of as many steps before",
    )
    scale_temperature: Positive = Field(
        2.0,
        description=f"for scale={listed(scales_with('scale_temperature'))}: the higher, the more equal the "
        "scales",
    )


class RegularizerSettings(Section):
    """What is added to the losses: docs/regularizers.md. A setting belongs to the names that its description
    begins with."""

    name: Literal["none", "smart", "freelb", "r_drop"] = "none"
    tasks: list[str] | None = Field(
        None, min_length=1, description="the tasks it applies to; default: all that it has a rule for"
    )
    factor: Positive = Field(1.0, description="smart, r_drop: factor of the divergence of two predictions")
    ascent_steps: int | None = Field(
        None,
        ge=1,
        description="smart: ascent steps, default 1; freelb: passes over the perturbed input, default 3",
    )
    noise_std: Positive = Field(
        1e-3, description="smart: standard deviation of the noise that the ascent begins with"
    )
    norm: Literal["inf", "l2"] | None = Field(
        None, description="smart, freelb: norm of gradient and noise; default inf for smart, l2 for freelb"
    )
    norm_per: Literal["token", "sequence"] | None = Field(
        None,
        description="smart, freelb: what the norm is taken of; default token for smart, sequence for freelb",
    )
    step_size: Positive | None = Field(
        None, description="smart, freelb: length of an ascent step; default 0.005 for smart, 0.05 for freelb"
    )
    radius: Positive | None = Field(
        None, description="smart, freelb: largest norm of the noise; default 0.005 for smart, 0.2 for freelb"
    )
    proximal_factor: float = Field(
        0.0, ge=0, description="smart: factor of the Bregman proximal point term; 0 = off"
    )
    proximal_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.99,
        description="smart with proximal_factor: share of itself that the averaged model keeps in each step",
    )


class DistillationSettings(Section):
    """Finished runs whose answers on the training examples the tasks learn beside their labels."""

    teachers: list[PathText] | None = Field(
        None, min_length=1, description="run folders to learn from; several: the mean of their answers"
    )
    checkpoint: PathText = Field(
        "best/average", description="which weights of each teacher: best/average, best/TASK, step_N or latest"
    )
    tasks: list[str] | None = Field(
        None, min_length=1, description="tasks that learn from them; default: all that a teacher has too"
    )
    temperature: Positive = Field(
        2.0, description="both sides' scores of classes are divided by it before their softmax"
    )
    weight: Fraction = Field(
        0.5, description="of the teachers' answers in the loss; the labels have 1 - weight"
    )


class TrainSettings(Section):
    """The run's length, seed and dropout; when it evaluates and saves; what it does with faults."""

    steps: int | None = Field(None, ge=1)
    epochs: Positive | None = Field(
        None, description="passes over the sum of all tasks' training rows; alternative to steps"
    )
    seed: int = Field(0, ge=0, lt=2**32)
    dropout: Literal["model", "none", "counter"] = Field(
        "model",
        description="model: as encoder and tasks say; none: off everywhere; counter: as model, with masks "
        "that depend on no rank and micro-batch",
    )
    eval_every: int = Field(0, ge=0, description="steps between evaluations; 0 = only at the end")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0 = only at the end")
    gradient_norms_every: int = Field(
        0,
        ge=0,
        description="steps between measurements of how long each task's part of the encoder's gradient is, "
        "which take a forward and a backward pass for each task; 0 = never",
    )
    keep_last: int = Field(2, ge=1, description="checkpoints kept")
    on_save_error: Literal["stop", "continue"] = Field(
        "stop",
        description="when a checkpoint, best weights or the log cannot be written: stop; or continue, and "
        "try again at the next time",
    )
    async_save: bool = Field(
        False,
        description="copy a checkpoint to host memory and write it beside the next steps; takes its size in "
        "memory on every rank",
    )
    time_margin: float = Field(
        120.0,
        ge=0,
        description="under SLURM: seconds of the job's time, beside the longest step and save, that are "
        "left when the run saves and stops",
    )
    stall_timeout: float = Field(
        600.0,
        ge=0,
        description="seconds without a sign of life, or without progress in training, after which a rank "
        "counts as lost; 0 = off",
    )
    freeze: list[str] = Field(
        [],
        description="parts that stay as they are: embeddings, encoder.layer.0-5, encoder, pooler, heads, "
        "heads.NAME",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self
