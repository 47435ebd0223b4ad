"""The recipe: every setting of a run as typed, strict models. Not the DeepSpeed JSON (config/deepspeed.py),
no file reading.

Keys that scripts rely on are listed in docs/recipes.md. Constructors elsewhere take plain values; this is the
only place where settings have defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mtdnn_ds.config.choices import (
    LOSS_SCALES,
    AttentionName,
    LossScaleName,
    OptimizerName,
    listed,
    scales_with,
)
from mtdnn_ds.config.setting_types import Dropout, Fraction, PathText, Positive, Section


class EncoderSettings(Section):
    """The shared encoder: any Hugging Face encoder."""

    path: PathText = Field(
        description="hub name, local folder, or package:NAME/SUBFOLDER of an installed Python package"
    )
    tokenizer: PathText | None = Field(
        None, description="where the tokenizer comes from, written as path; default: path"
    )
    sha256: str | None = Field(
        None, description="expected sha256 of the folder's model.safetensors; refused if it differs"
    )
    max_length: int = Field(
        128,
        ge=8,
        description="tokens per sequence, special tokens included; longer pairs lose tokens longest-first",
    )
    attention: AttentionName = Field(
        "auto", description="attention back end; auto = flash on CUDA if installed, else grouped"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    random_init: bool = Field(
        False, description="take only config and tokenizer from path; weights drawn from train.seed"
    )
    trust_remote_code: bool = Field(False, description="allow a hub repository to run its own Python code")
    fused_layer_norm: bool = Field(
        False, description="NVIDIA apex's FusedLayerNorm (CUDA only); refused if apex cannot provide it"
    )


class TaskSettings(Section):
    """One task of the run. Built-in tasks need no key at all; user tasks need kind, files (or hub, dataset)
    and, for tables, columns."""

    kind: str | None = None
    files: dict[str, PathText] | None = Field(
        None,
        description="split name -> csv, tsv, jsonl, parquet or the kind's own file; splits: train, dev, "
        "dev_NAME, test",
    )
    dataset: PathText | None = Field(None, description="folder written by datasets' save_to_disk")
    hub: str | None = Field(None, description="hub dataset, NAME or NAME:CONFIG")
    splits: dict[str, str] | None = Field(
        None, description="for dataset/hub: our split name -> theirs, e.g. {train: train, dev: validation}"
    )
    text_columns: list[str] | None = Field(None, min_length=1, max_length=2)
    label_column: str | None = None
    labels: list[str] | None = Field(None, min_length=2, description="label names, in class-id order")
    metrics: list[str] | None = Field(None, min_length=1)
    dropout: Dropout | None = Field(
        None, description="dropout before this task's head; default: the encoder's hidden_dropout_prob"
    )
    head: Literal["linear", "san"] | None = Field(
        None,
        description="classification of pairs: linear (default), or san, the stochastic answer network of "
        "MT-DNN",
    )
    objective: Literal["softmax", "pairwise", "cosine", "contrastive"] | None = Field(
        None,
        description="the loss, where a kind has several: ranking softmax (default) or pairwise; similarity "
        "cosine (default) or contrastive",
    )
    choice_columns: list[str] | None = Field(
        None,
        min_length=1,
        description="multiple_choice: the columns of the choices, or one column that holds a list of them",
    )
    group_column: str | None = Field(
        None,
        description="ranking: rows with the same value are candidates of one query; default: the first text "
        "column",
    )
    relevant_label: str | None = Field(
        None, description="ranking: the label of relevant candidates; default: the last of labels"
    )
    score_range: list[float] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="similarity by cosine: the scores that a cosine of 0 and of 1 stand for; default [0, 1]",
    )
    stride: int | None = Field(
        None,
        ge=0,
        description="span, conversational_span: tokens that neighbouring windows share; default a third of "
        "encoder.max_length",
    )
    max_answer_tokens: int | None = Field(
        None, ge=1, description="span, conversational_span: longest answer; default 30 (quac: 50)"
    )
    null_threshold: float | None = Field(
        None,
        description="span: no answer where its score exceeds the best span's by more than this; needed "
        "where questions have no answer (squad_v2: 0)",
    )
    history_turns: int | None = Field(
        None, ge=0, description="conversational_span: earlier turns before the question; default 2"
    )
    masking: Literal["whole_word", "piece"] | None = Field(
        None, description="masked_lm: what is masked together; default whole_word"
    )
    mask_rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="masked_lm: share of tokens predicted; default 0.15"
    )
    next_sentence: bool | None = Field(
        None,
        description="masked_lm: also predict whether the second segment follows the first; default false",
    )
    train_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="share of the training examples that is used, rounded down, sampled with every class "
        "kept; default: all",
    )
    sample_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None, description="of train_fraction's sample; default 0"
    )


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


class BatchSettings(Section):
    examples_per_step: int = Field(32, ge=1)
    max_tokens_per_micro_batch: int = Field(8192, ge=8)


class OptimizerSettings(Section):
    name: OptimizerName = "adamw"
    lr: Positive = 5e-5
    head_lr_factor: Positive = Field(
        1.0, description="learning rate of pooler and heads, as a multiple of lr"
    )
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: float = Field(0.01, ge=0, description="not applied to biases and normalisation weights")
    gradient_clipping: float = Field(1.0, ge=0, description="largest global gradient norm; 0 = off")

    @field_validator("betas", mode="before")
    @classmethod
    def _betas(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class ScheduleSettings(Section):
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


class BoardSettings(Section):
    """What TensorBoard gets beside the curves."""

    text: bool = Field(False, description="a TEXT tab with the recipe")
    embeddings: int = Field(
        0,
        ge=0,
        le=5000,
        description="dev rows of each task whose embeddings the PROJECTOR tab shows, after the last "
        "evaluation; 0 = none",
    )


def _names_to_mapping(value: Any) -> Any:
    """`tasks: [cola, rte]`; a list that holds anything but names is left for the model to refuse."""
    is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return {name: {} for name in value} if is_names else value


def _none_to_empty(value: Any) -> Any:
    return (
        {name: {} if task is None else task for name, task in value.items()}
        if isinstance(value, dict)
        else value
    )


class DataSettings(Section):
    glue_dir: PathText | None = Field(
        None, description="folder in the official GLUE layout (CoLA/train.tsv, ...)"
    )
    snli_dir: PathText | None = Field(None, description="folder with SNLI's train.tsv, dev.tsv, test.tsv")
    scitail_dir: PathText | None = Field(None, description="SciTail's tsv_format folder")
    wnut_dir: PathText | None = Field(
        None, description="folder with WNUT-17's train.conll, dev.conll, test.conll"
    )
    squad_dir: PathText | None = Field(
        None, description="folder with SQuAD's train-v1.1.json, dev-v1.1.json, train-v2.0.json, dev-v2.0.json"
    )
    coqa_dir: PathText | None = Field(
        None, description="folder with CoQA's coqa-train-v1.0.json, coqa-dev-v1.0.json"
    )
    quac_dir: PathText | None = Field(None, description="folder with QuAC's train_v0.2.json, val_v0.2.json")
    cache_dir: PathText = ".cache/mtdnn_ds"
    on_bad_row: Literal["refuse", "skip"] = "refuse"


class Recipe(Section):
    """A complete run."""

    encoder: EncoderSettings
    tasks: Annotated[
        dict[str, TaskSettings],
        BeforeValidator(_none_to_empty),
        BeforeValidator(_names_to_mapping),
        Field(min_length=1),
    ]
    plugins: list[PathText] = Field(
        [], description="Python files with task kinds of your own, which are run: docs/own_kind.md"
    )
    heads: dict[str, PathText] | None = Field(
        None,
        description="task -> folder of a Hugging Face checkpoint (model.safetensors, config.json) whose "
        "head it begins with",
    )
    init: InitSettings = InitSettings()
    sharing: SharingSettings = SharingSettings()
    mixture: MixtureSettings = MixtureSettings()
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    loss: LossSettings = LossSettings()
    regularizer: RegularizerSettings = RegularizerSettings()
    distillation: DistillationSettings = DistillationSettings()
    train: TrainSettings
    board: BoardSettings = BoardSettings()
    data: DataSettings = DataSettings()
