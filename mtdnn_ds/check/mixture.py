"""What would make a mixture's scores say less than they seem to: the same rows in training and development data or in several tasks, tasks
hardly seen, labels that never stand. From the prepared cache and the plan alone; trains nothing, loads no weights.

Rows and texts are compared by 64-bit hashes of their token ids. All hashes are never held at once: with many rows they are taken in several
passes, each over one part of the hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.row_hashes import hashed_blocks
from mtdnn_ds.data.plan.step_plan import StepPlan
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.tasks.spec import TaskSpec

HASHES_PER_PASS = 2**24  # of rows and texts; about 0.5 GB with their order
SHORTEST_TEXT = 6  # tokens; shorter texts (names, yes) are alike by chance
MOST_FREQUENT = 0.95  # share of a label from which it is named
REPEATED = 0.01  # share of a training split's rows that stand in it before, or in another task's, from which it is named
_WITHOUT_TEXTS = (
    "token_classification",
    "masked_lm",
    "conversational_span",
)  # their texts are words, chunks and turns


@dataclass(slots=True)
class _Hashes:
    """Of one split, in one pass: sorted, with the row of each."""

    name: str  # TASK/SPLIT
    task: str
    split: PreparedSplit
    rows: np.ndarray
    row_numbers: np.ndarray
    texts: np.ndarray
    text_rows: np.ndarray


@dataclass(slots=True)
class _Shared:
    """What two splits have in common, over all passes."""

    count: int = 0
    example: tuple[int, int] | None = None


@dataclass(slots=True)
class _Tally:
    rows: dict[tuple[str, str], _Shared] = field(default_factory=dict)  # (where it stands again, where first)
    texts: dict[tuple[str, str], _Shared] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    contradicting: dict[str, int] = field(default_factory=dict)


def mixture_findings(data: RunData, plan: StepPlan, *, hashes_per_pass: int = HASHES_PER_PASS) -> list[str]:
    """A line for each thing found; most of a run's data give none."""
    return [
        *_repeats(data, hashes_per_pass),
        *_seldom(data, plan),
        *(line for spec in data.specs for line in _labels(data, spec)),
    ]


# The same rows and texts


def _repeats(data: RunData, hashes_per_pass: int) -> Iterator[str]:
    splits = [
        (spec, name, data.examples[spec.name][name].split)
        for spec in data.specs
        for name in data.examples[spec.name]
    ]
    total = sum(
        split.num_rows + sum(len(shard.text_lengths) for shard in split.shards) for _, _, split in splits
    )
    num_passes = -(-total // hashes_per_pass)
    tally = _Tally()
    for part in range(num_passes):
        hashed = [_hashes(spec, name, split, part, num_passes) for spec, name, split in splits]
        for one in hashed:
            if one.name.endswith("/train"):
                _count_repeated(one, tally)
        for place, again in enumerate(hashed):
            for other, first in enumerate(hashed):
                # Of two training splits the smaller one is said to share its rows.
                if first.name.endswith("/train") and (
                    not again.name.endswith("/train")
                    or (again.split.num_rows, place) < (first.split.num_rows, other)
                ):
                    _count_shared(again, first, tally)
    by_name = {f"{spec.name}/{name}": split for spec, name, split in splits}
    yield from _shared_lines(tally, by_name)
    for name, count in tally.repeated.items():
        contradicting = tally.contradicting.get(name, 0)
        size = by_name[name].num_rows
        if count > REPEATED * size or contradicting:
            more = f", {contradicting:,} of them with another label" if contradicting else ""
            yield f"{name}: {count:,} of {size:,} rows stand in it before ({count / size:.1%}){more}"


def _hashes(spec: TaskSpec, name: str, split: PreparedSplit, number: int, num_passes: int) -> _Hashes:
    """The hashes of one pass, sorted."""
    rows, row_numbers, texts, text_rows = [], [], [], []
    with_texts = spec.kind not in _WITHOUT_TEXTS and not (
        spec.custom is not None and spec.custom.reads == "token"
    )
    for block in hashed_blocks(split):
        kept = block.row_hashes % np.uint64(num_passes) == number
        rows.append(block.row_hashes[kept])
        row_numbers.append(block.rows[kept])
        if with_texts:
            kept = (block.text_hashes % np.uint64(num_passes) == number) & (
                block.text_lengths >= SHORTEST_TEXT
            )
            texts.append(block.text_hashes[kept])
            text_rows.append(block.text_rows[kept])
    row_hashes, row_order = _sorted(rows)
    text_hashes, text_order = _sorted(texts)
    return _Hashes(
        name=f"{spec.name}/{name}",
        task=spec.name,
        split=split,
        rows=row_hashes,
        row_numbers=_joined(row_numbers)[row_order],
        texts=text_hashes,
        text_rows=_joined(text_rows)[text_order],
    )


def _sorted(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
    order = np.argsort(values, kind="stable")
    return values[order], order


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _count_repeated(one: _Hashes, tally: _Tally) -> None:
    is_again = np.concatenate((np.zeros(min(len(one.rows), 1), dtype=bool), one.rows[1:] == one.rows[:-1]))
    tally.repeated[one.name] = tally.repeated.get(one.name, 0) + int(is_again.sum())
    labels = one.split.labels[one.row_numbers]
    if len(labels) and not np.isnan(labels).all():
        firsts = np.flatnonzero(~is_again)
        differs = is_again & (labels != labels[firsts[np.cumsum(~is_again) - 1]])
        tally.contradicting[one.name] = tally.contradicting.get(one.name, 0) + int(differs.sum())


def _count_shared(again: _Hashes, first: _Hashes, tally: _Tally) -> None:
    pair = (again.name, first.name)
    _add(tally.rows, pair, again.rows, again.row_numbers, first.rows, first.row_numbers)
    if again.task != first.task:
        _add(tally.texts, pair, again.texts, again.text_rows, first.texts, first.text_rows)


def _add(
    shared: dict[tuple[str, str], _Shared],
    pair: tuple[str, str],
    ours: np.ndarray,
    our_rows: np.ndarray,
    theirs: np.ndarray,
    their_rows: np.ndarray,
) -> None:
    if not len(ours) or not len(theirs):
        return
    places = np.minimum(np.searchsorted(theirs, ours), len(theirs) - 1)
    found = np.flatnonzero(theirs[places] == ours)
    if not found.size:
        return
    entry = shared.setdefault(pair, _Shared())
    entry.count += len(found)
    one = found[int(np.argmin(our_rows[found]))]
    here, there = int(our_rows[one]), int(their_rows[places[one]])
    if entry.example is None or here < entry.example[0]:
        entry.example = here, there


def _shared_lines(tally: _Tally, splits: dict[str, PreparedSplit]) -> Iterator[str]:
    pairs = [(again, first) for again in splits for first in splits]
    for again, first in (pair for pair in pairs if pair in tally.rows):
        shared, size = tally.rows[again, first], splits[again].num_rows
        is_leak = not again.endswith("/train")
        if is_leak or shared.count > REPEATED * min(size, splits[first].num_rows):
            advice = "its score counts them as unseen" if is_leak else "they are drawn for both tasks"
            yield f"{again}: {shared.count:,} of {size:,} rows stand in {first} too ({_example(shared, again, first, splits)}); {advice}"
    for again, first in (pair for pair in pairs if pair in tally.texts):
        shared, num_texts = (
            tally.texts[again, first],
            sum(len(shard.text_lengths) for shard in splits[again].shards),
        )
        in_rows = tally.rows.get((again, first), _Shared()).count * max(
            splits[again].num_texts, 1
        )  # texts of whole rows, said above
        if shared.count > max(in_rows, REPEATED * num_texts):
            yield f"{again}: {shared.count:,} of {num_texts:,} texts stand in {first} too ({_example(shared, again, first, splits)})"


def _example(shared: _Shared, again: str, first: str, splits: dict[str, PreparedSplit]) -> str:
    assert shared.example is not None
    here, there = splits[again].source_rows[shared.example[0]], splits[first].source_rows[shared.example[1]]
    return f"row {here:,} is row {there:,} there"


# Tasks hardly seen


def _seldom(data: RunData, plan: StepPlan) -> Iterator[str]:
    drawn, epochs = plan.drawn(plan.total_steps), plan.epochs(plan.total_steps)
    for name, count, passes in zip(plan.task_names, drawn, epochs, strict=True):
        if count > 0 and round(float(passes), 2) < 1:  # none at all is said for itself
            yield f"{name}: {count:,} of its {data.train_sizes[name]:,} training examples are seen in the run ({passes:.2f} epochs); train longer, or raise its rate"


# Labels


def _labels(data: RunData, spec: TaskSpec) -> Iterator[str]:
    if not spec.labels or spec.kind not in ("classification", "token_classification"):
        return
    counts = {
        name: _label_counts(spec, examples.split) for name, examples in data.examples[spec.name].items()
    }
    train = counts["train"]
    for index, label in enumerate(spec.labels):
        elsewhere = [name for name, of_split in counts.items() if name != "train" and of_split[index]]
        if train[index] == 0 and not (
            label.startswith("I-") and train[spec.labels.index(f"B-{label[2:]}")]
        ):  # entities of one word
            stands = (
                f", but in {', '.join(f'{name} {counts[name][index]:,} times' for name in elsewhere)}"
                if elsewhere
                else ", nor anywhere else"
            )
            yield f"{spec.name}: label '{label}' never stands in train{stands}; take it out of labels, or look at the data"
    for name, of_split in counts.items():
        share = of_split.max() / max(of_split.sum(), 1)
        label = spec.labels[int(of_split.argmax())]
        if share > MOST_FREQUENT and not (spec.kind == "token_classification" and label == "O"):
            yield f"{spec.name}/{name}: {share:.1%} of its labels are '{label}': always answering it has this accuracy; look at another metric"


def _label_counts(spec: TaskSpec, split: PreparedSplit) -> np.ndarray:
    counts = np.zeros(len(spec.labels), dtype=np.int64)
    for shard in split.shards:
        labels = (
            shard.extra["tags"].values.to_numpy() if spec.kind == "token_classification" else shard.labels
        )
        known = labels[~np.isnan(labels)] if labels.dtype.kind == "f" else labels
        counts += np.bincount(known[known >= 0].astype(np.int64), minlength=len(spec.labels))
    return counts
