"""Metrics of lists: labels of a sentence's words, scores of a query's candidates. Plain values in, plain
floats out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtdnn_ds.config.errors import TrainingError

Tags = Sequence[Sequence[str]]


def entity_f1(predictions: Tags, labels: Tags) -> float:
    """Entities whose kind, first and last word are right, over all kinds, as seqeval and CoNLL's conlleval
    count them."""
    from seqeval.metrics import f1_score

    return float(f1_score(labels, predictions, average="micro", zero_division=0))


def entity_precision(predictions: Tags, labels: Tags) -> float:
    """Share of the predicted entities that are right, as in entity_f1."""
    from seqeval.metrics import precision_score

    return float(precision_score(labels, predictions, average="micro", zero_division=0))


def entity_recall(predictions: Tags, labels: Tags) -> float:
    """Share of the labelled entities that are found, as in entity_f1."""
    from seqeval.metrics import recall_score

    return float(recall_score(labels, predictions, average="micro", zero_division=0))


def mean_reciprocal_rank(scores: Sequence[NDArray], relevant: Sequence[NDArray]) -> float:
    """Mean over queries of 1 / rank of the best relevant candidate."""
    return float(np.mean(1 / first_relevant_ranks(scores, relevant)))


def first_relevant_ranks(scores: Sequence[NDArray], relevant: Sequence[NDArray]) -> NDArray:
    """Rank from 1 of each query's best relevant candidate (`relevant` is 1 there, else 0), behind all others
    of the same score.

    So a model that gives all candidates one score earns nothing. Raises TrainingError if scores are not
    finite.
    """
    if not all(np.isfinite(each).all() for each in scores):
        raise TrainingError("scores of candidates are not finite: the model has diverged; lower optimizer.lr")
    return np.array(
        [
            1 + np.sum(each[known != 1] >= each[known == 1].max())
            for each, known in zip(scores, relevant, strict=True)
        ],
        dtype=np.int64,
    )
