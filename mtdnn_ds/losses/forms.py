"""Losses of a micro-batch, form by form (tasks/layout.py), and what evaluation keeps of outputs. No means.

Not the objective, which divides (losses/objective.py), and not predictions (data/examples/ decodes).

Shape legend: K supervised rows, U supervised units of a form (rows or examples), C columns of the head,
M terms, R columns that evaluation keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.candidates import choice_losses, pairwise_losses
from mtdnn_ds.losses.custom import custom_losses
from mtdnn_ds.losses.distillation import Distillation, distilled
from mtdnn_ds.losses.pairs import contrastive_losses, cosine_losses, pair_cosines
from mtdnn_ds.losses.rows import class_losses, masked_token_losses, san_losses, score_losses
from mtdnn_ds.losses.span import span_losses
from mtdnn_ds.losses.sums import LossSum, TermTable, sum_by_term, term_table
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.spec import TaskSpec

FormLoss = Callable[[Tensor, Targets, TermTable], Tensor]

FORM_LOSSES: Mapping[str, FormLoss] = {
    "class": class_losses,
    "score": score_losses,
    "choice": choice_losses,
    "pairwise": pairwise_losses,
    "tag": class_losses,
    "span": span_losses,
    "masked_token": masked_token_losses,
    "san": san_losses,
    "cosine": cosine_losses,
    "contrastive": contrastive_losses,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitLosses:
    """Losses of one form's supervised units."""

    losses: Tensor  # (U,) float32
    term_ids: Tensor  # (U,) int64


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """The loss functions of a run; made once, by `build_losses`."""

    table: TermTable
    functions: Mapping[str, FormLoss]
    per_example: Mapping[str, bool]  # form -> whether its units are examples

    def of_batch(
        self, outputs: Mapping[str, Tensor], targets: Mapping[str, Targets]
    ) -> dict[str, UnitLosses]:
        """Losses of every supervised unit, by form. `outputs[form]`: (K, C) of the form's rows."""
        result = {}
        for form, of_form in targets.items():
            losses = self.functions[form](outputs[form], of_form, self.table)
            term_ids = unit_terms(of_form, per_example=self.per_example[form])
            result[form] = UnitLosses(losses=losses, term_ids=term_ids)
        return result

    def sums(self, losses: Mapping[str, UnitLosses]) -> LossSum:
        """Sum and count of each term over all forms."""
        num_terms = self.table.num_terms
        parts = [sum_by_term(of_form.losses, of_form.term_ids, num_terms) for of_form in losses.values()]
        return LossSum(
            total=torch.stack([part.total for part in parts]).sum(0),
            count=torch.stack([part.count for part in parts]).sum(0),
        )


def build_losses(
    layout: HeadLayout,
    specs: tuple[TaskSpec, ...],
    device: torch.device | str,
    distillation: Distillation | None = None,
) -> Losses:
    """The losses of a run's terms on a device; with `distillation`, units with soft targets learn them."""
    functions = dict(FORM_LOSSES)
    for spec in specs:
        if spec.custom is not None:
            functions[spec.kind] = custom_losses(spec.custom, layout)

    if distillation is not None:
        functions = {form: distilled(form, function, distillation) for form, function in functions.items()}

    return Losses(
        table=term_table(layout, device, specs),
        functions={form: functions[form] for form in layout.forms},
        per_example={term.form: term.unit == "example" for term in layout.terms},
    )


def unit_terms(targets: Targets, *, per_example: bool = True) -> Tensor:
    """Term of each unit of a form, (U,): each row's own, or of an example (`per_example`) its first row's."""
    if not per_example:
        return targets.term_ids

    # Of an example's rows only the first adds its term: groups (0, 0, 1) of terms (4, 4, 1) sum to (4, 1).
    is_first_K = torch.ones_like(targets.groups, dtype=torch.bool)
    is_first_K[1:] = targets.groups[1:] != targets.groups[:-1]
    term_ids_G = targets.term_ids.new_zeros(len(targets.examples))
    return term_ids_G.index_add_(0, targets.groups, targets.term_ids * is_first_K)


def _best_token(outputs_KV: Tensor) -> Tensor:
    """The likeliest token of each masked position, (K, 1): all scores would fill the host's memory."""
    if not len(outputs_KV):
        return outputs_KV.new_zeros((0, 1))
    return outputs_KV.argmax(dim=1, keepdim=True)


def _cosines(embeddings_KD: Tensor) -> Tensor:
    """The cosine of each pair in both its rows, (K, 1): embeddings would fill the host's memory."""
    return pair_cosines(embeddings_KD).repeat_interleave(2)[:, None]


READOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "masked_token": _best_token,
    "cosine": _cosines,
    "contrastive": _cosines,
}
"""Forms whose outputs are reduced, each to (K, R), before they leave the device; others keep all columns."""


def read_out(form: str, outputs_KC: Tensor) -> Tensor:
    """(K, R): what evaluation keeps of the outputs of one micro-batch."""
    if form not in READOUTS:
        return outputs_KC
    with torch.no_grad():
        return READOUTS[form](outputs_KC)
