"""LinearBank: all terms of one head as one linear layer; each term reads its own columns. Not the losses.

Shape legend: K supervised rows, D hidden, C columns of all terms together, M terms of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtdnn_ds.model.dropout.counter_dropout import STREAM
from mtdnn_ds.model.dropout.counter_masks import row_counter_dropout
from mtdnn_ds.model.seeded import seeded_normal_
from mtdnn_ds.tasks.spec import ScoreScale


class LinearBank(nn.Module):
    """outputs = W dropout(states) + b, with W (C, D) for all terms and a dropout probability per row's term.

    One parameter bank, so every rank's graph holds every term in every micro-batch, whatever tasks its rows
    belong to. A term's weights are rows first_column .. first_column + num_outputs - 1 of `weight`
    (HeadLayout).
    """

    per_column = ("weight", "bias")  # dimension 0 counts columns: what a later run takes over of a term

    def __init__(
        self,
        *,
        hidden_size: int,
        num_columns: int,
        dropout_M: Sequence[float],
        initializer_range: float,
        seed: int,
        purpose: str,
        first_bias: Mapping[int, float] | None = None,
        score_scales: Mapping[int, ScoreScale] | None = None,
    ) -> None:
        """Weights are drawn from N(0, initializer_range^2), biases are 0.

        `dropout_M`: probability in [0, 1) before the columns of each term of the run.

        `first_bias`: column -> its bias before training (what a regression answers at first).
        `score_scales`: column -> mean and deviation, where outputs are mean + deviation * (W x + b).
        """
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_columns, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_columns))
        seeded_normal_(self.weight, std=initializer_range, seed=seed, purpose=purpose)
        for column, value in (first_bias or {}).items():
            self.bias.data[column] = value

        # No buffer: engines would round it to the number format of the weights.
        self.score_scales = dict(score_scales or {})

        self.has_dropout = any(probability > 0 for probability in dropout_M)
        self.dropout_M: Tensor
        self.register_buffer("dropout_M", torch.tensor(dropout_M, dtype=torch.float32), persistent=False)

    def forward(self, states_KD: Tensor, term_ids_K: Tensor, keys_K: Tensor | None = None) -> Tensor:
        """Outputs (K, C) of every term for every row.

        K may be 0: the parameters then still get a gradient, of zeros.
        """
        if self.training and self.has_dropout:
            states_KD = term_dropout(self, states_KD, term_ids_K, keys_K)
        outputs_KC = functional.linear(states_KD, self.weight, self.bias)
        if not self.score_scales:
            return outputs_KC
        return _in_own_units(outputs_KC.float(), self.score_scales)


def _in_own_units(outputs_KC: Tensor, score_scales: Mapping[int, ScoreScale]) -> Tensor:
    columns = list(outputs_KC.unbind(dim=1))
    for column, (mean, deviation) in score_scales.items():
        columns[column] = mean + deviation * columns[column]
    return torch.stack(columns, dim=1)


def in_scale(
    weight_CD: Tensor, bias_C: Tensor, *, theirs: ScoreScale | None, ours: ScoreScale | None
) -> tuple[Tensor, Tensor]:
    """Weight and bias that answer in the scale `ours` what the given ones answer in `theirs`.

    None: scores as they are. From m + d (W x + b) = m' + d' (W' x + b') follow W' = W d / d' and
    b' = (m + d b - m') / d'.
    """
    if theirs == ours:
        return weight_CD, bias_C
    (mean, deviation), (own_mean, own_deviation) = theirs or (0.0, 1.0), ours or (0.0, 1.0)
    weight = weight_CD.double() * deviation / own_deviation
    bias = (mean + deviation * bias_C.double() - own_mean) / own_deviation
    return weight.to(weight_CD.dtype), bias.to(bias_C.dtype)


def term_dropout(head: nn.Module, rows_KD: Tensor, term_ids_K: Tensor, keys_K: Tensor | None) -> Tensor:
    """Each row's dropout is that of its term in `head.dropout_M`.

    Masks come from `keys_K` (counter dropout) where there are any.
    """
    probability_K = head.get_buffer("dropout_M").index_select(0, term_ids_K)
    if keys_K is None:
        return row_dropout(rows_KD, probability_K)
    return row_counter_dropout(rows_KD, probability_K, keys_K, term_ids_K, getattr(head, STREAM))


def row_dropout(rows_KD: Tensor, probability_K: Tensor) -> Tensor:
    """Zeroes each element of row k with probability p_k in [0, 1), and scales the others by 1 / (1 - p_k)."""
    probability_K1 = probability_K.float()[:, None]
    is_kept_KD = torch.rand(rows_KD.shape, device=rows_KD.device) >= probability_K1
    return rows_KD * (is_kept_KD / (1 - probability_K1)).to(rows_KD.dtype)
