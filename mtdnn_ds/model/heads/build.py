"""The heads of a run, built from its tasks and the width of its encoder. Not what the heads compute.

Shape legend: M terms of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.copies import CopiedEncoder
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.heads.custom import build_custom_heads
from mtdnn_ds.model.heads.linear_bank import LinearBank
from mtdnn_ds.model.heads.masked_lm import MaskedLMHead
from mtdnn_ds.model.heads.pooler import MeanPooler
from mtdnn_ds.model.heads.san import PREDICTION_DROPOUT, SanBank
from mtdnn_ds.tasks.layout import BANKS, HeadLayout
from mtdnn_ds.tasks.sharing import Sharing
from mtdnn_ds.tasks.spec import ScoreScale, TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSettings:
    """What all heads of a run are built from, beside their terms."""

    hidden_size: int
    initializer_range: float  # standard deviation of new weights
    dropout: DropoutMode
    dropout_M: tuple[float, ...]  # probability before the head
    seed: int


def head_settings(
    specs: Sequence[TaskSpec], layout: HeadLayout, encoder: PackedEncoder, *, dropout: DropoutMode, seed: int
) -> HeadSettings:
    """A task's dropout of None means the encoder's own hidden dropout; `dropout` "none" overrides all."""
    of_tasks = [encoder.hidden_dropout if spec.dropout is None else spec.dropout for spec in specs]
    if dropout == "none":
        of_tasks = [0.0] * len(specs)

    return HeadSettings(
        hidden_size=encoder.hidden_size,
        initializer_range=getattr(encoder.config, "initializer_range", 0.02),
        dropout=dropout,
        dropout_M=tuple(of_tasks[term.task] for term in layout.terms),
        seed=seed,
    )


def build_head(
    name: str,
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    settings: HeadSettings,
    first_score: Mapping[str, float],
) -> nn.Module:
    """The head of that name in `layout`, with new weights; any but masked_lm (build_masked_lm_head).

    `first_score`: task -> what its regression answers before it is trained. Raises ConfigError for a user's
    head that is none.
    """
    if name in BANKS:
        return LinearBank(
            hidden_size=settings.hidden_size,
            num_columns=layout.num_columns(name),
            dropout_M=settings.dropout_M,
            initializer_range=settings.initializer_range,
            seed=settings.seed,
            purpose=f"{name}_head",
            first_bias=_first_bias(name, specs, layout, first_score),
            score_scales=_score_scales(name, specs, layout),
        )
    if name == "embedding":
        return MeanPooler()

    columns = {index: term.columns for index, term in enumerate(layout.terms) if term.head == name}
    if name == "san":
        return SanBank(
            hidden_size=settings.hidden_size,
            columns=columns,
            num_terms_of_run=len(layout.terms),
            dropout_M=settings.dropout_M,
            prediction_dropout=0.0 if settings.dropout == "none" else PREDICTION_DROPOUT,
            initializer_range=settings.initializer_range,
            seed=settings.seed,
        )

    owners = [specs[layout.terms[term].task] for term in columns]
    custom = owners[0].custom
    assert custom is not None and custom.head is not None
    return build_custom_heads(
        custom.head,
        kind=custom.name,
        tasks=[spec.name for spec in owners],
        hidden_size=settings.hidden_size,
        columns=columns,
        dropout_M=settings.dropout_M,
        dropout=settings.dropout,
        seed=settings.seed,
    )


def _first_bias(
    name: str, specs: Sequence[TaskSpec], layout: HeadLayout, first_score: Mapping[str, float]
) -> dict[int, float]:
    """Column of each score -> the bias by which it answers `first_score`."""
    first_bias = {}
    for term in layout.terms:
        spec = specs[term.task]
        if term.head == name and term.form == "score" and spec.name in first_score:
            mean, deviation = spec.score_scale or (0.0, 1.0)
            first_bias[term.first_column] = (first_score[spec.name] - mean) / deviation
    return first_bias


def _score_scales(name: str, specs: Sequence[TaskSpec], layout: HeadLayout) -> dict[int, ScoreScale]:
    """Columns of the head whose scores are learnt in standard units."""
    scales = {term.first_column: specs[term.task].score_scale for term in layout.terms if term.head == name}
    return {column: scale for column, scale in scales.items() if scale is not None}


def reads_pooled(layout: HeadLayout, head: str) -> bool:
    """Whether a head reads what the encoder's pooler makes of a sequence."""
    if head in ("san", "embedding"):  # of a sequence they read all hidden states
        return False
    return any(term.head == head and term.reads == "sequence" for term in layout.terms)


def tie_to_copy(head: nn.Module, encoder: CopiedEncoder, sharing: Sharing, layout: HeadLayout) -> None:
    """Ties the decoder to the word embeddings of the copy that the masked tokens run through (soft sharing).

    Raises ConfigError where they run through several.
    """
    tasks = [term.task for term in layout.terms if term.head == "masked_lm"]
    copies = {sharing.copy_of(task) for task in tasks}
    if len(copies) > 1:
        names = ", ".join(layout.task_names[task] for task in tasks)
        raise ConfigError(
            f"sharing.groups: the masked_lm tasks {names} share a decoder tied to one copy's word "
            "embeddings; put them into one group"
        )

    embedding = encoder.encoders[copies.pop()].model.get_input_embeddings()
    assert isinstance(head, MaskedLMHead) and isinstance(embedding, nn.Embedding)
    head.tie(embedding)
