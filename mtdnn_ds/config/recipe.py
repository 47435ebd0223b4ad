"""The recipe: every setting of a run as typed, strict models. Not the DeepSpeed JSON (config/deepspeed.py),
no file reading.

Keys that scripts rely on are listed in docs/recipes.md. Constructors elsewhere take plain values; only here
and in training_sections.py do settings have defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from mtdnn_ds.config.choices import AttentionName
from mtdnn_ds.config.setting_types import Dropout, PathText, Section
from mtdnn_ds.config.training_sections import (
    BatchSettings,
    DistillationSettings,
    InitSettings,
    LossSettings,
    MixtureSettings,
    OptimizerSettings,
    RegularizerSettings,
    ScheduleSettings,
    SharingSettings,
    TrainSettings,
)


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
        "auto", description="attention back end; auto = varlen in half precision on CUDA, else grouped"
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="torch.compile of each layer; auto: on CUDA with an attention kernel, under ZeRO 0 to 2",
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
    standardize: bool | Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="regression: scores are learnt as (score - mean) / deviation of the training scores, or "
        "of the two numbers given, and answered as they are; default false",
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

    @field_validator("standardize")
    @classmethod
    def _has_deviation(cls, value: bool | list[float] | None) -> bool | list[float] | None:
        if isinstance(value, list) and value[1] <= 0:
            raise ValueError("the second number, the deviation, must be above 0")
        return value


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
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    return value


def _none_to_empty(value: Any) -> Any:
    """`tasks: {cola: , rte: {dropout: 0.2}}`."""
    if not isinstance(value, dict):
        return value
    return {name: {} if task is None else task for name, task in value.items()}


class DataSettings(Section):
    """Where official data files are, and where tokens are kept."""

    glue_dir: PathText | None = Field(
        None, description="folder in the official GLUE layout (CoLA/train.tsv, ...)"
    )
    snli_dir: PathText | None = Field(None, description="folder with SNLI's train.tsv, dev.tsv, test.tsv")
    scitail_dir: PathText | None = Field(None, description="SciTail's folder, or its tsv_format")
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
    drop_leaked_rows: bool = Field(
        False,
        description="leave out training rows whose texts are those of a row in a development or test split "
        "of any task of the run",
    )


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
