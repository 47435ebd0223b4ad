"""The same examples in one micro-batch and in many, and what forward and backward make of each cut.

Compares; does not say what is wrong.

Shape legend: B examples, M terms of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.batches.loader import LoaderSettings, example_lengths, pack_examples
from mtdnn_ds.data.examples import Examples
from mtdnn_ds.losses.forms import Losses
from mtdnn_ds.losses.objective import micro_batch_loss, task_scales, term_coefficients
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.tasks.layout import HeadLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class CutResult:
    """What all micro-batches of a cut give together."""

    num_micro_batches: int
    totals: np.ndarray  # (M,) float64, loss sum of each term
    units: np.ndarray  # (M,) float64
    gradients: dict[str, Tensor]  # of the objective
    without_gradient: tuple[str, ...]  # parameters that had none in some micro-batch


def cut_batches(
    sets: Sequence[Examples], layout: HeadLayout, settings: LoaderSettings
) -> list[tuple[PackedBatch, ...]]:
    """All examples of `sets`, one of each task: in one micro-batch; on three ranks in the smallest ones; and
    tasks kept apart on two ranks.

    Ranks of a cut are laid end to end. The last batch of the last cut has no example at all.
    """
    task_ids_B = np.repeat(np.arange(len(sets), dtype=np.int32), [examples.num_examples for examples in sets])
    rows_B = np.concatenate([np.arange(examples.num_examples, dtype=np.int64) for examples in sets])
    lengths_B = example_lengths(task_ids_B, rows_B, [examples.lengths for examples in sets])

    def batch(members: np.ndarray) -> PackedBatch:
        return collate(
            task_ids_B[members],
            rows_B[members],
            np.zeros(len(members), dtype=np.int64),
            ExampleSets(examples=sets, tasks=range(len(sets)), layout=layout, filler_ids=settings.filler_ids),
        )

    longest, total = int(lengths_B.max()), int(lengths_B.sum())
    cuts = (
        {"world_size": 1, "max_tokens_per_micro_batch": total},
        {"world_size": 3, "max_tokens_per_micro_batch": longest},
        {"world_size": 2, "max_tokens_per_micro_batch": 2 * longest, "one_task_per_micro_batch": True},
    )
    batches = []
    for changes in cuts:
        packing = pack_examples(lengths_B, task_ids_B, replace(settings, **changes))  # type: ignore[arg-type]
        batches.append(tuple(batch(members) for rank in packing.micro_batches for members in rank))

    without_examples = batch(np.zeros(0, dtype=np.int64))
    return [*batches[:-1], (*batches[-1], without_examples)]


def run_cut(
    model: MultiTaskNet, losses: Losses, batches: Sequence[PackedBatch], num_examples: Sequence[int]
) -> CutResult:
    """Forward and backward of every micro-batch, as a training step does them.

    `num_examples`: of each task.
    """
    layout = model.layout
    units_M = np.sum([batch.unit_counts for batch in batches], axis=0)
    scales = task_scales(
        np.array(num_examples),
        "examples",
        log_spaces=[0.0] * len(num_examples),
        explicit=[1.0] * len(num_examples),
    )
    coefficients_M = torch.tensor(
        term_coefficients(scales, units_M, layout.task_of_term), dtype=torch.float32
    )

    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {
        name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in trained.items()
    }
    totals_M = np.zeros(len(layout.terms))
    missing: dict[str, None] = {}  # in the order of the parameters
    for batch in batches:
        model.zero_grad(set_to_none=True)
        sums = losses.sums(losses.of_batch(model(batch), batch.targets))
        micro_batch_loss(sums, coefficients_M).backward()
        totals_M += sums.total.detach().double().numpy()

        for name, parameter in trained.items():
            if parameter.grad is None:
                missing[name] = None
            else:
                gradients[name] += parameter.grad

    model.zero_grad(set_to_none=True)
    return CutResult(
        num_micro_batches=len(batches),
        totals=totals_M,
        units=units_M,
        gradients=gradients,
        without_gradient=tuple(missing),
    )
