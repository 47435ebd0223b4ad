"""The loss of each form (tasks/layout.py), and all losses of a micro-batch. Sums, never means.

Shape legend: K supervised rows, U supervised units of a form (rows or examples), C columns of the head, M terms.
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
from mtdnn_ds.losses.pairs import contrastive_losses, cosine_losses
from mtdnn_ds.losses.rows import class_losses, masked_token_losses, score_losses
from mtdnn_ds.losses.san import san_losses
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
            result[form] = UnitLosses(
                losses=losses, term_ids=unit_terms(of_form) if self.per_example[form] else of_form.term_ids
            )
        return result

    def sums(self, losses: Mapping[str, UnitLosses]) -> LossSum:
        """Sum and count of each term over all forms."""
        parts = [
            sum_by_term(of_form.losses, of_form.term_ids, self.table.num_terms) for of_form in losses.values()
        ]
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
    """The losses of a run's terms on a device; with `distillation`, rows with soft targets learn those too."""
    functions = {
        **FORM_LOSSES,
        **{spec.kind: custom_losses(spec.custom, layout) for spec in specs if spec.custom is not None},
    }
    if distillation is not None:
        functions = {form: distilled(form, function, distillation) for form, function in functions.items()}
    return Losses(
        table=term_table(layout, device),
        functions={form: functions[form] for form in layout.forms},
        per_example={term.form: term.unit == "example" for term in layout.terms},
    )


def unit_terms(targets: Targets) -> Tensor:
    """Term of each example of a form, (G,): that of its first row."""
    is_first_K = torch.ones_like(targets.groups, dtype=torch.bool)
    is_first_K[1:] = targets.groups[1:] != targets.groups[:-1]
    return targets.term_ids.new_zeros(len(targets.examples)).index_add_(
        0, targets.groups, targets.term_ids * is_first_K
    )
