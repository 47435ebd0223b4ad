"""Losses of kinds of the user's own (tasks/spec.py), called for the rows of each task and checked.

Shape legend: K supervised rows, O most outputs of one term.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtdnn_ds.batch import Targets
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.losses.sums import TermTable, own_outputs
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.spec import CustomKind


def custom_losses(kind: CustomKind, layout: HeadLayout) -> Callable[[Tensor, Targets, TermTable], Tensor]:
    """The form loss of a kind, for each of its tasks by itself.

    When called it raises ConfigError if `kind.loss` does not give the loss of each row.
    """
    terms = [(index, term.num_outputs) for index, term in enumerate(layout.terms) if term.form == kind.name]

    def of_rows(outputs_KC: Tensor, targets: Targets, table: TermTable) -> Tensor:
        own_KO = own_outputs(outputs_KC, targets.term_ids, table)
        if not len(own_KO):
            return own_KO.sum(dim=1)  # no losses, but the head stays in the graph

        # How many rows each term has is known on the host, so that nothing waits for the device.
        counts = dict(enumerate(targets.term_counts.tolist()))
        sizes = [counts.get(term, 0) for term, _ in terms]
        rows_of_terms = torch.argsort(targets.term_ids, stable=True).split(sizes)

        losses_K = own_KO.new_zeros(len(own_KO))
        for (_, num_outputs), members in zip(terms, rows_of_terms, strict=True):
            if not members.numel():
                continue
            losses = kind.loss(own_KO[members, :num_outputs], targets.labels[members])
            losses_K = losses_K.index_copy(0, members, _checked(losses, members.numel(), kind.name))
        return losses_K

    return of_rows


def _checked(losses: object, num_rows: int, name: str) -> Tensor:
    """What a user's loss returned, as float32 (K,).

    Raises ConfigError where it is anything else than a number a row.
    """
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if shape != (num_rows,):
        raise ConfigError(
            f"kind {name}: its loss gave {shape} for {num_rows} rows, and must give ({num_rows},), "
            "the loss of each row: "
            "no mean and no sum, because the objective divides by the rows of the whole step"
        )
    assert isinstance(losses, Tensor)
    return losses.float()
