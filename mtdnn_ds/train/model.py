"""The model that a run trains: first weights, and what its steps add to losses. No engine, no checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mtdnn_ds.config.choices import LOSS_SCALES
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.losses.adaptive import AdaptiveScales, adaptive_scales
from mtdnn_ds.model.compiled_layers import compile_if_asked
from mtdnn_ds.model.freeze import freeze
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.runs.setup import RunData, run_model
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.init.from_hf_heads import begin_with_heads
from mtdnn_ds.train.init.from_run import InitSource, begin_with
from mtdnn_ds.train.regularizers.averaged_model import AveragedModel
from mtdnn_ds.train.regularizers.regularizer import Regularizer, build_regularizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """Encoder and heads, and what is kept beside them."""

    net: MultiTaskNet
    regularizer: Regularizer | None
    scales: AdaptiveScales | None  # of the losses; None where they do not adapt

    @property
    def averaged(self) -> AveragedModel | None:
        """The averaged model of the regulariser, if it keeps one."""
        if self.regularizer is None:
            return None
        return self.regularizer.averaged


def build_trained_model(
    recipe: Recipe,
    specs: Sequence[TaskSpec],
    data: RunData,
    source: InitSource | None,
    *,
    resumes: bool,
    device: torch.device,
    compute_dtype: torch.dtype,
    zero_stage: int,
) -> TrainedModel:
    """The recipe's model on the CPU, beginning with the weights of `source` and the recipe's `heads`.

    `resumes`: a checkpoint will bring all weights, so none are looked for. Raises ConfigError and
    CheckpointError.
    """
    net = run_model(recipe, data, device=device, compute_dtype=compute_dtype)
    notes = [*net.notes, *freeze(net, recipe.train.freeze)]
    if source is not None:
        notes.append(begin_with(net, specs, source))
    for note in notes:
        log.info(note)

    if not resumes:
        for note in begin_with_heads(net, specs, recipe):
            log.info(note)

    regularizer, notes_of_regularizer = build_regularizer(
        recipe.regularizer,
        net,
        specs=data.specs,
        layout=data.layout,
        seed=recipe.train.seed,
        compute_dtype=compute_dtype,
        device=device,
    )
    for note in notes_of_regularizer:
        log.info(note)

    notes_of_compilation = compile_if_asked(
        net,
        recipe.encoder.compile,
        device_type=device.type,
        zero_stage=zero_stage,
        gradient_checkpointing=recipe.encoder.gradient_checkpointing,
        dropout=recipe.train.dropout,
        sharing=recipe.sharing.mode,
    )
    for note in notes_of_compilation:
        log.info(note)

    return TrainedModel(net=net, regularizer=regularizer, scales=_adaptive_scales(recipe, data))


def _adaptive_scales(recipe: Recipe, data: RunData) -> AdaptiveScales | None:
    name = recipe.loss.scale
    if isinstance(name, dict) or not LOSS_SCALES[name].is_adaptive:
        return None

    forms = [data.layout.terms[data.layout.terms_of(task)[0]].form for task in range(len(data.specs))]
    return adaptive_scales(
        name,
        is_regression=[form in ("score", "cosine") for form in forms],
        seed=recipe.train.seed,
        lr=recipe.loss.scale_lr,
        window=recipe.loss.scale_window,
        temperature=recipe.loss.scale_temperature,
    )
