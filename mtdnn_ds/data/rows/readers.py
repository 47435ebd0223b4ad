"""Readers: how rows of each kind of task are parsed, and what the cache keeps of them. One table.

The parsers of single kinds are in the files beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from mtdnn_ds.data.rows.answers import SPAN_COLUMNS, TURN_COLUMNS, span_rows, turn_rows
from mtdnn_ds.data.rows.checked import GroupRows, RowParser, texts_and_label
from mtdnn_ds.data.rows.choices import candidate, choices_and_index, queries_of
from mtdnn_ds.data.rows.documents import document
from mtdnn_ds.data.rows.words import words_and_numbers, words_and_tags
from mtdnn_ds.tasks.spec import Source, TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """How the rows of a kind are parsed, and what is kept of them beside tokens, label and row number."""

    parser: Callable[[TaskSpec, Source], RowParser]
    # Further columns: keys of CheckedRow.extra.
    extra: Mapping[str, pa.DataType] = field(default_factory=dict)
    # Column token_offsets: start and end of each token in its text, two numbers a token.
    keeps_offsets: bool = False
    # Column word_starts: 1 for each token that begins a word, as the tokenizer cuts words, else 0.
    keeps_words: bool = False
    # Each text is a word of one sentence, and is cut into tokens as inside it.
    texts_are_words: bool = False
    # Makes one row of several.
    grouped: GroupRows | None = None
    # The spec's options that decide what a row is, and so belong to the cache's key.
    options: tuple[str, ...] = ()


_FLAGS = pa.large_list(pa.int8())
_TEXTS = Reader(parser=texts_and_label)
_OWN_WORDS = Reader(
    parser=words_and_numbers, extra={"tags": pa.large_list(pa.float32())}, texts_are_words=True
)

READERS: Mapping[str, Reader] = {
    "classification": _TEXTS,
    "regression": _TEXTS,
    "similarity": _TEXTS,
    "multiple_choice": Reader(parser=choices_and_index, extra={"right": _FLAGS}),
    "ranking": Reader(
        parser=candidate, extra={"right": _FLAGS}, grouped=queries_of, options=("relevant_label",)
    ),
    "token_classification": Reader(
        parser=words_and_tags, extra={"tags": pa.large_list(pa.int16())}, texts_are_words=True
    ),
    "span": Reader(parser=span_rows, extra=SPAN_COLUMNS, keeps_offsets=True),
    "conversational_span": Reader(
        parser=turn_rows, extra=TURN_COLUMNS, keeps_offsets=True, options=("history_turns",)
    ),
    "masked_lm": Reader(parser=document, keeps_words=True),
}


def reader_of(spec: TaskSpec) -> Reader:
    """The reader of a task's kind; a user's own kind reads texts and a label, or words with a label each."""
    if spec.custom is None:
        return READERS[spec.kind]
    if spec.custom.reads == "sequence":
        return _TEXTS
    return _OWN_WORDS
