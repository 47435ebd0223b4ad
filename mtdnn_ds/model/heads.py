"""FusedSequenceHead: all sequence-level heads as one linear layer; each task reads its own columns. Not the losses.

Shape legend: K supervised rows, D hidden, C columns of all tasks together, N tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtdnn_ds.model.seeded import seeded_normal_
from mtdnn_ds.tasks.layout import HeadLayout


class FusedSequenceHead(nn.Module):
    """logits = W dropout(pooled) + b, with W (C, D) for all tasks and a dropout probability per row's task.

    One parameter bank, so every rank's graph holds every head in every micro-batch, whatever tasks its rows belong to. Task t's
    weights are rows first_column[t] .. first_column[t] + num_outputs[t] - 1 of `weight` (HeadLayout).
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        layout: HeadLayout,
        dropout_N: Sequence[float],
        initializer_range: float,
        seed: int,
        first_score_N: Sequence[float] | None = None,
    ) -> None:
        """`dropout_N`: probability in [0, 1) before each task's head. Weights are drawn from N(0, initializer_range^2), biases are 0.

        `first_score_N`: what each regression answers before it is trained, its bias (classifications ignore it).
        """
        super().__init__()
        assert len(dropout_N) == len(layout.task_names), "one dropout probability per task"
        self.layout = layout
        self.weight = nn.Parameter(torch.empty(layout.num_columns, hidden_size))
        self.bias = nn.Parameter(torch.zeros(layout.num_columns))
        for task, score in enumerate(first_score_N or ()):
            if layout.is_regression[task]:
                self.bias.data[layout.first_column[task]] = score
        seeded_normal_(self.weight, std=initializer_range, seed=seed, purpose="sequence_head")
        self.has_dropout = any(probability > 0 for probability in dropout_N)
        self.dropout_N: Tensor
        self.register_buffer("dropout_N", torch.tensor(dropout_N, dtype=torch.float32), persistent=False)

    def forward(self, pooled_KD: Tensor, task_ids_K: Tensor) -> Tensor:
        """Logits (K, C) of every task for every row. K may be 0: the parameters then still get a gradient, of zeros."""
        if self.training and self.has_dropout:
            pooled_KD = row_dropout(pooled_KD, self.dropout_N.index_select(0, task_ids_K))
        return functional.linear(pooled_KD, self.weight, self.bias)


def row_dropout(rows_KD: Tensor, probability_K: Tensor) -> Tensor:
    """Zeroes each element of row k with probability p_k and scales the others by 1 / (1 - p_k); p_k in [0, 1)."""
    probability_K1 = probability_K.float()[:, None]
    scaled_mask_KD = (torch.rand(rows_KD.shape, device=rows_KD.device) >= probability_K1) / (1 - probability_K1)
    return rows_KD * scaled_mask_KD.to(rows_KD.dtype)
