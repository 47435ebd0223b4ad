"""The same rows and texts in two places of a mixture: in training and development data, in several tasks,
twice in one split.

Compared by 64-bit hashes of their token ids. All hashes are never held at once: with many rows they are taken
in several passes, each over one part of the hashes. Loads no tokenizer and no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.row_hashes import HASHES_PER_PASS, hashed_blocks
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.tasks.spec import TaskSpec

SHORTEST_TEXT = 6  # tokens; shorter texts (names, yes) are alike by chance

# Share of a training split's rows that stand in it before, or in another task's, from which it is named.
REPEATED = 0.01

# Kinds whose texts are words, chunks and turns.
_WITHOUT_TEXTS = ("token_classification", "masked_lm", "conversational_span")

Pair = tuple[str, str]  # (where it stands again, where first): TASK/SPLIT


@dataclass(frozen=True, kw_only=True, slots=True)
class _Hashes:
    """Hashes in rising order, with the row of each."""

    values: np.ndarray  # uint64
    rows: np.ndarray  # int64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Split:
    """A split of the mixture."""

    spec: TaskSpec
    split_name: str
    data: PreparedSplit
    left_out: np.ndarray  # rows that the run does not train on

    @property
    def num_rows(self) -> int:
        return self.data.num_rows - len(self.left_out)

    @property
    def name(self) -> str:
        return f"{self.spec.name}/{self.split_name}"

    @property
    def is_train(self) -> bool:
        return self.split_name == "train"

    @property
    def num_texts(self) -> int:
        of_all = sum(len(shard.text_lengths) for shard in self.data.shards)
        return of_all - int(self.data.texts_per_row()[self.left_out].sum())

    @property
    def has_texts(self) -> bool:
        """Texts of their own, beside whole rows."""
        if self.spec.custom is not None and self.spec.custom.reads == "token":
            return False
        return self.spec.kind not in _WITHOUT_TEXTS


@dataclass(frozen=True, kw_only=True, slots=True)
class _HashedSplit:
    """A split in one pass."""

    split: _Split
    rows: _Hashes
    texts: _Hashes


@dataclass(slots=True)
class _Shared:
    """What two splits have in common, over all passes."""

    count: int = 0
    example: tuple[int, int] | None = None  # the first row of one, and its like in the other

    def add(self, ours: _Hashes, theirs: _Hashes, found: np.ndarray, places: np.ndarray) -> None:
        """`found`: of our hashes those that are among theirs, at `places`."""
        self.count += len(found)
        one = found[int(np.argmin(ours.rows[found]))]
        here, there = int(ours.rows[one]), int(theirs.rows[places[one]])
        if self.example is None or here < self.example[0]:
            self.example = here, there


@dataclass(slots=True)
class _Tally:
    """All that was found so far."""

    rows: dict[Pair, _Shared] = field(default_factory=dict)
    texts: dict[Pair, _Shared] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)  # of each training split
    contradicting: dict[str, int] = field(default_factory=dict)


def repeat_findings(data: RunData, hashes_per_pass: int = HASHES_PER_PASS) -> Iterator[str]:
    """A line for each thing found. The number of passes changes no line."""
    splits = [
        _Split(spec=spec, split_name=name, data=examples.split, left_out=_left_out(data, spec.name, name))
        for spec in data.specs
        for name, examples in data.examples[spec.name].items()
    ]
    num_hashes = sum(split.num_rows + split.num_texts for split in splits)
    num_passes = -(-num_hashes // hashes_per_pass)

    tally = _Tally()
    for number in range(num_passes):
        hashed = [_hashed(split, number, num_passes) for split in splits]
        _count(hashed, tally)

    by_name = {split.name: split for split in splits}
    yield from _shared_rows(tally, by_name)
    yield from _shared_texts(tally, by_name)
    yield from _repeated_rows(tally, by_name)


def _left_out(data: RunData, task: str, split_name: str) -> np.ndarray:
    if split_name != "train" or task not in data.leaks:
        return np.zeros(0, dtype=np.int64)
    return data.leaks[task].rows


# Counting


def _hashed(split: _Split, number: int, num_passes: int) -> _HashedSplit:
    """The hashes of one pass."""
    rows, row_numbers, texts, text_rows = [], [], [], []
    for block in hashed_blocks(split.data):
        kept = block.row_hashes % np.uint64(num_passes) == number
        kept &= ~np.isin(block.rows, split.left_out)
        rows.append(block.row_hashes[kept])
        row_numbers.append(block.rows[kept])
        if split.has_texts:
            is_long = block.text_lengths >= SHORTEST_TEXT
            kept = (block.text_hashes % np.uint64(num_passes) == number) & is_long
            kept &= ~np.isin(block.text_rows, split.left_out)
            texts.append(block.text_hashes[kept])
            text_rows.append(block.text_rows[kept])

    return _HashedSplit(split=split, rows=_sorted(rows, row_numbers), texts=_sorted(texts, text_rows))


def _sorted(hashes: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> _Hashes:
    values = np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
    numbers = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    order = np.argsort(values, kind="stable")
    return _Hashes(values=values[order], rows=numbers[order])


def _count(hashed: Sequence[_HashedSplit], tally: _Tally) -> None:
    training = [(place, one) for place, one in enumerate(hashed) if one.split.is_train]
    for _, one in training:
        _count_repeated(one, tally)

    for place, again in enumerate(hashed):
        for other, first in training:
            # Of two training splits the smaller one is said to share its rows.
            is_smaller = (again.split.num_rows, place) < (first.split.num_rows, other)
            if not again.split.is_train or is_smaller:
                _count_shared(again, first, tally)


def _count_repeated(one: _HashedSplit, tally: _Tally) -> None:
    """Rows that stand in a split before, and those of them that have another label there."""
    name, values = one.split.name, one.rows.values
    is_again = np.zeros(len(values), dtype=bool)
    is_again[1:] = values[1:] == values[:-1]
    tally.repeated[name] = tally.repeated.get(name, 0) + int(is_again.sum())

    labels = one.split.data.labels[one.rows.rows]
    if not len(labels) or np.isnan(labels).all():
        return

    # The first of its equals, for each: rows a a b b b have firsts 0 0 2 2 2.
    firsts = np.flatnonzero(~is_again)[np.cumsum(~is_again) - 1]
    differs = is_again & (labels != labels[firsts])
    tally.contradicting[name] = tally.contradicting.get(name, 0) + int(differs.sum())


def _count_shared(again: _HashedSplit, first: _HashedSplit, tally: _Tally) -> None:
    pair = (again.split.name, first.split.name)
    _add_shared(tally.rows, pair, again.rows, first.rows)
    if again.split.spec.name != first.split.spec.name:
        _add_shared(tally.texts, pair, again.texts, first.texts)


def _add_shared(shared: dict[Pair, _Shared], pair: Pair, ours: _Hashes, theirs: _Hashes) -> None:
    if not len(ours.values) or not len(theirs.values):
        return

    places = np.minimum(np.searchsorted(theirs.values, ours.values), len(theirs.values) - 1)
    found = np.flatnonzero(theirs.values[places] == ours.values)
    if found.size:
        shared.setdefault(pair, _Shared()).add(ours, theirs, found, places)


# Saying


def _shared_rows(tally: _Tally, splits: Mapping[str, _Split]) -> Iterator[str]:
    for again, first in _in_order(tally.rows, splits):
        shared = tally.rows[again.name, first.name]
        size = again.num_rows
        if again.is_train and shared.count <= REPEATED * min(size, first.num_rows):
            continue

        advice = "its score counts them as unseen"
        if again.is_train:
            advice = "they are drawn for both tasks"
        where = f"{first.name} too ({_example(shared, again, first)})"
        yield f"{again.name}: {shared.count:,} of {size:,} rows stand in {where}; {advice}"


def _shared_texts(tally: _Tally, splits: Mapping[str, _Split]) -> Iterator[str]:
    """Unless they are the texts of whole rows, which were said."""
    for again, first in _in_order(tally.texts, splits):
        shared = tally.texts[again.name, first.name]
        shared_rows = tally.rows.get((again.name, first.name), _Shared()).count
        in_rows = shared_rows * max(again.data.num_texts, 1)
        if shared.count <= max(in_rows, REPEATED * again.num_texts):
            continue

        where = f"{first.name} too ({_example(shared, again, first)})"
        yield f"{again.name}: {shared.count:,} of {again.num_texts:,} texts stand in {where}"


def _in_order(pairs: Mapping[Pair, _Shared], splits: Mapping[str, _Split]) -> Iterator[tuple[_Split, _Split]]:
    """The pairs that were found, in the order of the splits."""
    for again in splits.values():
        for first in splits.values():
            if (again.name, first.name) in pairs:
                yield again, first


def _example(shared: _Shared, again: _Split, first: _Split) -> str:
    assert shared.example is not None
    here = again.data.source_rows[shared.example[0]]
    there = first.data.source_rows[shared.example[1]]
    return f"row {here:,} is row {there:,} there"


def _repeated_rows(tally: _Tally, splits: Mapping[str, _Split]) -> Iterator[str]:
    for name, count in tally.repeated.items():
        contradicting, size = tally.contradicting.get(name, 0), splits[name].num_rows
        if count <= REPEATED * size and not contradicting:
            continue

        line = f"{name}: {count:,} of {size:,} rows stand in it before ({count / size:.1%})"
        if contradicting:
            line += f", {contradicting:,} of them with another label"
        yield line
