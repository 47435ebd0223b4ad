"""What would make a mixture's scores say less than they seem to: rows in two places (repeats.py), tasks
hardly seen, labels that never stand. From the prepared cache and the plan alone; trains nothing, loads no
weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from mtdnn_ds.check.repeats import repeat_findings
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.data.cache.row_hashes import HASHES_PER_PASS
from mtdnn_ds.data.plan.task_part import Plan
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.tasks.spec import TaskSpec

MOST_FREQUENT = 0.95  # share of a label from which it is named


def mixture_findings(data: RunData, plan: Plan, *, hashes_per_pass: int = HASHES_PER_PASS) -> list[str]:
    """A line for each thing found; most of a run's data give none. Of tasks that the plan trains."""
    data = replace(data, specs=tuple(spec for spec in data.specs if spec.name in plan.trained_tasks))
    labels = [line for spec in data.specs for line in _label_findings(data, spec)]
    return [*repeat_findings(data, hashes_per_pass), *_seldom_seen(data, plan), *labels]


def _seldom_seen(data: RunData, plan: Plan) -> Iterator[str]:
    """Tasks whose training examples are not all drawn."""
    drawn, epochs = plan.drawn(plan.total_steps), plan.epochs(plan.total_steps)
    for name, count, passes in zip(plan.task_names, drawn, epochs, strict=True):
        if name not in plan.trained_tasks:
            continue
        if count == 0 or round(float(passes), 2) >= 1:  # none at all is said for itself
            continue
        yield (
            f"{name}: {count:,} of its {data.train_sizes[name]:,} training examples are seen in the run "
            f"({passes:.2f} epochs); train longer, or raise its rate"
        )


def _label_findings(data: RunData, spec: TaskSpec) -> Iterator[str]:
    """Labels that training never sees, and splits of nearly one label."""
    if not spec.labels or spec.kind not in ("classification", "token_classification"):
        return

    counts = {
        name: _label_counts(spec, examples.split) for name, examples in data.examples[spec.name].items()
    }
    if spec.name in data.leaks:
        split = data.examples[spec.name]["train"].split
        counts["train"] -= _label_counts(spec, split, only=data.leaks[spec.name].rows)
    yield from _unseen_labels(spec, counts)
    yield from _frequent_labels(spec, counts)


def _unseen_labels(spec: TaskSpec, counts: Mapping[str, np.ndarray]) -> Iterator[str]:
    train = counts["train"]
    for index, label in enumerate(spec.labels):
        if train[index] or _continues_seen_entity(spec, label, train):
            continue

        elsewhere = [
            f"{name} {of_split[index]:,} times"
            for name, of_split in counts.items()
            if name != "train" and of_split[index]
        ]
        stands = ", nor anywhere else"
        if elsewhere:
            stands = f", but in {', '.join(elsewhere)}"
        yield (
            f"{spec.name}: label '{label}' never stands in train{stands}; take it out of labels, or look at "
            "the data"
        )


def _continues_seen_entity(spec: TaskSpec, label: str, train: np.ndarray) -> bool:
    """I-X, where B-X stands in train: its entities are of one word."""
    return label.startswith("I-") and bool(train[spec.labels.index(f"B-{label[2:]}")])


def _frequent_labels(spec: TaskSpec, counts: Mapping[str, np.ndarray]) -> Iterator[str]:
    for name, of_split in counts.items():
        share = of_split.max() / max(of_split.sum(), 1)
        label = spec.labels[int(of_split.argmax())]
        is_no_entity = spec.kind == "token_classification" and label == "O"
        if share > MOST_FREQUENT and not is_no_entity:
            yield (
                f"{spec.name}/{name}: {share:.1%} of its labels are '{label}': always answering it has this "
                "accuracy; look at another metric"
            )


def _label_counts(spec: TaskSpec, split: PreparedSplit, only: np.ndarray | None = None) -> np.ndarray:
    """(labels,) int64: how often each stands in the split, or in some rows of it."""
    counts = np.zeros(len(spec.labels), dtype=np.int64)
    for index, shard in enumerate(split.shards):
        labels, tags = shard.labels, shard.extra.get("tags")
        if only is not None:
            first = index * split.rows_per_shard
            rows = only[(only >= first) & (only < first + len(labels))] - first
            labels = labels[rows]
            if tags is not None:
                tags = tags.take(rows)
        if spec.kind == "token_classification":
            assert tags is not None
            labels = tags.flatten().to_numpy()
        if labels.dtype.kind == "f":
            labels = labels[~np.isnan(labels)]
        counts += np.bincount(labels[labels >= 0].astype(np.int64), minlength=len(spec.labels))
    return counts
