"""Which examples a kind of task has. One table; the families are in the files beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.examples.base import Examples
from mtdnn_ds.data.examples.choices import ChoiceExamples
from mtdnn_ds.data.examples.conversations import ConversationExamples
from mtdnn_ds.data.examples.documents import DocumentExamples
from mtdnn_ds.data.examples.pairs import PairExamples
from mtdnn_ds.data.examples.sampled import without_rows
from mtdnn_ds.data.examples.spans import SpanExamples
from mtdnn_ds.data.examples.texts import TextExamples
from mtdnn_ds.data.examples.words import WordExamples
from mtdnn_ds.tasks.spec import TaskSpec

Maker = Callable[..., Examples]

EXAMPLES: Mapping[str, Maker] = {
    "classification": TextExamples,
    "regression": TextExamples,
    "similarity": PairExamples,
    "multiple_choice": ChoiceExamples,
    "ranking": ChoiceExamples,
    "token_classification": WordExamples,
    "span": SpanExamples,
    "conversational_span": ConversationExamples,
    "masked_lm": DocumentExamples,
}

SEEDED = ("masked_lm",)
"""Kinds whose examples are drawn anew in every epoch, and so need the run's seed."""


def make_examples(
    spec: TaskSpec,
    split: PreparedSplit,
    *,
    max_length: int,
    seed: int = 0,
    left_out: np.ndarray | None = None,
) -> Examples:
    """The examples of a split in sequences of at most `max_length` tokens.

    `seed`: of the run, for kinds that draw masks. `left_out`: rows of the split that nothing is made of.
    Raises ConfigError or DataError if the kind cannot use the split.
    """
    if spec.custom is None and spec.kind in SEEDED:
        examples = EXAMPLES[spec.kind](spec, split, max_length=max_length, seed=seed, left_out=left_out)
    else:
        examples = _maker(spec)(spec, split, max_length=max_length)

    if left_out is None:
        return examples
    return without_rows(examples, left_out)


def _maker(spec: TaskSpec) -> Maker:
    if spec.custom is None:
        return EXAMPLES[spec.kind]
    if spec.custom.reads == "sequence":
        return TextExamples
    return WordExamples
