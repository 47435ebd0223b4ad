"""Metrics against numbers computed by hand,
their conventions for degenerate inputs, baselines and averages.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mtdnn_ds.config.errors import TrainingError
from mtdnn_ds.tasks.metrics import (
    METRICS,
    average,
    compute_metrics,
    majority_baseline,
    metric_misfit,
    task_score,
)

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
LABELS = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
PREDICTIONS = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]


def test_binary_metrics_equal_values_by_hand() -> None:
    ours = compute_metrics(["accuracy", "f1", "macro_f1", "matthews"], PREDICTIONS, LABELS)
    f1_of_1, f1_of_0 = 2 * 3 / (2 * 3 + 1 + 2), 2 * 4 / (2 * 4 + 2 + 1)
    assert ours["accuracy"] == pytest.approx(0.7)
    assert ours["f1"] == pytest.approx(f1_of_1)
    assert ours["macro_f1"] == pytest.approx((f1_of_1 + f1_of_0) / 2)
    assert ours["matthews"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


def test_f1_counts_class_1_as_positive() -> None:
    assert compute_metrics(["f1"], [0, 0, 0, 1], [0, 0, 0, 1]) == {"f1": 1.0}
    assert compute_metrics(["f1"], [0, 0, 0, 0], [0, 0, 0, 1]) == {"f1": 0.0}


def test_correlations_equal_values_by_hand() -> None:
    ours = compute_metrics(["pearson", "spearman"], [1.0, 2.0, 3.0, 10.0], [1.0, 3.0, 2.0, 4.0])
    # deviations (-3, -2, -1, 6) and (-1.5, .5, -.5, 1.5):
    # 13 / sqrt(50 * 5); ranks (1 2 3 4) and (1 3 2 4): 1 - 6 * 2 / (4 * 15)
    assert ours["pearson"] == pytest.approx(13 / np.sqrt(250))
    assert ours["spearman"] == pytest.approx(0.8)


@pytest.mark.parametrize("predictions", [[2.5, 2.5, 2.5], [0.1 + 0.2, 0.3, 0.3]])
def test_correlation_of_constant_predictions_is_zero(predictions: list[float]) -> None:
    assert compute_metrics(["pearson", "spearman"], predictions, [0.0, 1.0, 5.0]) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }


def test_correlation_with_constant_labels_or_one_row_is_zero() -> None:
    assert compute_metrics(["pearson", "spearman"], [0.0, 1.0], [3.0, 3.0]) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }
    assert compute_metrics(["pearson", "spearman"], [0.0], [0.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert compute_metrics(["matthews"], [1, 1, 1], [0, 1, 0]) == {"matthews": 0.0}


def test_predictions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(
        TrainingError,
        match=r"^2 of 3 predictions are not finite: the model has diverged; lower optimizer.lr$",
    ):
        compute_metrics(["pearson"], [np.nan, 1.0, np.inf], [1.0, 2.0, 3.0])


def test_majority_baseline_is_the_constant_predictor() -> None:
    assert majority_baseline("classification", ["accuracy", "f1"], [1, 1, 1, 0]) == {
        "accuracy": 0.75,
        "f1": pytest.approx(6 / 7),
    }
    assert majority_baseline("classification", ["accuracy"], [0, 1]) == {"accuracy": 0.5}
    assert majority_baseline("regression", ["pearson", "spearman"], [0.0, 1.0, 5.0]) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }


def test_score_and_average_weigh_metrics_and_tasks_alike() -> None:
    evaluation = {"mrpc": {"accuracy": 0.8, "f1": 0.9}, "cola": {"matthews": 0.55}}
    assert task_score(evaluation["mrpc"]) == pytest.approx(0.85)
    assert average(evaluation) == pytest.approx(0.7)


def test_misfits_name_what_fits() -> None:
    assert (
        metric_misfit("f1", "classification", 3)
        == "metric 'f1' needs exactly 2 labels, this task has 3; use macro_f1"
    )
    assert metric_misfit("accuracy", "regression", 0) == (
        "metric 'accuracy' is for classification, multiple_choice, ranking; "
        "this task is regression, use pearson, spearman"
    )
    assert metric_misfit("pearson", "classification", 3) == (
        "metric 'pearson' is for regression, similarity; "
        "this task is classification, use accuracy, macro_f1, matthews"
    )
    assert metric_misfit("f1", "classification", 2) is None


def test_metric_table_imports_neither_sklearn_nor_scipy() -> None:
    assert len(METRICS) == 16
    program = (
        "import sys, mtdnn_ds.tasks.metrics, mtdnn_ds.tasks.resolve; "
        "sys.exit(any(m in sys.modules for m in ('sklearn', 'scipy', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
