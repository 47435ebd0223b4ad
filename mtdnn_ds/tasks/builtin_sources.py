"""What a row of the table of built-in tasks holds, and its sources: on the hub, and in the official files.

The table itself is in builtin.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mtdnn_ds.tasks.spec import Kind, Source

NO_GOLD_LABEL = ""
"""A label word that maps to this marks a row on which the annotators did not agree: left out and counted, as
is official practice."""

FolderSetting = Literal[
    "glue_dir", "snli_dir", "scitail_dir", "wnut_dir", "squad_dir", "coqa_dir", "quac_dir"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltinTask:
    """One row of the table. `folder` holds the same splits as `remote`, with paths relative to the folder
    that `folder_setting` names."""

    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    remote: Mapping[str, Source]  # the hub, or our own generator
    folder_setting: FolderSetting | None = None
    inner_folder: str = ""  # of an unpacked official archive, where its files are
    folder: Mapping[str, Source] = field(default_factory=dict)
    # Of its kind (tasks/kinds.py), where the task has defaults of its own
    options: Mapping[str, Any] = field(default_factory=dict)


_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
_MNLI_SPLITS = {
    "train": "train",
    "dev": "validation_matched",
    "dev_mm": "validation_mismatched",
    "test": "test_matched",
    "test_mm": "test_mismatched",
}
_MNLI_FILES = {
    "train": "train.tsv",
    "dev": "dev_matched.tsv",
    "dev_mm": "dev_mismatched.tsv",
    "test": "test_matched.tsv",
    "test_mm": "test_mismatched.tsv",
}
_FILES = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}


def hub_sources(
    path: str,
    config: str | None,
    text_columns: tuple[str, ...],
    *,
    splits: Mapping[str, str] = _SPLITS,
    labelled_test: bool = False,
    label_words: Mapping[str, str] | None = None,
) -> dict[str, Source]:
    """A hub dataset; test splits have no labels unless they are known to."""
    sources = {}
    for ours, theirs in splits.items():
        sources[ours] = Source(
            format="hub",
            path=path,
            config=config,
            split=theirs,
            text_columns=text_columns,
            label_column=_label_column(ours, "label", labelled_test),
            label_words=label_words,
        )

    return sources


def _label_column(split: str, column: str, labelled_test: bool) -> str | None:
    if split.startswith("test") and not labelled_test:
        return None
    return column


def tsv_sources(
    folder: str,
    text_columns: tuple[str, ...],
    label_column: str,
    *,
    files: Mapping[str, str] = _FILES,
    header: bool = True,
    labelled_test: bool = False,
    label_words: Mapping[str, str] | None = None,
    short_rows_left_out: bool = False,
) -> dict[str, Source]:
    """Official TSV files: no quoting at all (a double quote is a letter), columns addressed by header name
    where there is a header."""
    sources = {}
    for split, file in files.items():
        sources[split] = Source(
            format="tsv",
            path=f"{folder}/{file}" if folder else file,
            text_columns=text_columns,
            label_column=_label_column(split, label_column, labelled_test),
            header=header,
            quoted=False,
            label_words=label_words,
            short_rows_left_out=short_rows_left_out,
        )

    return sources


def glue_task(
    config: str,
    folder: str,
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    hub_columns: tuple[str, ...],
    tsv_columns: tuple[str, ...],
    tsv_label: str,
) -> BuiltinTask:
    """A task of GLUE; without labels it is a regression."""
    is_mnli = config == "mnli"
    splits, files = (_MNLI_SPLITS, _MNLI_FILES) if is_mnli else (_SPLITS, _FILES)

    return BuiltinTask(
        kind="classification" if labels else "regression",
        labels=labels,
        metrics=metrics,
        remote=hub_sources("nyu-mll/glue", config, hub_columns, splits=splits),
        folder_setting="glue_dir",
        # MNLI's label is addressed by name: official dev files have label1..label5 before gold_label,
        # train.tsv only label1.
        # Some lines of QQP's official files are cut short; its readers everywhere pass over them.
        folder=tsv_sources(folder, tsv_columns, tsv_label, files=files, short_rows_left_out=config == "qqp"),
    )


def cola_task() -> BuiltinTask:
    """CoLA's train.tsv and dev.tsv have no header (source, label, original mark, sentence); its test.tsv has
    one."""
    files = tsv_sources("CoLA", ("3",), "1", files={"train": "train.tsv", "dev": "dev.tsv"}, header=False)
    return BuiltinTask(
        kind="classification",
        labels=("unacceptable", "acceptable"),
        metrics=("matthews",),
        remote=hub_sources("nyu-mll/glue", "cola", ("sentence",)),
        folder_setting="glue_dir",
        folder={**files, **tsv_sources("CoLA", ("sentence",), "", files={"test": "test.tsv"})},
    )


def quickstart_task(
    name: str,
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    text_columns: tuple[str, ...] = ("text_a", "text_b"),
) -> BuiltinTask:
    """A generated task (data/sources/generated.py)."""
    return BuiltinTask(
        kind="classification" if labels else "regression",
        labels=labels,
        metrics=metrics,
        remote={
            split: Source(
                format="generated", path=name, split=split, text_columns=text_columns, label_column="label"
            )
            for split in ("train", "dev")
        },
    )


def entity_task(hub: str, entities: tuple[str, ...], folder_setting: FolderSetting) -> BuiltinTask:
    """Named entities in .conll files or in lists of words and tags; test sets have labels."""
    return BuiltinTask(
        kind="token_classification",
        labels=("O", *(f"{position}-{entity}" for entity in entities for position in ("B", "I"))),
        metrics=("entity_f1",),
        remote={
            ours: Source(
                format="hub", path=hub, split=theirs, text_columns=("tokens",), label_column="ner_tags"
            )
            for ours, theirs in _SPLITS.items()
        },
        folder_setting=folder_setting,
        folder={
            split: Source(format="conll", path=f"{split}.conll", text_columns=("0",), label_column="-1")
            for split in _SPLITS
        },
    )


def answer_task(
    kind: Kind,
    metrics: tuple[str, ...],
    hub: str,
    hub_columns: tuple[str, str],
    folder_setting: FolderSetting,
    files: tuple[str, str],
    *,
    more_columns: tuple[str, ...] = (),
) -> BuiltinTask:
    """Questions about a text: on the hub a table, of conversations or of single questions; in the official
    files nested JSON."""
    is_span = kind == "span"
    remote = {}
    for ours, theirs in (("train", "train"), ("dev", "validation")):
        remote[ours] = Source(
            format="hub",
            path=hub,
            split=theirs,
            text_columns=hub_columns,
            label_column="answers",
            nested=not is_span,
            more_columns=more_columns,
        )

    folder = {}
    for split, file in zip(("train", "dev"), files, strict=True):
        folder[split] = Source(
            format="squad" if is_span else "conversations",
            path=file,
            text_columns=("question", "context" if is_span else "story"),
            label_column="answers",
        )

    return BuiltinTask(
        kind=kind,
        labels=(),
        metrics=metrics,
        remote=remote,
        folder_setting=folder_setting,
        folder=folder,
    )
