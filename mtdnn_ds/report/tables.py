"""Tables of experiments: means with their spread, and CSV files. Runs nothing."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def mean_and_spread(values: Sequence[float]) -> str:
    """`0.8123 +- 0.0045`: mean and sample standard deviation; one value stands alone."""
    mean = f"{np.mean(values):.4f}"
    return f"{mean} +- {np.std(values, ddof=1):.4f}" if len(values) > 1 else mean


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with equal keys, which become the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
