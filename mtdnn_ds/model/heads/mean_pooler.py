"""MeanPooler: the embedding of a sequence is the mean of its tokens' hidden states, special tokens included. No parameters, no pooler.

Shape legend: T packed tokens, S sequences, K supervised rows, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MeanPooler(nn.Module):
    """The embedding of sentence-transformers' mean pooling (Reimers & Gurevych 2019, section 3)."""

    def forward(self, hidden_TD: Tensor, cu_seqlens: Tensor, sequences_K: Tensor) -> Tensor:
        """(K, D). One matrix product instead of scattered additions, so the order of addition is fixed. K may be 0."""
        begin_K1 = cu_seqlens[:-1].index_select(0, sequences_K)[:, None]
        end_K1 = cu_seqlens[1:].index_select(0, sequences_K)[:, None]
        tokens_T = torch.arange(hidden_TD.shape[0], device=hidden_TD.device)
        is_own_KT = (tokens_T >= begin_K1) & (tokens_T < end_K1)
        return (is_own_KT.to(hidden_TD.dtype) @ hidden_TD) / (end_K1 - begin_K1)
