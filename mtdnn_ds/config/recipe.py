"""The recipe: every setting of a run as typed, strict models. Not the DeepSpeed JSON (config/deepspeed.py), no file reading.

Keys that scripts rely on are listed in docs/recipes.md. Constructors elsewhere take plain values; this is the only
place where settings have defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class EncoderSettings(Section):
    """The shared encoder: any Hugging Face encoder."""

    path: str = Field(description="hub name, local folder, or package:NAME/SUBFOLDER of an installed Python package")
    tokenizer: str | None = Field(None, description="where the tokenizer comes from, written as path; default: path")
    sha256: str | None = Field(None, description="expected sha256 of the folder's model.safetensors; refused if it differs")
    max_length: int = Field(128, ge=8, description="tokens per sequence, special tokens included; longer pairs lose tokens longest-first")
    attention: Literal["auto", "grouped", "varlen", "flash", "padded"] = Field(
        "auto", description="attention back end; auto = flash on CUDA if installed, else grouped"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    random_init: bool = Field(False, description="take only config and tokenizer from path; weights drawn from train.seed")
    trust_remote_code: bool = Field(False, description="allow a hub repository to run its own Python code")
    fused_layer_norm: bool = Field(False, description="NVIDIA apex's FusedLayerNorm (CUDA only); refused if apex cannot provide it")


class TaskSettings(Section):
    """One task of the run. Built-in tasks need no key at all; user tasks need kind, files (or hub, dataset) and, for tables, columns."""

    kind: str | None = None
    files: dict[str, str] | None = Field(
        None, description="split name -> csv, tsv, jsonl, parquet or the kind's own file; splits: train, dev, dev_NAME, test"
    )
    dataset: str | None = Field(None, description="folder written by datasets' save_to_disk")
    hub: str | None = Field(None, description="hub dataset, NAME or NAME:CONFIG")
    splits: dict[str, str] | None = Field(
        None, description="for dataset/hub: our split name -> theirs, e.g. {train: train, dev: validation}"
    )
    text_columns: list[str] | None = Field(None, min_length=1, max_length=2)
    label_column: str | None = None
    labels: list[str] | None = Field(None, min_length=2, description="label names, in class-id order")
    metrics: list[str] | None = Field(None, min_length=1)
    dropout: Dropout | None = Field(None, description="dropout before this task's head; default: the encoder's hidden_dropout_prob")
    head: Literal["linear", "san"] | None = Field(
        None, description="classification of pairs: linear (default), or san, the stochastic answer network of MT-DNN"
    )
    objective: Literal["softmax", "pairwise", "cosine", "contrastive"] | None = Field(
        None, description="the loss, where a kind has several: ranking softmax (default) or pairwise; similarity cosine (default) or contrastive"
    )
    choice_columns: list[str] | None = Field(
        None, min_length=1, description="multiple_choice: the columns of the choices, or one column that holds a list of them"
    )
    group_column: str | None = Field(
        None, description="ranking: rows with the same value are candidates of one query; default: the first text column"
    )
    stride: int | None = Field(None, ge=0, description="span, conversational_span: tokens that neighbouring windows share; default 128")
    max_answer_tokens: int | None = Field(None, ge=1, description="span, conversational_span: longest answer; default 30")
    null_threshold: float | None = Field(
        None, description="span: no answer where its score exceeds the best span's by more than this; default 0"
    )
    history_turns: int | None = Field(None, ge=0, description="conversational_span: earlier turns before the question; default 2")
    masking: Literal["whole_word", "piece"] | None = Field(None, description="masked_lm: what is masked together; default whole_word")
    mask_rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="masked_lm: share of tokens predicted; default 0.15")
    next_sentence: bool | None = Field(None, description="masked_lm: also predict whether the second segment follows the first; default false")


class MixtureSettings(Section):
    """How often each task is drawn, and how tasks share a step."""

    rates: Literal["proportional", "temperature", "cap", "uniform", "annealed"] | dict[str, Positive] = "proportional"
    temperature: float = Field(2.0, ge=1, description="for rates=temperature: rate ~ size^(1/temperature)")
    cap: int = Field(2**17, ge=1, description="for rates=cap: rate ~ min(size, cap) (T5, Raffel et al. 2020, section 3.5.2)")
    anneal_to: Fraction = Field(
        0.2, description="for rates=annealed: rate ~ size^alpha, alpha falls linearly from 1 to this over the run (Stickland & Murray 2019)"
    )
    mixing: Literal["per_example", "per_micro_batch", "per_step", "sequential"] = "per_example"


class BatchSettings(Section):
    examples_per_step: int = Field(32, ge=1)
    max_tokens_per_micro_batch: int = Field(8192, ge=8)


class OptimizerSettings(Section):
    name: Literal["adamw", "torch_adamw", "adamax", "lamb", "apex_adam"] = "adamw"
    lr: Positive = 5e-5
    head_lr_factor: Positive = Field(1.0, description="learning rate of pooler and heads, as a multiple of lr")
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
    final_lr_ratio: Fraction = Field(0.0, description="learning rate at the end, as a fraction of optimizer.lr")
    power: Positive = Field(2.0, description="for polynomial")


class LossSettings(Section):
    scale: Literal["examples", "task_mean", "log_classes"] | dict[str, Positive] = "examples"


class TrainSettings(Section):
    steps: int | None = Field(None, ge=1)
    epochs: Positive | None = Field(None, description="passes over the sum of all tasks' training rows; alternative to steps")
    seed: int = Field(0, ge=0, lt=2**32)
    dropout: Literal["model", "none"] = "model"
    eval_every: int = Field(0, ge=0, description="steps between evaluations; 0 = only at the end")
    save_every: int = Field(0, ge=0, description="steps between checkpoints; 0 = only at the end")
    keep_last: int = Field(2, ge=1, description="checkpoints kept")

    @model_validator(mode="after")
    def _one_length(self) -> TrainSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self


def _names_to_mapping(value: Any) -> Any:
    return {name: {} for name in value} if isinstance(value, list) else value


def _none_to_empty(value: Any) -> Any:
    return {name: {} if task is None else task for name, task in value.items()} if isinstance(value, dict) else value


class DataSettings(Section):
    glue_dir: str | None = Field(None, description="folder in the official GLUE layout (CoLA/train.tsv, ...)")
    snli_dir: str | None = Field(None, description="folder with SNLI's train.tsv, dev.tsv, test.tsv")
    scitail_dir: str | None = Field(None, description="SciTail's tsv_format folder")
    cache_dir: str = ".cache/mtdnn_ds"
    on_bad_row: Literal["refuse", "skip"] = "refuse"


class Recipe(Section):
    """A complete run."""

    encoder: EncoderSettings
    tasks: Annotated[dict[str, TaskSettings], BeforeValidator(_none_to_empty), BeforeValidator(_names_to_mapping), Field(min_length=1)]
    mixture: MixtureSettings = MixtureSettings()
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    loss: LossSettings = LossSettings()
    train: TrainSettings
    data: DataSettings = DataSettings()
