"""CopiedEncoder: soft sharing's encoder, one copy for each group of tasks. Not the penalty between them.

That is train/regularizers/sharing_penalty.py.

Shape legend: T packed tokens, S sequences, K supervised rows, D hidden, E word embeddings.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mtdnn_ds.batch.packed import PackedBatch
from mtdnn_ds.model.dropout.counter_masks import DropoutKeys
from mtdnn_ds.model.encoder import PackedEncoder


class CopiedEncoder(nn.Module):
    """Copies of a PackedEncoder with its interface; copy c reads `batch.parts[c]`.

    Every copy runs in every forward, in one order on all ranks: the loader gives an idle copy a filler.
    """

    def __init__(self, encoder: PackedEncoder, groups: Sequence[str]) -> None:
        """`encoder` becomes the first copy; the others begin with its weights."""
        super().__init__()
        self.copies = nn.ModuleList([encoder, *(copy.deepcopy(encoder) for _ in groups[1:])])
        size = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
        note = (
            f"soft sharing: {len(groups)} copies of the encoder, for {', '.join(groups)}, "
            f"each of {size:,.1f} M parameters"
        )
        self.notes: tuple[str, ...] = (*encoder.notes, note)

    @property
    def encoders(self) -> list[PackedEncoder]:
        """The copies, in the order of the groups."""
        return cast("list[PackedEncoder]", list(self.copies))

    @property
    def first(self) -> PackedEncoder:
        return self.encoders[0]

    @property
    def config(self) -> PreTrainedConfig:
        return self.first.config

    @property
    def hidden_size(self) -> int:
        return self.first.hidden_size

    @property
    def embedding_size(self) -> int:
        return self.first.embedding_size

    @property
    def max_positions(self) -> int:
        return self.first.max_positions

    def forward(
        self, batch: PackedBatch, noise_TE: Tensor | None = None, keys: DropoutKeys | None = None
    ) -> Tensor:
        """Hidden states of all tokens, (T, D).

        `noise_TE` is added to their word embeddings, `keys` are for counter dropout.
        """
        sizes = [part.input_ids.numel() for part in batch.parts]
        noises: Sequence[Tensor | None] = [None] * len(sizes)
        if noise_TE is not None:
            noises = noise_TE.split(sizes)
        copies_keys: Sequence[DropoutKeys | None] = [None] * len(sizes)
        if keys is not None:
            copies_keys = [replace(keys, of_token_T=own_T) for own_T in keys.of_token_T.split(sizes)]

        hidden = []
        for encoder, part, noise, own in zip(self.encoders, batch.parts, noises, copies_keys, strict=True):
            hidden.append(encoder(part, noise, own))
        return torch.cat(hidden)

    def pooled(self, hidden_TD: Tensor, batch: PackedBatch, sequences_K: Tensor) -> Tensor:
        """What sequence heads read of the given sequences, each through its own copy's pooler, (K, D)."""
        hidden = hidden_TD.split([part.input_ids.numel() for part in batch.parts])
        pooled = []
        for encoder, own_TD, part in zip(self.encoders, hidden, batch.parts, strict=True):
            every_sequence = torch.arange(part.num_sequences, device=own_TD.device)
            pooled.append(encoder.pooled(own_TD, part, every_sequence))
        return torch.cat(pooled).index_select(0, sequences_K)
