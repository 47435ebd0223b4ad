"""The built-in tasks as one table: kind, labels, metrics and where the rows live. No data reading, no checks
(tasks/resolve.py).

Labels stand in the order of the Hugging Face hub's ClassLabel, so official ids (0/1 in GLUE's files and
submissions) are class ids here too. Metrics are the official ones (https://gluebenchmark.com/tasks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
_NLI_LABELS = ("entailment", "neutral", "contradiction")
_NO_CONSENSUS = {"-": NO_GOLD_LABEL, "-1": NO_GOLD_LABEL}  # SNLI's files write -, the hub's ClassLabel -1


def _hub(
    path: str,
    config: str | None,
    text_columns: tuple[str, ...],
    *,
    splits: Mapping[str, str] = _SPLITS,
    labelled_test: bool = False,
    label_words: Mapping[str, str] | None = None,
) -> dict[str, Source]:
    return {
        ours: Source(
            format="hub",
            path=path,
            config=config,
            split=theirs,
            text_columns=text_columns,
            label_column=None if ours.startswith("test") and not labelled_test else "label",
            label_words=label_words,
        )
        for ours, theirs in splits.items()
    }


def _tsv(
    folder: str,
    text_columns: tuple[str, ...],
    label_column: str,
    *,
    files: Mapping[str, str] = _FILES,
    header: bool = True,
    labelled_test: bool = False,
    label_words: Mapping[str, str] | None = None,
) -> dict[str, Source]:
    """Official TSV files: no quoting at all (a double quote is a letter), columns addressed by header name
    where there is a header."""
    return {
        split: Source(
            format="tsv",
            path=f"{folder}/{file}" if folder else file,
            text_columns=text_columns,
            label_column=None if split.startswith("test") and not labelled_test else label_column,
            header=header,
            quoted=False,
            label_words=label_words,
        )
        for split, file in files.items()
    }


def _glue(
    config: str,
    folder: str,
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    hub_columns: tuple[str, ...],
    tsv_columns: tuple[str, ...],
    tsv_label: str,
) -> BuiltinTask:
    is_mnli = config == "mnli"
    return BuiltinTask(
        kind="classification" if labels else "regression",
        labels=labels,
        metrics=metrics,
        remote=_hub("nyu-mll/glue", config, hub_columns, splits=_MNLI_SPLITS if is_mnli else _SPLITS),
        folder_setting="glue_dir",
        # MNLI's label is addressed by name: official dev files have label1..label5 before gold_label,
        # train.tsv only label1.
        folder=_tsv(folder, tsv_columns, tsv_label, files=_MNLI_FILES if is_mnli else _FILES),
    )


def _cola() -> BuiltinTask:
    """CoLA's train.tsv and dev.tsv have no header (source, label, original mark, sentence); its test.tsv has
    one."""
    files = _tsv("CoLA", ("3",), "1", files={"train": "train.tsv", "dev": "dev.tsv"}, header=False)
    return BuiltinTask(
        kind="classification",
        labels=("unacceptable", "acceptable"),
        metrics=("matthews",),
        remote=_hub("nyu-mll/glue", "cola", ("sentence",)),
        folder_setting="glue_dir",
        folder={**files, **_tsv("CoLA", ("sentence",), "", files={"test": "test.tsv"})},
    )


def _quickstart(
    name: str,
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    text_columns: tuple[str, ...] = ("text_a", "text_b"),
) -> BuiltinTask:
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


def _entities(hub: str, entities: tuple[str, ...], folder_setting: FolderSetting) -> BuiltinTask:
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


def _answers(
    kind: Kind,
    metrics: tuple[str, ...],
    hub: str,
    hub_columns: tuple[str, str],
    folder_setting: FolderSetting,
    files: tuple[str, str],
    *,
    more_columns: tuple[str, ...] = (),
    options: Mapping[str, Any] | None = None,
) -> BuiltinTask:
    """Questions about a text: on the hub a table, of conversations or of single questions; in the official
    files nested JSON."""
    is_span = kind == "span"
    return BuiltinTask(
        kind=kind,
        labels=(),
        metrics=metrics,
        remote={
            ours: Source(
                format="hub", path=hub, split=theirs, text_columns=hub_columns, label_column="answers", nested=not is_span,
                more_columns=more_columns,
            )
            for ours, theirs in (("train", "train"), ("dev", "validation"))
        },
        folder_setting=folder_setting,
        folder={
            split: Source(
                format="squad" if is_span else "conversations", path=file, text_columns=("question", "context" if is_span else "story"),
                label_column="answers",
            )
            for split, file in zip(("train", "dev"), files, strict=True)
        },
        options=options or {},
    )  # fmt: skip


_SQUAD_METRICS = ("exact_match", "token_f1")
_PAIR = ("sentence1", "sentence2")
_PREMISE = ("premise", "hypothesis")
_ENTAILED = ("entailment", "not_entailment")

BUILTIN_TASKS: Mapping[str, BuiltinTask] = {
    "cola": _cola(),
    "sst2": _glue("sst2", "SST-2", ("negative", "positive"), ("accuracy",), ("sentence",), ("sentence",), "label"),
    "mrpc": _glue("mrpc", "MRPC", ("not_equivalent", "equivalent"), ("accuracy", "f1"), _PAIR, ("#1 String", "#2 String"), "Quality"),
    "stsb": _glue("stsb", "STS-B", (), ("pearson", "spearman"), _PAIR, _PAIR, "score"),
    "qqp": _glue(
        "qqp",
        "QQP",
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        ("question1", "question2"),
        ("question1", "question2"),
        "is_duplicate",
    ),
    "mnli": _glue("mnli", "MNLI", _NLI_LABELS, ("accuracy",), _PREMISE, _PAIR, "gold_label"),
    "qnli": _glue("qnli", "QNLI", _ENTAILED, ("accuracy",), ("question", "sentence"), ("question", "sentence"), "label"),
    # MT-DNN's relevance ranking (Liu et al. 2019, section 3.1): a question with all its candidate sentences
    # is one example.
    "qnli_ranking": replace(
        _glue("qnli", "QNLI", _ENTAILED, ("accuracy", "mrr"), ("question", "sentence"), ("question", "sentence"), "label"),
        kind="ranking",
        options={"relevant_label": "entailment"},
    ),
    "rte": _glue("rte", "RTE", _ENTAILED, ("accuracy",), _PAIR, _PAIR, "label"),
    "wnli": _glue("wnli", "WNLI", ("not_entailment", "entailment"), ("accuracy",), _PAIR, _PAIR, "label"),
    "ax": BuiltinTask(  # GLUE's diagnostic set: predicted with MNLI's head, never trained on
        kind="classification",
        labels=_NLI_LABELS,
        metrics=("matthews",),
        remote=_hub("nyu-mll/glue", "ax", _PREMISE, splits={"test": "test"}),
        folder_setting="glue_dir",
        folder=_tsv("diagnostic", _PAIR, "", files={"test": "diagnostic.tsv"}),
    ),
    "snli": BuiltinTask(
        kind="classification",
        labels=_NLI_LABELS,
        metrics=("accuracy",),
        remote=_hub("stanfordnlp/snli", None, _PREMISE, labelled_test=True, label_words=_NO_CONSENSUS),
        folder_setting="snli_dir",
        folder=_tsv("", _PAIR, "gold_label", labelled_test=True, label_words=_NO_CONSENSUS),
    ),
    "scitail": BuiltinTask(
        kind="classification",
        labels=("neutral", "entails"),
        metrics=("accuracy",),
        remote=_hub("allenai/scitail", "tsv_format", _PREMISE, labelled_test=True),
        folder_setting="scitail_dir",
        folder=_tsv(
            "",
            ("0", "1"),
            "2",
            files={split: f"scitail_1.0_{split}.tsv" for split in ("train", "dev", "test")},
            header=False,
            labelled_test=True,
        ),
    ),
    "wnut17": _entities(
        "leondz/wnut_17", ("corporation", "creative-work", "group", "location", "person", "product"), "wnut_dir"
    ),
    "squad": _answers(
        "span", _SQUAD_METRICS, "rajpurkar/squad", ("question", "context"), "squad_dir", ("train-v1.1.json", "dev-v1.1.json"),
        more_columns=("id",),
    ),
    "squad_v2": _answers(
        "span", _SQUAD_METRICS, "rajpurkar/squad_v2", ("question", "context"), "squad_dir", ("train-v2.0.json", "dev-v2.0.json"),
        more_columns=("id",), options={"null_threshold": 0.0},
    ),
    "coqa": _answers(
        "conversational_span", ("coqa_f1",), "stanfordnlp/coqa", ("questions", "story"), "coqa_dir",
        ("coqa-train-v1.0.json", "coqa-dev-v1.0.json"),
    ),
    "quac": _answers(
        "conversational_span", ("quac_f1",), "allenai/quac", ("questions", "context"), "quac_dir", ("train_v0.2.json", "val_v0.2.json"),
        # Its teachers' answers have up to 30 words
        more_columns=("orig_answers", "yesnos"), options={"max_answer_tokens": 50},
    ),
    "quickstart_acceptability": _quickstart("quickstart_acceptability", ("unacceptable", "acceptable"), ("matthews",), ("text",)),
    "quickstart_sentiment": _quickstart("quickstart_sentiment", ("negative", "positive"), ("accuracy",), ("text",)),
    "quickstart_paraphrase": _quickstart("quickstart_paraphrase", ("different", "paraphrase"), ("accuracy", "f1")),
    "quickstart_entailment": _quickstart("quickstart_entailment", _NLI_LABELS, ("accuracy",)),
    "quickstart_similarity": _quickstart("quickstart_similarity", (), ("pearson", "spearman")),
}  # fmt: skip
