"""Metrics: names, which tasks each fits, and their values. Plain arrays in, plain floats out; no model, no collectives.

Conventions: f1 is binary with class 1 as the positive class, as in GLUE's MRPC and QQP. A correlation (pearson, spearman,
matthews) of something constant is mathematically undefined; here it is 0.0, the score of a predictor that knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mtdnn_ds.config.errors import TrainingError
from mtdnn_ds.tasks.spec import Kind

# sklearn and scipy are imported inside the functions: checking a recipe needs this table, but not their seconds of import.


def _accuracy(predictions: NDArray, labels: NDArray) -> float:
    return float(np.mean(predictions == labels))


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
    """Up to float64 rounding of its magnitude: the deviations of such an array are noise, and so would be a correlation of them."""
    return float(np.ptp(values)) <= 1e-12 * float(np.max(np.abs(values)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Which tasks a metric fits, and how it is computed from (predictions, labels)."""

    kind: Kind
    compute: Callable[[NDArray, NDArray], float]
    binary_only: bool = False


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(kind="classification", compute=_accuracy),
    "f1": Metric(kind="classification", compute=_f1, binary_only=True),
    "macro_f1": Metric(kind="classification", compute=_macro_f1),
    "matthews": Metric(kind="classification", compute=_matthews),
    "pearson": Metric(kind="regression", compute=_pearson),
    "spearman": Metric(kind="regression", compute=_spearman),
}

DEFAULT_METRICS: Mapping[Kind, tuple[str, ...]] = {"classification": ("accuracy",), "regression": ("pearson", "spearman")}


def metric_misfit(name: str, kind: Kind, num_labels: int) -> str | None:
    """Why a known metric does not fit such a task, in the user's words; None if it fits."""
    metric = METRICS[name]
    if metric.kind != kind:
        fitting = ", ".join(
            other for other in METRICS if METRICS[other].kind == kind and not (METRICS[other].binary_only and num_labels != 2)
        )
        return f"metric '{name}' is for {metric.kind}, this task is {kind}; use {fitting}"
    if metric.binary_only and num_labels != 2:
        return f"metric '{name}' needs exactly 2 labels, this task has {num_labels}; use macro_{name}"
    return None


def compute_metrics(names: Sequence[str], predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Value of each metric. predictions, labels: (n,), n >= 1; class ids, or scores for a regression. Never NaN.

    Raises TrainingError if predictions are not finite: a diverged model must not look like a score of 0.
    """
    predicted, known = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    assert predicted.shape == known.shape and predicted.ndim == 1 and len(predicted) > 0, (predicted.shape, known.shape)
    assert bool(np.isfinite(known).all()), "rows without a label cannot be scored"
    num_bad = int((~np.isfinite(predicted)).sum())
    if num_bad:
        raise TrainingError(f"{num_bad} of {len(predicted)} predictions are not finite: the model has diverged; lower optimizer.lr")
    if all(METRICS[name].kind == "classification" for name in names):
        predicted, known = predicted.astype(np.int64), known.astype(np.int64)
    return {name: METRICS[name].compute(predicted, known) for name in names}


def majority_baseline(kind: Kind, metrics: Sequence[str], labels: ArrayLike) -> dict[str, float]:
    """The metrics of always predicting the most frequent class (the lowest id if tied) or the mean score of `labels` (n,)."""
    known = np.asarray(labels, dtype=np.float64)
    constant = np.bincount(known.astype(np.int64)).argmax() if kind == "classification" else known.mean()
    return compute_metrics(metrics, np.full(known.shape, constant, dtype=np.float64), known)


def task_score(metrics: Mapping[str, float]) -> float:
    """One number per task: the mean of its metrics (GLUE, Wang et al. 2019, section 3: MRPC, STS-B and QQP average theirs)."""
    return sum(metrics.values()) / len(metrics)


def average(evaluation: Mapping[str, Mapping[str, float]]) -> float:
    """Macro average: the mean over tasks of `task_score`."""
    return sum(task_score(metrics) for metrics in evaluation.values()) / len(evaluation)
