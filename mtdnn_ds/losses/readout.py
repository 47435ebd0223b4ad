"""What evaluation keeps of each form's outputs: small enough to leave the device. Not predictions (data/examples/ decodes)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mtdnn_ds.losses.pairs import pair_cosines


def _best_token(outputs_KV: Tensor) -> Tensor:
    """The likeliest token of each masked position, (K, 1): the vocabulary's scores would fill the host's memory."""
    return outputs_KV.argmax(dim=1, keepdim=True) if len(outputs_KV) else outputs_KV.new_zeros((0, 1))


def _cosines(embeddings_KD: Tensor) -> Tensor:
    """The cosine of each pair in both its rows, (K, 1): embeddings would fill the host's memory."""
    return pair_cosines(embeddings_KD).repeat_interleave(2)[:, None]


READOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "masked_token": _best_token,
    "cosine": _cosines,
    "contrastive": _cosines,
}
"""Forms whose outputs are reduced, each to (K, R); all others keep the head's columns."""


def read_out(form: str, outputs_KC: Tensor) -> Tensor:
    """(K, R): what is kept of the outputs of one micro-batch."""
    with torch.no_grad():
        return READOUTS[form](outputs_KC) if form in READOUTS else outputs_KC
