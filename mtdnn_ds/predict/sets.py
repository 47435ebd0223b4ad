"""SetOfView: the rows of one view as the sequences and targets that collate lays out, in memory. Runs no model.

Shape legend: R rows, E examples (rows, or windows of them), B examples asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtdnn_ds.data.cache.build import shard_of
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.record_batches import record_batch, schema_of
from mtdnn_ds.data.cache.tokenize import SpecialTokens, room_for_texts
from mtdnn_ds.data.examples import Decoded, Examples, Gathered, TargetRows, TermOutputs, make_examples
from mtdnn_ds.data.examples.texts import TextExamples
from mtdnn_ds.data.rows.checked import CheckedRow, texts_and_label
from mtdnn_ds.data.rows.readers import READERS, Reader
from mtdnn_ds.predict.views import View
from mtdnn_ds.predict.word_rows import WordRows, rows_of_text, rows_of_words
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
    """One sequence (or several) an example, and of the terms of all tasks of its lane those of the view's tasks have rows of it."""

    def __init__(
        self,
        view: View,
        split: PreparedSplit,
        makers: Sequence[Examples],
        maker_of: Mapping[int, int],
        terms: Sequence[tuple[int, str]],
    ) -> None:
        """`makers` differ in their targets, not in their sequences; `maker_of`: task -> which; `terms`: (task, form) of the lane's terms."""
        self.view, self.split, self.makers, self.maker_of = view, split, makers, maker_of
        self.num_examples, self.lengths = makers[0].num_examples, makers[0].lengths
        self._terms = terms

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
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
        first = parts[0]
        return Gathered(
            input_ids=first.input_ids, token_type_ids=first.token_type_ids, lengths=first.lengths, examples=first.examples, targets=targets
        )  # fmt: skip

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        raise AssertionError(
            "answers are made of the outputs elsewhere, and there is nothing to compare them with"
        )

    def source_row(self, example: int) -> int:
        return self.makers[0].source_row(example)

    def maker(self, task: int) -> Examples:
        return self.makers[self.maker_of[task]]


def _nothing(form: str) -> TargetRows:
    none = np.zeros(0, dtype=np.int64)
    extra = {"segments": np.zeros((0, 4), dtype=np.int64)} if form == "san" else {}
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
    word_tasks = [task for task in view.tasks if _reads_tokens(specs[task])]
    plain = _TEXTS_OF_WORDS if word_tasks else _TEXTS
    reader = READERS[_KIND_OF_VIEW[view.kind]] if view.kind in _KIND_OF_VIEW else plain
    split = _split(rows, reader, tokenizing)
    makers: list[Examples] = []
    maker_of: dict[int, int] = {}
    place_of: dict[object, int] = {}
    for task in view.tasks:
        spec = specs[task]
        key = "words" if task in word_tasks else spec.head
        if key not in place_of:
            place_of[key] = len(makers)
            makers.append(
                _words(view, split, rows, tokenizing)
                if task in word_tasks
                else _examples(view, spec, split, tokenizing)
            )
        maker_of[task] = place_of[key]
    terms = [(term.task, term.form) for term in layout.terms if lanes[term.task] == view.lane]
    return SetOfView(view, split, makers, maker_of, terms)


def set_of_rows(
    view: View, rows: Sequence[CheckedRow], layout: HeadLayout, lanes: Sequence[int], tokenizing: Tokenizing
) -> SetOfView:
    """The rows of a view of one text or two as sequences that no task asks about."""
    split = _split(rows, _TEXTS, tokenizing)
    nobody = TaskSpec(name="nobody", kind="classification", labels=(), metrics=(), splits={})
    terms = [(term.task, term.form) for term in layout.terms if lanes[term.task] == view.lane]
    return SetOfView(view, split, [TextExamples(nobody, split, max_length=tokenizing.max_length)], {}, terms)


def _reads_tokens(spec: TaskSpec) -> bool:
    return spec.kind == "token_classification" if spec.custom is None else spec.custom.reads == "token"


def _examples(view: View, spec: TaskSpec, split: PreparedSplit, tokenizing: Tokenizing) -> Examples:
    if spec.kind == "ranking":  # a row is a query and one candidate, and is scored alone
        return TextExamples(spec, split, max_length=tokenizing.max_length)
    return make_examples(spec, split, max_length=tokenizing.max_length)


def _words(view: View, split: PreparedSplit, rows: Sequence[CheckedRow], tokenizing: Tokenizing) -> WordRows:
    if view.kind == "words":
        return rows_of_words(split, [row.texts for row in rows], max_length=tokenizing.max_length)
    before = len(view.prefix)
    return rows_of_text(
        split, [row.texts[0][before:] for row in rows], num_before=before, max_length=tokenizing.max_length
    )


def _split(rows: Sequence[CheckedRow], reader: Reader, tokenizing: Tokenizing) -> PreparedSplit:
    batch = record_batch(rows, tokenizing.tokenizer, schema_of(tokenizing.tokenizer, reader), reader)
    shard = shard_of(batch)
    counts = {len(row.texts) for row in rows}
    return PreparedSplit(
        task="input", split="rows", num_rows=len(rows), labels=shard.labels, source_rows=shard.source_rows, skipped={}, fingerprint="",
        specials=tokenizing.specials, num_texts=counts.pop() if len(counts) == 1 else 0, rows_per_shard=len(rows), shards=(shard,),
    )  # fmt: skip


def truncated_rows(part: SetOfView, max_length: int) -> np.ndarray:
    """(R,) bool: rows that lose tokens to max_length. Windows lose none of a context, only of a question that fills half of them."""
    split, view = part.split, part.view
    single, pair = (
        room_for_texts(template, max_length) for template in (split.specials.single, split.specials.pair)
    )
    if view.kind == "windows":
        return np.asarray(split.text_lengths().reshape(-1, 2)[:, 0] > pair // 2)
    if view.kind == "turns":  # the oldest turns are left out, as in training
        return np.zeros(split.num_rows, dtype=bool)
    if view.kind == "two":
        return np.asarray((split.text_lengths().reshape(-1, 2) > single).any(axis=1))
    if view.kind == "choices":
        counts, lengths = split.texts_per_row(), split.text_lengths()
        begins = np.cumsum(counts) - counts
        both = lengths + np.repeat(lengths[begins], counts)
        both[begins] = 0
        return np.maximum.reduceat(both, begins) > pair
    return np.asarray(split.row_lengths() > (pair if view.kind == "pair" else single))
