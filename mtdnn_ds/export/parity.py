"""The comparison of an exported folder, loaded by plain transformers, with our packed model. Writes nothing.

Shape legend: S sequences, L longest, T tokens, K rows that a head reads, C outputs, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.export.samples import Sample
from mtdnn_ds.model.hf_model import quiet_transformers
from mtdnn_ds.tasks.spec import TaskSpec

MOST = 1e-4
"""Largest difference of two logits in float32 that an export may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far an exported folder's outputs are from ours."""

    difference: float  # the largest of all outputs
    rows: int  # sequences
    source: str  # where the rows come from


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderReport:
    """One folder that an export has written, still aside."""

    name: str  # inside the output folder: encoder, multitask, tasks/NAME, onnx, ...
    loads_with: str  # the class that loads it
    parity: Parity | None  # None: nothing of the run to compare with, `note` says why
    note: str = ""


def load_plain(folder: Path, auto: str) -> Any:
    """The folder as plain transformers loads it, in evaluation mode.

    Raises CheckpointError if weights do not fit.
    """
    with quiet_transformers():
        model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)

    wrong = [f"{name} is missing" for name in report["missing_keys"]]
    wrong += [f"{name} is left over" for name in report["unexpected_keys"]]
    if wrong:
        raise CheckpointError(
            [f"export: {type(model).__name__} in {folder.name}: {line}" for line in wrong[:8]]
        )
    return model.eval()


def padded(folder: Path, sequences: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    """The sequences as one padded batch (S, L), padded by the folder's own tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = {"input_ids": [ids.tolist() for ids, _ in sequences]}
    if "token_type_ids" in tokenizer.model_input_names:
        encoded["token_type_ids"] = [types.tolist() for _, types in sequences]
    return dict(tokenizer.pad(encoded, padding=True, return_tensors="pt"))


def plain_outputs(model: Any, folder: Path, spec: TaskSpec, sample: Sample) -> np.ndarray:
    """(K, C): the plain model's answers for the rows of the task's first term, in the order of the sample."""
    inputs = padded(folder, sample.sequences())
    rows = sample.gathered.targets[0].rows
    with torch.no_grad():
        if spec.kind == "multiple_choice":
            return _choice_scores(model, inputs, np.bincount(sample.gathered.examples))[rows]
        output = model(**inputs)

    if spec.kind == "span":
        logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
    else:
        logits = output.logits
    if spec.kind in ("span", "token_classification", "masked_lm"):
        logits = logits[inputs["attention_mask"].bool()]  # tokens of all sequences end to end
    return np.asarray(logits.numpy()[rows])


def _choice_scores(model: Any, inputs: dict[str, torch.Tensor], counts: np.ndarray) -> np.ndarray:
    """(S, 1): scores of the choices, of which each example has `counts`.

    A plain model takes them as (1, choices, L).
    """
    scores = []
    parts = {name: tensor.split(counts.tolist()) for name, tensor in inputs.items()}
    for number in range(len(counts)):
        own = {name: of_examples[number][None] for name, of_examples in parts.items()}
        scores.append(model(**own).logits[0].numpy()[:, None])
    return np.concatenate(scores)


def compared(ours: np.ndarray, theirs: np.ndarray, sample: Sample, what: str) -> Parity:
    """Raises CheckpointError if they are further apart than MOST, or not numbers."""
    difference = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
    if difference <= MOST:
        return Parity(difference=difference, rows=sample.num_sequences, source=sample.source)

    worst = np.nanargmax(np.abs(ours - theirs)) if np.isfinite(difference) else 0
    index = np.unravel_index(worst, ours.shape)
    raise CheckpointError(
        f"export of {what}: its outputs differ from the run's by {difference:.2e} on "
        f"{sample.num_sequences} sample rows, and at most {MOST:.0e} is let through: "
        f"{ours[index]:.6f} here, {theirs[index]:.6f} there; nothing was exported"
    )


def together(parities: Sequence[Parity], samples: Sequence[Sample]) -> Parity:
    """The parity of several outputs, for `samples` of which each was compared once or several times."""
    return Parity(
        difference=float(np.max([each.difference for each in parities])),
        rows=sum(sample.num_sequences for sample in samples),
        source=", ".join(dict.fromkeys(each.source for each in parities)),
    )
