"""Losses of two embeddings: how similar they should be. Not the pooling that makes embeddings.

Rows 2g and 2g + 1 are the two texts of example g. In float32 whatever the dtype of the embeddings.

    cosine         (cos(u, v) - y)^2, y the cosine that the score stands for (data/examples/pairs.py)
    contrastive    y/2 d^2 + (1-y)/2 max(0, MARGIN - d)^2, d = |u/|u| - v/|v||, y = 1 for similar texts
                   (Hadsell, Chopra, LeCun 2006, eq. 4, whose Y is 1 - y; embeddings of length 1, so that
                   d^2 = 2 - 2 cos)

Shape legend: K sequences, G examples, D hidden.
"""

from __future__ import annotations

from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity, normalize

from mtdnn_ds.batch import Targets
from mtdnn_ds.losses.sums import TermTable

MARGIN = 1.0  # of distances between 0 and 2: texts that differ should have a cosine below 0.5


def pair_cosines(embeddings_KD: Tensor) -> Tensor:
    """Cosine of each pair, (G,)."""
    return cosine_similarity(*_both(embeddings_KD), dim=1)


def cosine_losses(embeddings_KD: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Squared error of each pair's cosine, (G,)."""
    return (pair_cosines(embeddings_KD) - targets.labels[::2]) ** 2


def contrastive_losses(embeddings_KD: Tensor, targets: Targets, table: TermTable) -> Tensor:
    """Hadsell's loss of each pair, (G,)."""
    first_GD, second_GD = (normalize(each, dim=1) for each in _both(embeddings_KD))
    distance_G = vector_norm(first_GD - second_GD, dim=1)
    similar_G = targets.labels[::2]
    return similar_G / 2 * distance_G**2 + (1 - similar_G) / 2 * (MARGIN - distance_G).clamp(min=0) ** 2


def _both(embeddings_KD: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second texts' embeddings, (G, D) each."""
    return embeddings_KD[::2].float(), embeddings_KD[1::2].float()
