"""CustomKind: a task kind of the user's own, one record in one file of theirs (`--plugins my_task.py`). Loads no file (tasks/plugins.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomKind:
    """How rows of one or two texts and a label become a loss, predictions and metrics.

    Shapes: K supervised rows of a micro-batch, C outputs, D hidden size, E examples.
    `loss` gives each row's loss, never a mean: the objective divides by the number of rows of the whole step.
    """

    name: str
    reads: Literal["sequence", "token"] = "sequence"  # the pooled first token, or every token of the texts
    num_outputs: Callable[[Any], int]  # from the TaskSpec
    parse_label: Callable[[object, Any], float]  # (cell, TaskSpec) -> number; ValueError with the reason for a bad cell
    loss: Callable[[Any, Any], Any]  # (outputs (K, C) float32, labels (K,) float32) -> losses (K,)
    predict: Callable[[Any], Any]  # outputs (E, C) float32 -> predictions (E,)
    metrics: Mapping[str, Callable[[Any, Any], float]]  # name -> function of (predictions (E,), labels (E,)); higher is better
    head: Callable[[int, int], Any] | None = None  # (D, C) -> nn.Module from (K, D) to (K, C); None: a linear layer
