"""Which examples a kind of task has. One table; the families are in the files beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.examples.base import Examples
from mtdnn_ds.data.examples.choices import ChoiceExamples
from mtdnn_ds.data.examples.conversations import ConversationExamples
from mtdnn_ds.data.examples.documents import DocumentExamples
from mtdnn_ds.data.examples.pairs import PairExamples
from mtdnn_ds.data.examples.spans import SpanExamples
from mtdnn_ds.data.examples.texts import TextExamples
from mtdnn_ds.data.examples.words import WordExamples
from mtdnn_ds.tasks.spec import TaskSpec

Maker = Callable[..., Examples]

EXAMPLES: Mapping[str, Maker] = {
    "classification": TextExamples,
    "regression": TextExamples,
    "span": SpanExamples,
    "conversational_span": ConversationExamples,
    "multiple_choice": ChoiceExamples,
    "ranking": ChoiceExamples,
    "token_classification": WordExamples,
    "similarity": PairExamples,
    "masked_lm": DocumentExamples,
}

DRAWN = ("masked_lm",)
"""Kinds whose examples are drawn anew in every epoch, and so need the run's seed."""


def make_examples(spec: TaskSpec, split: PreparedSplit, *, max_length: int, seed: int = 0) -> Examples:
    """The examples of a split in sequences of at most `max_length` tokens. `seed`: of the run, for kinds that draw masks."""
    if spec.custom is not None:
        return (TextExamples if spec.custom.reads == "sequence" else WordExamples)(
            spec, split, max_length=max_length
        )
    maker = EXAMPLES[spec.kind]
    return maker(spec, split, max_length=max_length, **({"seed": seed} if spec.kind in DRAWN else {}))
