"""CustomKind: a task kind of the user's own, one record in one file of theirs (`--plugins my_task.py`). Loads no file (tasks/plugins.py)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mtdnn_ds.config.errors import TrainingError

if TYPE_CHECKING:
    from mtdnn_ds.tasks.spec import TaskSpec

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # of modules in a state dict, and of kinds in a recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomKind:
    """How rows of texts and labels become losses, predictions and metrics. docs/own_kind.md shows one being written.

    K are the supervised rows of a micro-batch that belong to one task (sequences, or words where `reads` is "token"), C its outputs,
    D the hidden size, R all labelled rows or words of a split. `loss` gives each row's loss, never a mean: the objective divides,
    by the number of rows of the whole step. Raises TypeError or ValueError with everything that is wrong.
    """

    name: str  # what recipes write as tasks.NAME.kind
    num_outputs: Callable[[TaskSpec], int]
    parse_label: Callable[
        [object, TaskSpec], float
    ]  # label cell (or one label of its list) -> number; raises ValueError with the reason
    loss: Callable[[Any, Any], Any]  # torch: outputs (K, C) float32, labels (K,) float32 -> losses (K,)
    predict: Callable[[np.ndarray], np.ndarray]  # outputs (R, C) float32 -> predictions (R,), numbers
    metrics: Mapping[
        str, Callable[[np.ndarray, np.ndarray], float]
    ]  # of (predictions (R,), labels (R,)) float64; higher is better
    reads: Literal["sequence", "token"] = (
        "sequence"  # the pooled first token; or the first token of each word, text and labels being lists
    )
    has_labels: bool = False  # the task lists label names (TaskSpec.labels)
    head: Callable[[int, int], Any] | None = (
        None  # (D, C) -> nn.Module from (K, D) to (K, C), one for each task; None: a linear layer
    )
    fingerprint: str = ""  # identity of the file it comes from, set when it is loaded: rows that it parsed are kept in the cache

    def __post_init__(self) -> None:
        problems = [*self._wrong_types()]
        if not problems:
            problems += self._wrong_calls()
        if problems:
            raise TypeError(f"CustomKind {self.name!r}: {'; '.join(problems)}")

    def _wrong_types(self) -> list[str]:
        name_fits = isinstance(self.name, str) and _NAME.fullmatch(self.name) is not None
        problems = [] if name_fits else ["name is made of letters, digits and '_', and begins with a letter"]
        if self.reads not in ("sequence", "token"):
            problems.append(f"reads is 'sequence' or 'token', not {self.reads!r}")
        problems += [
            f"{field} must be a function, not {getattr(self, field)!r}"
            for field in ("num_outputs", "parse_label", "loss", "predict")
            if not callable(getattr(self, field))
        ]
        if self.head is not None and not callable(self.head):
            problems.append(f"head must be a function or None, not {self.head!r}")
        if not isinstance(self.metrics, Mapping) or not self.metrics:
            problems.append("metrics must map at least one name to a function, e.g. {'accuracy': accuracy}")
        else:
            problems += [
                f"metrics: a name is made of letters, digits and '_', not {name!r}"
                for name in self.metrics
                if not (isinstance(name, str) and _NAME.fullmatch(name))
            ]
            problems += [
                f"metrics[{name!r}] must be a function, not {each!r}"
                for name, each in self.metrics.items()
                if not callable(each)
            ]
        return problems

    def _wrong_calls(self) -> list[str]:
        functions: dict[str, tuple[Callable[..., Any], str]] = {
            "num_outputs": (self.num_outputs, "spec"),
            "parse_label": (self.parse_label, "cell, spec"),
            "loss": (self.loss, "outputs, labels"),
            "predict": (self.predict, "outputs"),
            **({} if self.head is None else {"head": (self.head, "hidden_size, num_outputs")}),
            **{f"metrics[{name!r}]": (each, "predictions, labels") for name, each in self.metrics.items()},
        }
        return [
            f"{what} must take ({needs})"
            for what, (function, needs) in functions.items()
            if not _takes(function, needs)
        ]

    def predictions(self, outputs: np.ndarray) -> np.ndarray:
        """`predict`, checked. Raises TrainingError."""
        values = np.asarray(self.predict(outputs))
        if values.shape != (len(outputs),) or values.dtype.kind not in "biuf":
            raise TrainingError(
                f"kind {self.name}: predict made {values.dtype} of shape {values.shape} of outputs of shape {outputs.shape}; "
                f"it must give ({len(outputs)},), one number for each row"
            )
        return values


def _takes(function: Callable[..., Any], arguments: str) -> bool:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions do not say
        return True
    try:
        signature.bind(*arguments.split(", "))
    except TypeError:
        return False
    return True
