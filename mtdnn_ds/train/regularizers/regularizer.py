"""Regularisers: passes of a micro-batch, what is added to its loss, with which noise. Not the engine.

    smart    L(x) + factor D(x, x + d) + proximal_factor D(x, averaged model)
             d maximises D(x, x + d); Jiang et al. 2020, arXiv:1911.03437
    freelb   mean over k of L(x + d_k)
             d_{k+1} ascends L; Zhu et al. 2020, arXiv:1909.11764
    r_drop   mean of L(x) and L'(x) + factor D(x, x) / 2
             L and L' with dropout of their own; Liang et al. 2021, arXiv:2106.14448, equation 4 with the mean
             of both losses

D is losses/divergence.py's, summed over a term's units like its losses, so it gets the same denominator and
the step's objective still does not depend on how its examples were cut up. All passes run within the engine's
forward, where ZeRO 3 gathers parameters; the ascent asks for the gradient of the noise alone, so no
parameter's gradient is touched.

Shape legend: T packed tokens, E word embeddings, N tasks, M terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtdnn_ds.batch import PackedBatch, Targets
from mtdnn_ds.config.crosscheck import USUAL_NORMS
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import RegularizerSettings
from mtdnn_ds.losses.divergence import divergence_sums
from mtdnn_ds.losses.forms import Losses, UnitLosses
from mtdnn_ds.losses.sums import TermTable, term_table
from mtdnn_ds.model.encoder import PackedEncoder
from mtdnn_ds.model.multitask import MultiTaskNet, Outputs
from mtdnn_ds.runs.device import without_waiting
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.regularized import COMPARABLE_FORMS, regularized_tasks
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.regularizers.averaged_model import AveragedModel
from mtdnn_ds.train.regularizers.noise import Ball, ascend, draw_noise, noisy_tokens

Computed = tuple[list[Outputs], Tensor | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One forward and backward pass of a micro-batch.

    `within` runs in the engine's forward and returns outputs, whose losses are averaged, and what is added to
    the loss sums, (M,).
    """

    within: Callable[[MultiTaskNet, PackedBatch], Computed]
    share: float  # of the micro-batch's losses; the shares of its passes add up to 1


PLAIN = Pass(within=lambda model, batch: ([model.outputs(batch)], None), share=1.0)
"""The only pass of a run without a regulariser."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Regularizer:
    """One regulariser of a run, made by `build_regularizer`."""

    name: Literal["smart", "freelb", "r_drop"]
    is_on_N: np.ndarray  # (N,) bool: the tasks it applies to
    is_on_M: Tensor  # (M,) float32 on the device: 1 for their terms, 0 for others
    forms: tuple[str, ...]  # of their terms, as far as they can be compared
    table: TermTable
    factor: float
    num_ascents: int  # smart, freelb
    ball: Ball | None  # smart, freelb
    noise_std: float | None  # smart
    proximal_factor: float  # smart
    averaged: AveragedModel | None  # smart with a proximal_factor
    seed: int

    @property
    def adds_term(self) -> bool:
        """Whether the objective has a term beside the losses."""
        return self.name != "freelb"

    @property
    def num_passes(self) -> int:
        """Passes of each micro-batch."""
        if self.name == "freelb":
            return self.num_ascents
        return 1

    def passes(self, host_batch: PackedBatch, batch: PackedBatch, step: int) -> Iterator[Pass]:
        """The passes of a micro-batch in `step`; each has gone backward before the next is asked for."""
        passes = {"smart": self._smart, "freelb": self._freelb, "r_drop": self._r_drop}[self.name]
        return passes(host_batch, batch, step)

    def _smart(self, host_batch: PackedBatch, batch: PackedBatch, step: int) -> Iterator[Pass]:
        averaged = None
        if self.averaged is not None:
            averaged = self.averaged.outputs(batch)
        lengths_S = batch.cu_seqlens.diff().long()

        def within(model: MultiTaskNet, batch: PackedBatch) -> Computed:
            assert self.ball is not None
            clean = model.outputs(batch)
            fixed = {form: outputs.detach() for form, outputs in clean.items()}

            # Noise that changes the outputs most: ascent along the gradient of the divergence.
            noise_TE = self._noise(model, host_batch, batch, step)
            for ascent in range(1, self.num_ascents + 1):
                noise_TE.requires_grad_()
                noisy = model.outputs(batch, noise_TE, number=ascent)
                divergence = self._divergence(noisy, fixed, batch).sum()
                (gradient_TE,) = torch.autograd.grad(divergence, noise_TE)
                noise_TE = ascend(noise_TE.detach(), gradient_TE, lengths_S, self.ball)

            noisy = model.outputs(batch, noise_TE, number=self.num_ascents + 1)
            added_M = self.factor * self._divergence(noisy, clean, batch)
            if averaged is not None:
                added_M = added_M + self.proximal_factor * self._divergence(clean, averaged, batch)
            return [clean], added_M

        yield Pass(within=within, share=1.0)

    def _freelb(self, host_batch: PackedBatch, batch: PackedBatch, step: int) -> Iterator[Pass]:
        assert self.ball is not None
        noise: list[Tensor] = []
        dropout: list[Tensor] = []
        lengths_S = batch.cu_seqlens.diff().long()
        is_noisy_T1 = without_waiting(noisy_tokens(host_batch, self.is_on_N), batch.input_ids.device)

        def within(model: MultiTaskNet, batch: PackedBatch) -> Computed:
            if noise:
                # the same dropout in all passes (their section 3.3)
                _set_generator_state(batch.input_ids.device, dropout[0])
            else:
                noise.append(self._noise(model, host_batch, batch, step))
                dropout.append(_generator_state(batch.input_ids.device))
            return [model.outputs(batch, noise[0].requires_grad_())], None

        for _ in range(self.num_ascents):
            yield Pass(within=within, share=1 / self.num_ascents)
            # The pass's own backward has left the noise's gradient, each sequence's times a factor that its
            # norm removes again.
            gradient_TE = noise[0].grad
            assert gradient_TE is not None
            noise[0] = ascend(noise[0].detach(), gradient_TE * is_noisy_T1, lengths_S, self.ball)

    def _r_drop(self, host_batch: PackedBatch, batch: PackedBatch, step: int) -> Iterator[Pass]:
        def within(model: MultiTaskNet, batch: PackedBatch) -> Computed:
            first, second = model.outputs(batch), model.outputs(batch, number=1)
            return [first, second], self.factor / 2 * self._divergence(first, second, batch)

        yield Pass(within=within, share=1.0)

    def _noise(self, model: MultiTaskNet, host_batch: PackedBatch, batch: PackedBatch, step: int) -> Tensor:
        assert self.ball is not None
        return draw_noise(
            host_batch,
            batch,
            width=model.encoder.embedding_size,
            is_noisy_N=self.is_on_N,
            std=self.noise_std,
            ball=self.ball,
            seed=self.seed,
            step=step,
        )

    def _divergence(self, ours: Outputs, theirs: Outputs, batch: PackedBatch) -> Tensor:
        return divergence_sums(ours, theirs, batch.targets, self.table, self.forms) * self.is_on_M


def build_regularizer(
    settings: RegularizerSettings,
    model: MultiTaskNet,
    *,
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    seed: int,
    compute_dtype: torch.dtype,
    device: torch.device,
) -> tuple[Regularizer | None, tuple[str, ...]]:
    """The run's regulariser, and what has to be said of it. `model` is not yet in an engine.

    Raises ConfigError if the regulariser has no effect on the model.
    """
    if settings.name == "none":
        return None, ()

    names, notes = regularized_tasks(settings.name, settings.tasks, specs)
    is_on_N = np.array([spec.name in names for spec in specs])
    is_on_M = is_on_N[list(layout.task_of_term)]
    forms_on = {term.form for term, is_on in zip(layout.terms, is_on_M, strict=True) if is_on}
    if settings.name == "r_drop":
        _check_dropout(model)
    else:
        _check_inputs(model, settings.name)

    averaged = None
    if settings.proximal_factor > 0:
        averaged = AveragedModel(
            model, momentum=settings.proximal_momentum, compute_dtype=compute_dtype, device=device
        )
        notes += (
            "the proximal term keeps an averaged model, whole and in float32 on every rank: "
            f"{averaged.num_bytes / 1e9:.2f} GB",
        )

    noise_std = None
    if settings.name == "smart":
        noise_std = settings.noise_std
    regularizer = Regularizer(
        name=settings.name,
        is_on_N=is_on_N,
        is_on_M=torch.tensor(is_on_M, dtype=torch.float32, device=device),
        forms=tuple(form for form in layout.forms if form in COMPARABLE_FORMS and form in forms_on),
        table=term_table(layout, device, specs),
        factor=settings.factor,
        num_ascents=settings.ascent_steps or {"smart": 1, "freelb": 3, "r_drop": 0}[settings.name],
        ball=_ball(settings),
        noise_std=noise_std,
        proximal_factor=settings.proximal_factor,
        averaged=averaged,
        seed=seed,
    )
    return regularizer, notes


def _ball(settings: RegularizerSettings) -> Ball | None:
    if settings.name not in USUAL_NORMS:
        return None

    norm, per = USUAL_NORMS[settings.name]
    # Chosen so that the term is a good part of a trained classifier's loss: docs/regularizers.md has figures.
    radius, step_size = {"smart": (0.005, 0.005), "freelb": (0.2, 0.05)}[settings.name]
    return Ball(
        norm=settings.norm or norm,
        per=settings.norm_per or per,
        radius=settings.radius or radius,
        step_size=settings.step_size or step_size,
    )


def _check_dropout(model: MultiTaskNet) -> None:
    for module in model.modules():
        if getattr(module, "p", 0) > 0 or getattr(module, "has_dropout", False):
            return
    raise ConfigError(
        "regularizer.name=r_drop: neither encoder nor heads have dropout, "
        "so both passes are equal and it has no effect; "
        "set tasks.NAME.dropout, or another regularizer.name"
    )


def _check_inputs(model: MultiTaskNet, name: str) -> None:
    for module in model.modules():
        if not isinstance(module, PackedEncoder):
            continue
        if "inputs_embeds" not in signature(module.model.forward).parameters:
            raise ConfigError(
                f"regularizer.name={name}: {type(module.model).__name__} takes no word embeddings "
                "(inputs_embeds), to which noise could be added; "
                "set regularizer.name to r_drop or none"
            )


def mean_losses(
    losses: Losses, outputs: Sequence[Outputs], targets: Mapping[str, Targets]
) -> dict[str, UnitLosses]:
    """Each unit's loss, averaged over several outputs for the same micro-batch."""
    first, *others = (losses.of_batch(each, targets) for each in outputs)
    if not others:
        return first

    means = {}
    for form, of_form in first.items():
        of_all = [of_form.losses, *(other[form].losses for other in others)]
        means[form] = replace(of_form, losses=torch.stack(of_all).mean(0))
    return means


def _generator_state(device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def _set_generator_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
