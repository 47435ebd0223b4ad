"""Poolers: one vector from a sequence's hidden states, for heads that read sequences. Not the heads.

Shape legend: T packed tokens, S sequences, K sequences that are read, D hidden.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from mtdnn_ds.model.seeded import reset_linear_layers


class FirstTokenPooler(nn.Module):
    """activation(W h + b) of the first hidden state h: BERT's (Devlin et al.

    2019, arXiv:1810.04805, section 3).
    """

    def __init__(self, dense: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.dense = dense
        self.activation = activation

    def forward(self, hidden_K1D: Tensor) -> Tensor:
        return self.activation(self.dense(hidden_K1D[:, 0]))


class MeanPooler(nn.Module):
    """The mean of a sequence's hidden states, special tokens included; without parameters.

    The embedding of sentence-transformers' mean pooling (Reimers & Gurevych 2019, section 3).
    """

    def forward(self, hidden_TD: Tensor, cu_seqlens: Tensor, sequences_K: Tensor) -> Tensor:
        """(K, D). K may be 0."""
        begin_K1 = cu_seqlens[:-1].index_select(0, sequences_K)[:, None]
        end_K1 = cu_seqlens[1:].index_select(0, sequences_K)[:, None]

        # One matrix product instead of scattered additions, so the order of addition is fixed.
        tokens_T = torch.arange(hidden_TD.shape[0], device=hidden_TD.device)
        is_own_KT = (tokens_T >= begin_K1) & (tokens_T < end_K1)
        return (is_own_KT.to(hidden_TD.dtype) @ hidden_TD) / (end_K1 - begin_K1)


def take_pooler(
    model: PreTrainedModel, *, missing: Collection[str], seed: int
) -> tuple[nn.Module, tuple[str, ...]]:
    """Removes the model's pooler from its forward and returns it, or a new one, with notes on what is new.

    The pooler maps (K, 1, D) to (K, D). `missing` are the parameters that the checkpoint did not have; a
    pooler among them, or one that the architecture lacks, is drawn from `seed`.
    """
    config = model.config
    pooler: nn.Module | None = getattr(model, "pooler", None)
    if pooler is None:
        # Hugging Face's sequence classifiers for these encoders name their activation in the config:
        # "pooler_hidden_act" (DeBERTa) or "summary_activation" (ELECTRA: gelu). Else it is BERT's tanh.
        named = (getattr(config, "pooler_hidden_act", None), getattr(config, "summary_activation", None))
        activation = named[0] or named[1] or "tanh"
        pooler = FirstTokenPooler(nn.Linear(config.hidden_size, config.hidden_size), ACT2FN[activation])
        note = f"{type(model).__name__} has no pooler: a new one (dense, {activation}) is drawn from the seed"
    else:
        setattr(model, "pooler", None)  # noqa: B010 (the class does not declare it)
        if isinstance(pooler, nn.Linear):  # ALBERT keeps the activation beside it
            pooler = FirstTokenPooler(pooler, ACT2FN["tanh"])
        if not any(name.startswith("pooler.") for name in missing):
            return pooler, ()
        note = "the checkpoint has no pooler weights: the pooler is drawn from the seed"

    reset_linear_layers(pooler, std=getattr(config, "initializer_range", 0.02), seed=seed, purpose="pooler")
    return pooler, (note,)
