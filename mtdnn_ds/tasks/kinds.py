"""The kinds of tasks as one table: what a recipe must and may say of a task of each kind. Light facts only; no tensors, no reading.

What a kind does is written where it is done: rows (data/rows/readers.py), examples (data/examples/), terms (tasks/layout.py), losses
(losses/forms.py), heads (model/multitask.py), metrics (tasks/metrics.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtdnn_ds.tasks.spec import Format


@dataclass(frozen=True, kw_only=True, slots=True)
class KindFacts:
    """One kind. `texts`: fewest and most text_columns of tabular files; own formats need no columns."""

    metrics: tuple[str, ...]  # the default
    texts: tuple[int, int]
    has_label: bool = True
    has_classes: bool = False
    formats: Mapping[str, Format] = field(
        default_factory=dict
    )  # suffix -> format, beside csv, tsv, jsonl and parquet
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # settings of the kind's own, with their defaults
    needs: tuple[str, ...] = ()  # options that a tabular file cannot do without
    objectives: tuple[str, ...] = ()  # choices of tasks.NAME.objective, the default first
    heads: tuple[str, ...] = ("linear",)
    has_dropout: bool = True  # before its head
    option_metrics: Mapping[str, str] = field(
        default_factory=dict
    )  # option -> a metric that it alone gives sense, then in the default


_WINDOWS: Mapping[str, Any] = {"stride": None, "max_answer_tokens": 30}

KINDS: Mapping[str, KindFacts] = {
    "classification": KindFacts(
        metrics=("accuracy",), texts=(1, 2), has_classes=True, heads=("linear", "san")
    ),
    "regression": KindFacts(metrics=("pearson", "spearman"), texts=(1, 2)),
    "multiple_choice": KindFacts(
        metrics=("accuracy",), texts=(1, 2), options={"choice_columns": None}, needs=("choice_columns",)
    ),
    "ranking": KindFacts(
        metrics=("accuracy", "mrr"),
        texts=(2, 2),
        has_classes=True,
        options={"group_column": None, "relevant_label": None},
        objectives=("softmax", "pairwise"),
    ),
    "token_classification": KindFacts(
        metrics=("entity_f1",), texts=(1, 1), has_classes=True, formats={".conll": "conll"}
    ),
    "span": KindFacts(
        metrics=("exact_match", "token_f1"),
        texts=(2, 2),
        formats={".json": "squad"},
        options={**_WINDOWS, "null_threshold": None},
    ),
    "conversational_span": KindFacts(
        metrics=("coqa_f1",),
        texts=(2, 2),
        formats={".json": "conversations"},
        options={**_WINDOWS, "history_turns": 2},
    ),
    "masked_lm": KindFacts(
        metrics=("masked_accuracy",),
        texts=(1, 1),
        has_label=False,
        formats={".txt": "text"},
        options={"masking": "whole_word", "mask_rate": 0.15, "next_sentence": False},
        has_dropout=False,
        option_metrics={"next_sentence": "next_sentence_accuracy"},
    ),
    "similarity": KindFacts(
        metrics=("pearson", "spearman"),
        texts=(2, 2),
        options={"score_range": (0.0, 1.0)},
        objectives=("cosine", "contrastive"),
        has_dropout=False,
    ),
}

KIND_OPTIONS: tuple[str, ...] = tuple(
    dict.fromkeys(name for facts in KINDS.values() for name in facts.options)
)
"""Every setting that belongs to some kinds only."""
