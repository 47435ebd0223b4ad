"""What the encoder makes of some development rows: the first token's hidden state, for TensorBoard's projector. Not prediction, writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mtdnn_ds import dist
from mtdnn_ds.data.batches.loader import LoaderSettings, evaluation_batches
from mtdnn_ds.data.examples import Examples
from mtdnn_ds.data.examples.sampled import SampledExamples
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.spec import TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class DevEmbeddings:
    """One row an example, those of a task next to each other."""

    vectors: np.ndarray  # (E, D) float32
    metadata: tuple[
        tuple[str, str, str], ...
    ]  # task, label ("-" where the kind has none a row), line or row of the source


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
    """The first `rows_per_task` examples of each task's first dev split, an example of several sequences by its first one.

    `forward` is the engine or the bare model, `encoder` the module in it whose output are hidden states (T, D).
    Collective: all ranks must call this; every rank gets the same result.
    """
    tasks = [index for index, spec in enumerate(specs) if spec.dev_splits]
    whole = [examples[specs[task].name][specs[task].dev_splits[0]] for task in tasks]
    sets: list[Examples] = [
        SampledExamples(each, np.arange(min(rows_per_task, each.num_examples))) for each in whole
    ]
    caught: list[torch.Tensor] = []
    hook = encoder.register_forward_hook(lambda module, inputs, output: caught.append(output))
    mine: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    was_training = forward.training
    forward.eval()
    try:
        with torch.no_grad():
            for batch in evaluation_batches(tasks, sets, layout, settings):
                caught.clear()
                forward(batch.to(device))
                examples_B, sequences_B = np.unique(
                    batch.sequence_examples, return_index=True
                )  # the first sequence of each
                real = examples_B >= 0  # not fillers
                first_B = batch.cu_seqlens[:-1][torch.from_numpy(sequences_B[real])].to(device).long()
                vectors_BD = caught[-1].index_select(0, first_B).float().cpu().numpy()
                mine.append(
                    (batch.example_tasks[examples_B[real]], batch.example_rows[examples_B[real]], vectors_BD)
                )
    finally:
        hook.remove()
        forward.train(was_training)
    gathered = [part for parts in dist.gather(mine) for part in parts]
    sets_E, rows_E = (np.concatenate([part[index] for part in gathered]) for index in (0, 1))
    order = np.lexsort((rows_E, sets_E))
    metadata = tuple(
        (
            specs[tasks[index]].name,
            _label(specs[tasks[index]], sets[index], row),
            str(sets[index].source_row(row)),
        )
        for index, row in zip(sets_E[order].tolist(), rows_E[order].tolist(), strict=True)
    )
    return DevEmbeddings(vectors=np.concatenate([part[2] for part in gathered])[order], metadata=metadata)


def _label(spec: TaskSpec, examples: Examples, row: int) -> str:
    if spec.kind not in ("classification", "regression", "similarity") or spec.custom is not None:
        return "-"
    label = float(examples.split.labels[row])
    return spec.labels[int(label)] if spec.labels else f"{label:g}"
