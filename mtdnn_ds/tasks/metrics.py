"""Metrics: names, which tasks each fits, and their values. Plain arrays in, plain floats out; no model, no
collectives.

Conventions: f1 is binary with class 1 as the positive class, as in GLUE's MRPC and QQP. A correlation
(pearson, spearman, matthews) of something constant is mathematically undefined; here it is 0.0, the score of
a predictor that knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mtdnn_ds.config.errors import TrainingError
from mtdnn_ds.tasks.answer_metrics import coqa_f1, exact_match, quac_f1, token_f1
from mtdnn_ds.tasks.list_metrics import (
    entity_f1,
    entity_precision,
    entity_recall,
    first_relevant_ranks,
    mean_reciprocal_rank,
)
from mtdnn_ds.tasks.spec import CustomKind, Kind

# sklearn and scipy are imported inside the functions: checking a recipe needs this table, but not their
# seconds of import.


def _accuracy(predictions: Any, labels: Any) -> float:
    # Candidates of queries have scores: the best one must be relevant. All others have classes or numbers of
    # choices.
    if _are_numbers(predictions):
        return float(np.mean(predictions == labels))
    return float(np.mean(first_relevant_ranks(predictions, labels) == 1))


def _f1(predictions: NDArray, labels: NDArray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0))


def _macro_f1(predictions: NDArray, labels: NDArray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def _matthews(predictions: NDArray, labels: NDArray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: NDArray, labels: NDArray) -> float:
    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    from scipy.stats import pearsonr

    return float(pearsonr(predictions, labels).statistic)


def _spearman(predictions: NDArray, labels: NDArray) -> float:
    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(predictions, labels).statistic)


def _is_constant(values: NDArray) -> bool:
    """Up to float64 rounding of its magnitude: the deviations of such an array are noise, and so would be a
    correlation of them."""
    return float(np.ptp(values)) <= 1e-12 * float(np.max(np.abs(values)))


def _masked_accuracy(predictions: Sequence[NDArray], labels: Sequence[NDArray]) -> float:
    return _accuracy(predictions[0], labels[0])


def _next_sentence_accuracy(predictions: Sequence[NDArray], labels: Sequence[NDArray]) -> float:
    return _accuracy(predictions[1], labels[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Which tasks a metric fits, and how it is computed from (predictions, references); higher is better."""

    kinds: tuple[Kind, ...]
    compute: Callable[[Any, Any], float]
    binary_only: bool = False


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(kinds=("classification", "multiple_choice", "ranking"), compute=_accuracy),
    "f1": Metric(kinds=("classification",), compute=_f1, binary_only=True),
    "macro_f1": Metric(kinds=("classification",), compute=_macro_f1),
    "matthews": Metric(kinds=("classification",), compute=_matthews),
    "pearson": Metric(kinds=("regression", "similarity"), compute=_pearson),
    "spearman": Metric(kinds=("regression", "similarity"), compute=_spearman),
    "mrr": Metric(kinds=("ranking",), compute=mean_reciprocal_rank),
    "entity_f1": Metric(kinds=("token_classification",), compute=entity_f1),
    "entity_precision": Metric(kinds=("token_classification",), compute=entity_precision),
    "entity_recall": Metric(kinds=("token_classification",), compute=entity_recall),
    "masked_accuracy": Metric(kinds=("masked_lm",), compute=_masked_accuracy),
    "next_sentence_accuracy": Metric(kinds=("masked_lm",), compute=_next_sentence_accuracy),
    "exact_match": Metric(kinds=("span",), compute=exact_match),
    "token_f1": Metric(kinds=("span",), compute=token_f1),
    "coqa_f1": Metric(kinds=("conversational_span",), compute=coqa_f1),
    "quac_f1": Metric(kinds=("conversational_span",), compute=quac_f1),
}


def metric_misfit(name: str, kind: Kind, num_labels: int) -> str | None:
    """Why a known metric does not fit such a task, in the user's words; None if it fits."""
    metric = METRICS[name]
    if kind not in metric.kinds:
        fitting = ", ".join(
            other
            for other in METRICS
            if kind in METRICS[other].kinds and not (METRICS[other].binary_only and num_labels != 2)
        )
        return f"metric '{name}' is for {', '.join(metric.kinds)}; this task is {kind}, use {fitting}"
    if metric.binary_only and num_labels != 2:
        return f"metric '{name}' needs exactly 2 labels, this task has {num_labels}; use macro_{name}"
    return None


def compute_metrics(
    names: Sequence[str], predictions: Any, references: Any, custom: CustomKind | None = None
) -> dict[str, float]:
    """Value of each metric. predictions, references: equally many, at least 1; arrays of numbers, or what the
    kind decodes. Never NaN.

    `custom` has the metrics of a kind of the user's own. Raises TrainingError if predicted numbers are not
    finite: a diverged model must not look like a score of 0.
    """
    assert len(predictions) == len(references) > 0, (len(predictions), len(references))
    if _are_numbers(predictions):
        predictions, references = _checked_numbers(predictions, references)
        if custom is None and all("classification" in METRICS[name].kinds for name in names):
            predictions, references = predictions.astype(np.int64), references.astype(np.int64)
    if custom is not None:
        return {name: _own_metric(custom, name, predictions, references) for name in names}
    return {name: float(METRICS[name].compute(predictions, references)) for name in names}


def _own_metric(kind: CustomKind, name: str, predictions: Any, references: Any) -> float:
    value = kind.metrics[name](predictions, references)
    if np.ndim(value) != 0 or not np.isfinite(float(value)):
        raise TrainingError(
            f"kind {kind.name}: metric '{name}' of {len(predictions)} predictions is {value}; it must be a "
            "finite number"
        )
    return float(value)


def _are_numbers(values: Any) -> bool:
    return np.ndim(values[0]) == 0 and not isinstance(values[0], str)


def _checked_numbers(predictions: ArrayLike, references: ArrayLike) -> tuple[NDArray, NDArray]:
    predicted, known = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
    assert bool(np.isfinite(known).all()), "rows without a label cannot be scored"
    num_bad = int((~np.isfinite(predicted)).sum())
    if num_bad:
        raise TrainingError(
            f"{num_bad} of {len(predicted)} predictions are not finite: the model has diverged; lower "
            "optimizer.lr"
        )
    return predicted, known


def majority_baseline(kind: Kind, metrics: Sequence[str], labels: ArrayLike) -> dict[str, float]:
    """The metrics of always predicting the most frequent class (the lowest id if tied) or the mean score of
    `labels` (n,)."""
    known = np.asarray(labels, dtype=np.float64)
    if kind == "classification":
        constant = float(np.bincount(known.astype(np.int64)).argmax())
    else:
        constant = float(known.mean())
    return compute_metrics(metrics, np.full(known.shape, constant, dtype=np.float64), known)


def task_score(metrics: Mapping[str, float]) -> float:
    """One number per task: the mean of its metrics (GLUE, Wang et al. 2019, section 3: MRPC, STS-B and QQP
    average theirs)."""
    return sum(metrics.values()) / len(metrics)


def average(evaluation: Mapping[str, Mapping[str, float]]) -> float:
    """Macro average: the mean over tasks of `task_score`."""
    return sum(task_score(metrics) for metrics in evaluation.values()) / len(evaluation)
