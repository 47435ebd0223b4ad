"""TaskSpec and Source: what a task is and where its rows come from. Records only; no data reading, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mtdnn_ds.tasks.custom import CustomKind

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the rows of one split come from, and which columns hold what."""

    format: Format
    path: str  # file, folder, hub name, or generator name
    text_columns: tuple[
        str, ...
    ]  # column names; for a file without header, "0", "1", ... (negative counts from the end)
    label_column: str | None  # None: the split has no labels
    config: str | None = None  # hub configuration
    split: str | None = None  # split name inside a hub or saved dataset
    header: bool = True  # csv/tsv only: the first line names the columns
    quoted: bool = True  # csv/tsv only: CSV quoting (GLUE's files have none)
    label_words: Mapping[str, str] | None = (
        None  # words in the file -> label names, where they differ; "" = no gold label, row left out
    )
    nested: bool = (
        False  # a row is a whole conversation, whose cells are lists with an entry for each question
    )
    more_columns: tuple[
        str, ...
    ] = ()  # further columns that the task's kind reads, after the texts (choices, groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """One task of a run, resolved: nothing about it is left to look up.

    `splits` maps our split names to sources: "train", "dev", further evaluation splits "dev_NAME" (MNLI: "dev_mm"),
    "test" (no labels needed). `labels` are in class-id order and empty where the kind has no classes.
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
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # plain values of the kind's own settings (tasks/kinds.py lists them)
    custom: CustomKind | None = None  # the record of a kind of the user's own

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Evaluation splits, "dev" first."""
        return tuple(
            sorted(
                (name for name in self.splits if name.startswith("dev")),
                key=lambda name: (name != "dev", name),
            )
        )
