"""Hidden states of some development rows, for TensorBoard's projector. Not prediction, writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mtdnn_ds import dist
from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.data.batches.loader import LoaderSettings, evaluation_batches
from mtdnn_ds.data.examples import Examples
from mtdnn_ds.data.examples.sampled import SampledExamples
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.spec import TaskSpec

# Numbers of the sets and of the examples in them (B,), and vectors (B, D).
_Part = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class DevEmbeddings:
    """One row an example, those of a task next to each other."""

    vectors: np.ndarray  # (E, D) float32
    # Of each: task, label ("-" where the kind has none a row), line or row of the source.
    metadata: tuple[tuple[str, str, str], ...]


def dev_embeddings(
    forward: Any,
    encoder: nn.Module,
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    examples: Mapping[str, Mapping[str, Examples]],
    settings: LoaderSettings,
    device: torch.device,
    *,
    rows_per_task: int,
) -> DevEmbeddings:
    """The first `rows_per_task` examples of each task's first dev split, an example of several sequences by
    its first one.

    `forward` is the engine or the bare model, `encoder` the module in it whose output are hidden states (T,
    D). Collective: all ranks must call this; every rank gets the same result.
    """
    tasks = [index for index, spec in enumerate(specs) if spec.dev_splits]
    whole = [examples[specs[task].name][specs[task].dev_splits[0]] for task in tasks]
    sets: list[Examples] = [
        SampledExamples(each, np.arange(min(rows_per_task, each.num_examples))) for each in whole
    ]

    # The hidden states never leave the model: a hook on the encoder catches them.
    caught: list[torch.Tensor] = []
    hook = encoder.register_forward_hook(lambda module, inputs, output: caught.append(output))
    mine: list[_Part] = []
    was_training = forward.training
    forward.eval()
    try:
        with torch.no_grad(), closing(evaluation_batches(tasks, sets, layout, settings)) as batches:
            for batch in batches:
                caught.clear()
                forward(batch.to(device))
                mine.append(_first_tokens(batch, caught[-1]))
    finally:
        hook.remove()
        forward.train(was_training)

    gathered = [part for parts in dist.gather(mine) for part in parts]
    sets_E, rows_E, vectors_ED = (np.concatenate(column) for column in zip(*gathered, strict=True))
    order = np.lexsort((rows_E, sets_E))

    metadata: list[tuple[str, str, str]] = []
    for index, row in zip(sets_E[order].tolist(), rows_E[order].tolist(), strict=True):
        spec = specs[tasks[index]]
        metadata.append((spec.name, _label(spec, sets[index], row), str(sets[index].source_row(row))))
    return DevEmbeddings(vectors=vectors_ED[order], metadata=tuple(metadata))


def _first_tokens(batch: PackedBatch, hidden_TD: torch.Tensor) -> _Part:
    """The hidden state of each example's first token."""
    examples_B, sequences_B = np.unique(
        batch.sequence_examples, return_index=True
    )  # the first sequence of each
    is_real = examples_B >= 0  # not a filler
    examples_B, sequences_B = examples_B[is_real], sequences_B[is_real]

    first_B = batch.cu_seqlens[:-1][torch.from_numpy(sequences_B)].to(hidden_TD.device).long()
    vectors_BD = hidden_TD.index_select(0, first_B).float().cpu().numpy()
    return batch.example_tasks[examples_B], batch.example_rows[examples_B], vectors_BD


def _label(spec: TaskSpec, examples: Examples, row: int) -> str:
    if spec.kind not in ("classification", "regression", "similarity") or spec.custom is not None:
        return "-"

    label = float(examples.split.labels[row])
    if spec.labels:
        return spec.labels[int(label)]
    return f"{label:g}"
