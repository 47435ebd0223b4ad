"""The kinds of tasks as one table: what a recipe must and may say of a task of each kind. Light facts only;
no tensors, no reading.

What a kind does is written where it is done: rows (data/rows/readers.py), examples (data/examples/), terms
(tasks/layout.py), losses (losses/forms.py), heads (model/multitask.py), metrics (tasks/metrics.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mtdnn_ds.tasks.spec import Format

InputForm = Literal["text", "pair", "words", "choices", "two", "windows", "turns"]
"""What prediction makes of a row: a sequence of one text or a pair, tagged words, a sequence a choice, two
sequences, windows of a context, or those with the turns before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindFacts:
    """One kind. `texts`: fewest and most text_columns of tabular files; own formats need no columns."""

    metrics: tuple[str, ...]  # the default
    texts: tuple[int, int]
    has_label: bool = True
    has_classes: bool = False
    # Suffix -> format, beside csv, tsv, jsonl and parquet
    formats: Mapping[str, Format] = field(default_factory=dict)
    # Settings of the kind's own, with their defaults
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # options that a tabular file cannot do without
    objectives: tuple[str, ...] = ()  # choices of tasks.NAME.objective, the default first
    heads: tuple[str, ...] = ("linear",)
    has_dropout: bool = True  # before its head
    # Option -> a metric that it alone gives sense, then in the default
    option_metrics: Mapping[str, str] = field(default_factory=dict)
    has_answer: bool = True  # prediction has something to say of a row
    reads: InputForm | None = None  # None: one text or a pair, as many as it has text columns
    pipeline: str | None = None  # its tag on the Hugging Face hub
    plain_class: str | None = None  # ending of the transformers class that computes what its head does
    takes_plain_head: bool = False  # `heads` of a recipe may name a checkpoint of such a class


_WINDOWS: Mapping[str, Any] = {"stride": None, "max_answer_tokens": 30}

KINDS: Mapping[str, KindFacts] = {
    "classification": KindFacts(
        metrics=("accuracy",),
        texts=(1, 2),
        has_classes=True,
        heads=("linear", "san"),
        pipeline="text-classification",
        plain_class="ForSequenceClassification",
        takes_plain_head=True,
    ),
    "regression": KindFacts(
        metrics=("pearson", "spearman"),
        texts=(1, 2),
        options={"standardize": False},
        pipeline="text-classification",
        plain_class="ForSequenceClassification",
        takes_plain_head=True,
    ),
    "multiple_choice": KindFacts(
        metrics=("accuracy",),
        texts=(1, 2),
        options={"choice_columns": None},
        needs=("choice_columns",),
        reads="choices",
        pipeline="multiple-choice",
        plain_class="ForMultipleChoice",
        takes_plain_head=True,
    ),
    "ranking": KindFacts(
        metrics=("accuracy", "mrr"),
        texts=(2, 2),
        has_classes=True,
        options={"group_column": None, "relevant_label": None},
        objectives=("softmax", "pairwise"),
        reads="pair",
        pipeline="text-ranking",
        plain_class="ForSequenceClassification",
        takes_plain_head=True,
    ),
    "token_classification": KindFacts(
        metrics=("entity_f1",),
        texts=(1, 1),
        has_classes=True,
        formats={".conll": "conll"},
        reads="words",
        pipeline="token-classification",
        plain_class="ForTokenClassification",
        takes_plain_head=True,
    ),
    "span": KindFacts(
        metrics=("exact_match", "token_f1"),
        texts=(2, 2),
        formats={".json": "squad"},
        options={**_WINDOWS, "null_threshold": None},
        reads="windows",
        pipeline="question-answering",
        plain_class="ForQuestionAnswering",
        takes_plain_head=True,
    ),
    "conversational_span": KindFacts(
        metrics=("coqa_f1",),
        texts=(2, 2),
        formats={".json": "conversations"},
        options={**_WINDOWS, "history_turns": 2},
        reads="turns",
        pipeline="question-answering",
    ),
    "masked_lm": KindFacts(
        metrics=("masked_accuracy",),
        texts=(1, 1),
        has_label=False,
        formats={".txt": "text"},
        options={"masking": "whole_word", "mask_rate": 0.15, "next_sentence": False},
        has_dropout=False,
        option_metrics={"next_sentence": "next_sentence_accuracy"},
        has_answer=False,
        pipeline="fill-mask",
        plain_class="ForMaskedLM",
    ),
    "similarity": KindFacts(
        metrics=("pearson", "spearman"),
        texts=(2, 2),
        options={"score_range": (0.0, 1.0)},
        objectives=("cosine", "contrastive"),
        has_dropout=False,
        reads="two",
        pipeline="sentence-similarity",
    ),
}

KIND_OPTIONS: tuple[str, ...] = tuple(
    dict.fromkeys(name for facts in KINDS.values() for name in facts.options)
)
"""Every setting that belongs to some kinds only."""

PIPELINES: Mapping[str, str] = {kind: facts.pipeline for kind, facts in KINDS.items() if facts.pipeline}
"""Kind -> the tag that the Hugging Face hub has for models of it."""

PLAIN_CLASSES: Mapping[str, str] = {
    kind: facts.plain_class for kind, facts in KINDS.items() if facts.plain_class
}
"""Kind -> ending of the transformers class that computes what its head does."""
