"""Readers: what the cache keeps of a row, for each kind of task. One table; parsers of single kinds are in data/rows*.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from mtdnn_ds.data.rows import CheckedRow, RowParser, texts_and_label
from mtdnn_ds.data.rows_documents import document
from mtdnn_ds.tasks.spec import Source, TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """How the rows of a kind are parsed, and what is kept of them beside tokens, label and row number."""

    parser: Callable[[TaskSpec, Source], RowParser]
    extra: Mapping[str, pa.DataType] = field(default_factory=dict)  # further columns: keys of CheckedRow.extra
    keeps_offsets: bool = False  # column token_offsets: start and end of each token in its text, two numbers a token
    keeps_words: bool = False  # column word_starts: 1 for each token that begins a word, as the tokenizer cuts words, else 0
    grouped: Callable[[Iterator[CheckedRow]], Iterator[CheckedRow]] | None = None  # makes one row of several
    options: tuple[str, ...] = ()  # the spec's options that decide what a row is, and so belong to the cache's key


_TEXTS = Reader(parser=texts_and_label)

READERS: Mapping[str, Reader] = {
    "classification": _TEXTS,
    "regression": _TEXTS,
    "masked_lm": Reader(parser=document, keeps_words=True),
}


def reader_of(spec: TaskSpec) -> Reader:
    """The reader of a task's kind; a kind of the user's own reads texts and a label."""
    return _TEXTS if spec.custom is not None else READERS[spec.kind]
