"""SetOfView: the rows of one view as sequences and targets, in memory. Runs no model.

Shape legend: R rows, E examples (rows, or windows of them), B examples asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.record_batches import record_batch, schema_of, shard_of
from mtdnn_ds.data.cache.tokenize import SpecialTokens, room_for_texts
from mtdnn_ds.data.examples import Decoded, Examples, Gathered, TargetRows, TermOutputs, make_examples
from mtdnn_ds.data.examples.texts import TextExamples
from mtdnn_ds.data.rows.checked import CheckedRow, texts_and_label
from mtdnn_ds.data.rows.readers import READERS, Reader
from mtdnn_ds.predict.inputs import reads_words
from mtdnn_ds.predict.views import View
from mtdnn_ds.predict.word_rows import NOT_DECODED, WordRows, rows_of_text, rows_of_words
from mtdnn_ds.tasks.layout import HeadLayout
from mtdnn_ds.tasks.spec import TaskSpec

_TEXTS = Reader(parser=texts_and_label)
_TEXTS_OF_WORDS = Reader(parser=texts_and_label, keeps_offsets=True)
_KIND_OF_VIEW = {
    "words": "token_classification",
    "choices": "multiple_choice",
    "windows": "span",
    "turns": "conversational_span",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizing:
    """How the model's texts become tokens."""

    tokenizer: Any
    specials: SpecialTokens
    max_length: int


class SetOfView:
    """One or several sequences an example; of its lane's terms, those of the view's tasks have rows of it."""

    def __init__(
        self,
        view: View,
        split: PreparedSplit,
        makers: Sequence[Examples],
        maker_of: Mapping[int, int],
        terms: Sequence[tuple[int, str]],
    ) -> None:
        """`makers` differ in their targets, not in their sequences.

        `maker_of`: task -> which of them; `terms`: (task, form) of the lane's terms.
        """
        self.view, self.split = view, split
        self.makers, self.maker_of = makers, maker_of
        self.num_examples, self.lengths = makers[0].num_examples, makers[0].lengths
        self.rows = makers[0].rows
        self._terms = terms

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        """The sequences, and targets of every term of the lane; those of tasks that do not ask are empty."""
        parts = [maker.gather(examples_B, epochs_B) for maker in self.makers]
        number_of: dict[int, int] = {}
        targets = []
        for task, form in self._terms:
            if task not in self.maker_of:
                targets.append(_nothing(form))
                continue

            number = number_of.get(task, 0)  # of the task's terms
            number_of[task] = number + 1
            targets.append(parts[self.maker_of[task]].targets[number])
        return replace(parts[0], targets=targets)

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        raise AssertionError(NOT_DECODED)

    def source_row(self, example: int) -> int:
        """The row of the input that an example was made of."""
        return self.makers[0].source_row(example)

    def maker(self, task: int) -> Examples:
        """What made the targets of a task."""
        return self.makers[self.maker_of[task]]


def _nothing(form: str) -> TargetRows:
    """No rows of a term."""
    none = np.zeros(0, dtype=np.int64)
    extra = {}
    if form == "san":
        extra["segments"] = np.zeros((0, 4), dtype=np.int64)
    return TargetRows(rows=none, labels=np.zeros(0, dtype=np.float32), examples=none, extra=extra)


def set_of_view(
    view: View,
    rows: Sequence[CheckedRow],
    specs: Sequence[TaskSpec],
    layout: HeadLayout,
    lanes: Sequence[int],
    tokenizing: Tokenizing,
) -> SetOfView:
    """The rows of a view, tokenised. `lanes[task]`: the lane of each of the model's tasks."""
    if view.prefix:
        rows = [row._replace(texts=(view.prefix + row.texts[0],)) for row in rows]
    word_tasks = [task for task in view.tasks if reads_words(specs[task])]
    split = _split(rows, _reader(view, asks_words=bool(word_tasks)), tokenizing)

    makers: list[Examples] = []
    maker_of: dict[int, int] = {}
    place_of: dict[object, int] = {}
    for task in view.tasks:
        spec = specs[task]
        key = "words" if task in word_tasks else spec.head
        if key not in place_of:
            place_of[key] = len(makers)
            if task in word_tasks:
                makers.append(_words(view, split, rows, tokenizing))
            else:
                makers.append(_examples(spec, split, tokenizing))
        maker_of[task] = place_of[key]
    return SetOfView(view, split, makers, maker_of, _terms_of_lane(view, layout, lanes))


def set_of_rows(
    view: View, rows: Sequence[CheckedRow], layout: HeadLayout, lanes: Sequence[int], tokenizing: Tokenizing
) -> SetOfView:
    """The rows of a view of one text or two as sequences that no task asks about."""
    split = _split(rows, _TEXTS, tokenizing)
    nobody = TaskSpec(name="nobody", kind="classification", labels=(), metrics=(), splits={})
    makers = [TextExamples(nobody, split, max_length=tokenizing.max_length)]
    return SetOfView(view, split, makers, {}, _terms_of_lane(view, layout, lanes))


def _terms_of_lane(view: View, layout: HeadLayout, lanes: Sequence[int]) -> list[tuple[int, str]]:
    """(task, form) of the terms whose tasks share the view's lane."""
    return [(term.task, term.form) for term in layout.terms if lanes[term.task] == view.lane]


def _reader(view: View, *, asks_words: bool) -> Reader:
    """How rows of the view are cut into tokens; `asks_words`: some task asks about the words of its texts."""
    if view.kind in _KIND_OF_VIEW:
        return READERS[_KIND_OF_VIEW[view.kind]]
    if asks_words:
        return _TEXTS_OF_WORDS
    return _TEXTS


def _examples(spec: TaskSpec, split: PreparedSplit, tokenizing: Tokenizing) -> Examples:
    if spec.kind == "ranking":  # a row is a query and one candidate, and is scored alone
        return TextExamples(spec, split, max_length=tokenizing.max_length)
    return make_examples(spec, split, max_length=tokenizing.max_length)


def _words(view: View, split: PreparedSplit, rows: Sequence[CheckedRow], tokenizing: Tokenizing) -> WordRows:
    if view.kind == "words":
        return rows_of_words(split, [row.texts for row in rows], max_length=tokenizing.max_length)

    before = len(view.prefix)
    texts = [row.texts[0][before:] for row in rows]
    return rows_of_text(split, texts, num_before=before, max_length=tokenizing.max_length)


def _split(rows: Sequence[CheckedRow], reader: Reader, tokenizing: Tokenizing) -> PreparedSplit:
    batch = record_batch(rows, tokenizing.tokenizer, schema_of(tokenizing.tokenizer, reader), reader)
    shard = shard_of(batch)
    counts = {len(row.texts) for row in rows}
    return PreparedSplit(
        task="input",
        split="rows",
        num_rows=len(rows),
        labels=shard.labels,
        source_rows=shard.source_rows,
        skipped={},
        fingerprint="",
        specials=tokenizing.specials,
        num_texts=counts.pop() if len(counts) == 1 else 0,  # 0: rows differ
        rows_per_shard=len(rows),
        shards=(shard,),
    )


def truncated_rows(part: SetOfView, max_length: int) -> np.ndarray:
    """(R,) bool: rows that lose tokens to max_length.

    Windows lose none of a context, only of a question that fills half of them.
    """
    split, specials = part.split, part.split.specials
    single = room_for_texts(specials.single, max_length)
    pair = room_for_texts(specials.pair, max_length)

    kind = part.view.kind
    if kind == "windows":
        return np.asarray(split.text_lengths().reshape(-1, 2)[:, 0] > pair // 2)
    if kind == "turns":  # the oldest turns are left out, as in training
        return np.zeros(split.num_rows, dtype=bool)
    if kind == "two":
        return np.asarray((split.text_lengths().reshape(-1, 2) > single).any(axis=1))
    if kind == "choices":
        counts, lengths = split.texts_per_row(), split.text_lengths()
        begins = np.cumsum(counts) - counts
        both = lengths + np.repeat(lengths[begins], counts)
        both[begins] = 0
        return np.maximum.reduceat(both, begins) > pair
    if kind == "pair":
        return np.asarray(split.row_lengths() > pair)
    return np.asarray(split.row_lengths() > single)
