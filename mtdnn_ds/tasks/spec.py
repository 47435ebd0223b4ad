"""What a task is: Source and TaskSpec, where its rows come from, and CustomKind, a kind of the user's own.

Records only: no data reading, no tensors. Kinds come from files of their users (tasks/plugins.py), one record
in one file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mtdnn_ds.config.errors import TrainingError

Kind = str  # one of tasks/kinds.py, or a kind of the user's own
Format = Literal[
    "tsv",
    "csv",
    "jsonl",
    "parquet",
    "datasets",
    "hub",
    "generated",
    "text",
    "conll",
    "squad",
    "conversations",
]

STANDARDIZE = "standardize"  # the option of TaskSpec.score_scale

ScoreScale = tuple[float, float]
"""Mean and deviation: a score s is learnt as (s - mean) / deviation."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # of modules in a state dict, and of kinds in a recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the rows of one split come from, and which columns hold what.

    Columns have names; those of a file without header are "0", "1", ..., and negative ones count from the
    end.
    """

    format: Format
    path: str  # file, folder, hub name, or generator name
    text_columns: tuple[str, ...]
    label_column: str | None  # None: the split has no labels
    config: str | None = None  # hub configuration
    split: str | None = None  # split name inside a hub or saved dataset
    header: bool = True  # csv/tsv only: the first line names the columns
    quoted: bool = True  # csv/tsv only: CSV quoting (GLUE's files have none)
    # Words in the file -> label names, where they differ; "" = no gold label, row left out.
    label_words: Mapping[str, str] | None = None
    nested: bool = False  # a row is a whole conversation; its cells are lists with an entry for each question
    more_columns: tuple[str, ...] = ()  # that the task's kind reads after the texts (choices, groups)
    short_rows_left_out: bool = False  # csv/tsv only: rows with fewer fields than the file has columns


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One task of a run, resolved: nothing about it is left to look up.

    `splits` maps our split names to sources: "train", "dev", further evaluation splits "dev_NAME" (MNLI:
    "dev_mm"), "test" (no labels needed). `labels` are in class-id order and empty where the kind has no
    classes.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: Mapping[str, Source]
    dropout: float | None = None  # before the head; None: the encoder's own
    loss_scale: float = 1.0  # explicit factor of this task in the objective
    head: Literal["linear", "san"] = "linear"
    objective: str | None = None  # which of its kind's losses, where there are several
    # Plain values of its kind's own (tasks/kinds.py)
    options: Mapping[str, Any] = field(default_factory=dict)
    custom: CustomKind | None = None  # the record of a kind of the user's own

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Evaluation splits, "dev" first."""
        names = [name for name in self.splits if name.startswith("dev")]
        return tuple(sorted(names, key=lambda name: (name != "dev", name)))

    @property
    def score_scale(self) -> ScoreScale | None:
        """Of a regression whose scores are learnt in standard units; None: as they are.

        With `standardize: true` it is known of a run's own specs (runs/score_scales.py).
        """
        scale = self.options.get(STANDARDIZE)
        if not scale:
            return None
        assert scale is not True, f"the scores of {self.name} have not been measured"
        mean, deviation = scale
        return mean, deviation


def scored_specs(specs: Sequence[TaskSpec], only_task: str | None) -> tuple[TaskSpec, ...]:
    """The specs, with dev splits only where the run trains the task: all of them, or `only_task`."""
    if only_task is None:
        return tuple(specs)
    return tuple(spec if spec.name == only_task else _without_dev_splits(spec) for spec in specs)


def _without_dev_splits(spec: TaskSpec) -> TaskSpec:
    others = {name: source for name, source in spec.splits.items() if name not in spec.dev_splits}
    return replace(spec, splits=others)


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomKind:
    """How rows of texts and labels become losses, predictions and metrics. docs/own_kind.md shows one being
    written.

    K are the supervised rows of a micro-batch that belong to one task (sequences, or words where `reads` is
    "token"), C its outputs, D the hidden size, R all labelled rows or words of a split. `loss` gives each
    row's loss, never a mean: the objective divides, by the number of rows of the whole step.

    Raises TypeError with everything that is wrong.
    """

    name: str  # what recipes write as tasks.NAME.kind
    num_outputs: Callable[[TaskSpec], int]
    # Label cell (or one label of its list) -> number; raises ValueError with the reason.
    parse_label: Callable[[object, TaskSpec], float]
    loss: Callable[[Any, Any], Any]  # torch: outputs (K, C) float32, labels (K,) float32 -> losses (K,)
    predict: Callable[[np.ndarray], np.ndarray]  # outputs (R, C) float32 -> predictions (R,), numbers
    # Of (predictions (R,), labels (R,)), float64; higher is better.
    metrics: Mapping[str, Callable[[np.ndarray, np.ndarray], float]]
    # The pooled first token of a sequence; or the first token of each word, text and labels being lists.
    reads: Literal["sequence", "token"] = "sequence"
    has_labels: bool = False  # the task lists label names (TaskSpec.labels)
    # (D, C) -> nn.Module from (K, D) to (K, C), one for each task; None: a linear layer.
    head: Callable[[int, int], Any] | None = None
    # Identity of the file it comes from, set when it is loaded: rows that it parsed are kept in the cache.
    fingerprint: str = ""

    def __post_init__(self) -> None:
        problems = [*self._wrong_types()]
        if not problems:
            problems += self._wrong_calls()
        if problems:
            raise TypeError(f"CustomKind {self.name!r}: {'; '.join(problems)}")

    def predictions(self, outputs: np.ndarray) -> np.ndarray:
        """`predict`, checked. Raises TrainingError."""
        values = np.asarray(self.predict(outputs))
        if values.shape != (len(outputs),) or values.dtype.kind not in "biuf":
            raise TrainingError(
                f"kind {self.name}: predict made {values.dtype} of shape {values.shape} of outputs of shape "
                f"{outputs.shape}; it must give ({len(outputs)},), one number for each row"
            )
        return values

    def _wrong_types(self) -> list[str]:
        problems = []
        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            problems.append("name is made of letters, digits and '_', and begins with a letter")
        if self.reads not in ("sequence", "token"):
            problems.append(f"reads is 'sequence' or 'token', not {self.reads!r}")

        for field_name in ("num_outputs", "parse_label", "loss", "predict"):
            value = getattr(self, field_name)
            if not callable(value):
                problems.append(f"{field_name} must be a function, not {value!r}")
        if self.head is not None and not callable(self.head):
            problems.append(f"head must be a function or None, not {self.head!r}")

        return [*problems, *self._wrong_metrics()]

    def _wrong_metrics(self) -> list[str]:
        if not isinstance(self.metrics, Mapping) or not self.metrics:
            return ["metrics must map at least one name to a function, e.g. {'accuracy': accuracy}"]

        wrong_names = [
            f"metrics: a name is made of letters, digits and '_', not {name!r}"
            for name in self.metrics
            if not (isinstance(name, str) and _NAME.fullmatch(name))
        ]
        wrong_functions = [
            f"metrics[{name!r}] must be a function, not {each!r}"
            for name, each in self.metrics.items()
            if not callable(each)
        ]
        return [*wrong_names, *wrong_functions]

    def _wrong_calls(self) -> list[str]:
        functions: dict[str, tuple[Callable[..., Any], str]] = {
            "num_outputs": (self.num_outputs, "spec"),
            "parse_label": (self.parse_label, "cell, spec"),
            "loss": (self.loss, "outputs, labels"),
            "predict": (self.predict, "outputs"),
        }
        if self.head is not None:
            functions["head"] = (self.head, "hidden_size, num_outputs")
        for name, each in self.metrics.items():
            functions[f"metrics[{name!r}]"] = (each, "predictions, labels")

        return [
            f"{what} must take ({needs})"
            for what, (function, needs) in functions.items()
            if not _takes(function, needs)
        ]


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
