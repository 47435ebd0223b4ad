"""The comparison of an exported folder, loaded from disk by plain transformers, with our packed model on sample rows. Writes nothing.

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


def load_plain(folder: Path, auto: str) -> Any:
    """The folder as plain transformers loads it, in evaluation mode. Raises CheckpointError if a weight is missing or left over."""
    with quiet_transformers():
        model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    wrong = [f"{name} is missing" for name in report["missing_keys"]] + [
        f"{name} is left over" for name in report["unexpected_keys"]
    ]
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
    """(K, C): what the plain model answers for the rows of the task's first term, in the order of the sample."""
    inputs = padded(folder, sample.sequences())
    rows = sample.gathered.targets[0].rows
    with torch.no_grad():
        if spec.kind == "multiple_choice":
            counts = np.bincount(sample.gathered.examples)
            parts = [{name: part[None] for name, part in zip(inputs, own, strict=True)} for own in zip(*(tensor.split(counts.tolist()) for tensor in inputs.values()), strict=True)]  # fmt: skip
            return np.concatenate([model(**part).logits[0].numpy()[:, None] for part in parts])[rows]
        output = model(**inputs)
        logits = (
            torch.stack([output.start_logits, output.end_logits], dim=-1)
            if spec.kind == "span"
            else output.logits
        )
    if spec.kind in ("span", "token_classification", "masked_lm"):
        return logits[inputs["attention_mask"].bool()].numpy()[rows]  # tokens of all sequences end to end
    return logits.numpy()[rows]


def compared(ours: np.ndarray, theirs: np.ndarray, sample: Sample, what: str) -> Parity:
    """Raises CheckpointError if they are further apart than MOST, or not numbers."""
    difference = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())
    if not difference <= MOST:
        index = np.unravel_index(
            np.nanargmax(np.abs(ours - theirs)) if np.isfinite(difference) else 0, ours.shape
        )
        raise CheckpointError(
            f"export of {what}: its outputs differ from the run's by {difference:.2e} on {sample.num_sequences} sample rows, and at most {MOST:.0e} "
            f"is let through: {ours[index]:.6f} here, {theirs[index]:.6f} there; nothing was exported"
        )
    return Parity(difference=difference, rows=sample.num_sequences, source=sample.source)
