"""A part of another set of training examples: fewer of them, each as it was. Decides which of a sample;
changes none.

Of n examples a fraction f keeps floor(f n), as MT-DNN's domain adaptation counts them (Liu et al. 2019,
arXiv:1901.11504, table 5: SNLI's 549,367 rows give 549, 5,493 and 54,936; SciTail's 23,596 give 23, 235 and
2,359), but at least one of every class.

Shape legend: N examples of the base, E of the sample.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from mtdnn_ds.counter_hash import stream_of
from mtdnn_ds.data.examples.base import Decoded, Examples, Gathered, TermOutputs
from mtdnn_ds.data.plan.apportion import largest_remainder
from mtdnn_ds.data.plan.permutation import permute
from mtdnn_ds.tasks.spec import TaskSpec

SCORE_BINS = 10  # of a regression's labels, as many rows in each


class SampledExamples:
    """Examples `chosen_E` of `base`, which may be such a set itself.

    Masks and rows stay those of the base's example; the fingerprint names the sample.
    """

    def __init__(self, base: Examples, chosen_E: np.ndarray) -> None:
        self.base, self.chosen_E = base, chosen_E
        self.num_examples = len(chosen_E)
        self.lengths, self.rows = base.lengths[chosen_E], base.rows[chosen_E]
        contents = base.split.fingerprint.encode() + chosen_E.astype("<i8").tobytes()
        self.split = replace(base.split, fingerprint=hashlib.sha256(contents).hexdigest())

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        return self.base.gather(self.chosen_E[examples_B], epochs_B)

    def decode(self, outputs: Sequence[TermOutputs]) -> Decoded:
        raise AssertionError("a sample of training examples is trained on, never scored")

    def source_row(self, example: int) -> int:
        return self.base.source_row(int(self.chosen_E[example]))


def sampled(base: Examples, spec: TaskSpec, *, fraction: float, seed: int) -> Examples:
    """A sample of `base`: by class for classifications, by bins of the score for regressions.

    Else it is one of all examples alike. Which are drawn follows from the task's name, `seed` and the labels;
    `fraction` 1 gives `base` itself.
    """
    if fraction == 1 or base.num_examples == 0:
        return base

    strata_N = np.zeros(base.num_examples, dtype=np.int64)
    by_class = spec.kind == "classification"
    if by_class:
        strata_N = train_labels(base).astype(np.int64)
    elif spec.kind == "regression":
        rank_N = np.argsort(np.argsort(train_labels(base), kind="stable"), kind="stable")
        strata_N = rank_N * SCORE_BINS // base.num_examples

    chosen_E = choose(strata_N, fraction=fraction, seed=seed, task=spec.name, each_stratum=by_class)
    return SampledExamples(base, chosen_E)


def train_labels(examples: Examples) -> np.ndarray:
    """Labels of a training set of one row an example, without those of rows left out."""
    return values_of_rows(examples, examples.split.labels)


def values_of_rows(examples: Examples, values_R: np.ndarray) -> np.ndarray:
    """What a row has, of a training set of one row an example: without those of rows left out."""
    return values_R[examples.rows]


def without_rows(base: Examples, rows: np.ndarray) -> Examples:
    """`base` without the examples that were made of `rows` of its split; `base` itself if there are none."""
    chosen_E = np.flatnonzero(~np.isin(base.rows, rows))
    if len(chosen_E) == base.num_examples:
        return base
    return SampledExamples(base, chosen_E)


def choose(strata_N: np.ndarray, *, fraction: float, seed: int, task: str, each_stratum: bool) -> np.ndarray:
    """Indices of the sample in rising order, (E,) int64.

    Each stratum has its share, rounded, and with `each_stratum` at least one. `fraction` counts as the
    decimal it is written as (0.1 is 1/10).
    """
    names, sizes = np.unique(strata_N, return_counts=True)
    fewest = len(names) if each_stratum else 1
    wanted = max(math.floor(Fraction(str(fraction)) * len(strata_N)), fewest)
    counts = largest_remainder(wanted, sizes.tolist())
    if each_stratum:
        while (counts == 0).any():  # the largest stratum gives one up
            counts[np.flatnonzero(counts == 0)[0]] += 1
            counts[np.argmax(counts)] -= 1

    stream = stream_of(f"sample of {task}")
    chosen = []
    for name, size, count in zip(names, sizes, counts, strict=True):
        drawn = permute(np.arange(count), size=int(size), seed=seed, epoch=int(name), stream=stream)
        chosen.append(np.flatnonzero(strata_N == name)[drawn])
    return np.sort(np.concatenate(chosen))
