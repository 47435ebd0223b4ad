"""tasks.NAME.train_fraction: counts as in MT-DNN's domain adaptation,
classes in their shares, the same sample for the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from mtdnn_ds.data.examples.sampled import choose, sampled, train_labels
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.spec import TaskSpec

# Class sizes of the training sets:
# https://nlp.stanford.edu/projects/snli (549,367 pairs with a gold label), https://allenai.org/data/scitail
SNLI, SCITAIL = (183_416, 182_764, 183_187), (8_602, 14_994)


def strata(sizes: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.parametrize(
    ("sizes", "fraction", "number"),
    [
        (SNLI, 0.001, 549),
        (SNLI, 0.01, 5_493),
        (SNLI, 0.1, 54_936),
        (SCITAIL, 0.001, 23),
        (SCITAIL, 0.01, 235),
        (SCITAIL, 0.1, 2_359),
    ],
)
def test_samples_have_the_sizes_of_the_paper(sizes: tuple[int, ...], fraction: float, number: int) -> None:
    labels = strata(sizes)
    chosen = choose(labels, fraction=fraction, seed=0, task="t", each_stratum=True)
    assert len(chosen) == len(set(chosen.tolist())) == number
    expected = np.array(sizes) * number / sum(sizes)
    assert np.abs(np.bincount(labels[chosen]) - expected).max() < 1


def test_every_class_is_in_the_sample() -> None:
    labels = strata((1000, 1, 1))
    assert np.bincount(
        labels[choose(labels, fraction=0.01, seed=0, task="t", each_stratum=True)]
    ).tolist() == [8, 1, 1]
    assert np.bincount(
        labels[choose(labels, fraction=0.0001, seed=0, task="t", each_stratum=True)]
    ).tolist() == [1, 1, 1]


def test_the_sample_follows_from_task_and_seed() -> None:
    labels = strata((300, 200))
    drawn = [
        choose(labels, fraction=0.1, seed=seed, task=task, each_stratum=True)
        for seed, task in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))
    ]
    assert drawn[0].tolist() == drawn[1].tolist() == sorted(drawn[0])
    assert len({tuple(sample) for sample in drawn}) == 3
    # Every row as likely as any other: 4,000 draws of 1 of 50, twice the deviation of a fair draw at most.
    hits = np.bincount(
        [
            int(choose(strata((50,)), fraction=0.02, seed=seed, task="a", each_stratum=True)[0])
            for seed in range(4000)
        ],
        minlength=50,
    )
    assert abs(hits.std() - np.sqrt(80 * 0.98)) < 4.5


@dataclass
class Split:
    labels: np.ndarray
    fingerprint: str = "f"


class Base:
    """A hundred examples that gather as their own numbers."""

    def __init__(self, labels: np.ndarray) -> None:
        self.split, self.num_examples, self.lengths = Split(labels), len(labels), np.arange(len(labels)) + 5
        self.rows = np.arange(len(labels))

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Any:
        return examples_B.tolist(), epochs_B.tolist()

    def source_row(self, example: int) -> int:
        return example + 2


def spec(kind: str) -> TaskSpec:
    labels = ("no", "yes") if kind == "classification" else ()
    return TaskSpec(
        name="t", kind=kind, labels=labels, metrics=("accuracy",), splits=BUILTIN_TASKS["cola"].folder
    )


def test_a_sample_is_a_view_of_its_base() -> None:
    base: Any = Base(np.arange(100, dtype=np.float32) % 2)
    sample: Any = sampled(base, spec("classification"), fraction=0.1, seed=3)
    assert (sample.num_examples, np.bincount(train_labels(sample).astype(int)).tolist()) == (10, [5, 5])
    first, last = int(sample.chosen_E[0]), int(sample.chosen_E[9])
    assert sample.gather(np.array([9, 0]), np.array([1, 0])) == ([last, first], [1, 0])
    assert sample.lengths.tolist() == (sample.chosen_E + 5).tolist()
    assert sample.source_row(9) == last + 2
    other: Any = sampled(base, spec("classification"), fraction=0.1, seed=4)
    assert len({base.split.fingerprint, sample.split.fingerprint, other.split.fingerprint}) == 3
    assert sampled(base, spec("classification"), fraction=1.0, seed=3) is base


def test_scores_are_sampled_over_their_range() -> None:
    scores = np.random.default_rng(0).permutation(1000).astype(np.float32)
    sample = sampled(Base(scores), spec("regression"), fraction=0.05, seed=0)  # type: ignore[arg-type]
    # Five of each tenth of the scores.
    assert np.bincount((train_labels(sample) // 100).astype(int)).tolist() == [5] * 10


def test_other_kinds_are_sampled_from_all_examples_alike() -> None:
    sample = sampled(
        Base(np.full(1000, np.nan, dtype=np.float32)),
        replace(spec("regression"), kind="span"),
        fraction=0.05,
        seed=0,
    )  # type: ignore[arg-type]
    assert sample.num_examples == 50
