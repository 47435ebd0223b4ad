"""Ordinal regression: classes with an order (poor < fair < good < excellent), as a task kind of one's own.

Used by recipes/own_kind.yaml.

Cumulative logits (McCullagh 1980): one score for each text, and a threshold between each level and the next,
P(level > k) = sigmoid(score - threshold_k). A prediction is the number of thresholds that the score exceeds.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mtdnn_ds import CustomKind


class CumulativeHead(nn.Module):
    """States (K, D) -> logits (K, C) of being above each of C thresholds."""

    def __init__(self, hidden_size, num_thresholds):
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)
        self.thresholds = nn.Parameter(torch.linspace(-1.0, 1.0, num_thresholds))

    def forward(self, states):
        return self.score(states) - self.thresholds


def parse_label(cell, spec):
    """A level's name -> its place in the task's `labels`, which are in ascending order."""
    if cell not in spec.labels:
        raise ValueError(f"is none of {', '.join(spec.labels)}")
    return spec.labels.index(cell)


def loss(logits, levels):
    """(K, C), (K,) -> (K,): one binary cross-entropy for each threshold, added up.

    A loss for each row: no mean over rows.
    """
    is_above = levels[:, None] > torch.arange(logits.shape[1], device=logits.device)
    return functional.binary_cross_entropy_with_logits(logits, is_above.float(), reduction="none").sum(dim=1)


KIND = CustomKind(
    name="ordinal",
    has_labels=True,
    num_outputs=lambda spec: len(spec.labels) - 1,
    parse_label=parse_label,
    head=CumulativeHead,
    loss=loss,
    predict=lambda logits: (logits > 0).sum(axis=1),
    metrics={
        "accuracy": lambda predictions, levels: np.mean(predictions == levels),
        "within_one": lambda predictions, levels: np.mean(np.abs(predictions - levels) <= 1),
    },
)
