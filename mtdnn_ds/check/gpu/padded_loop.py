"""The plain loop that BERT-large is held against: transformers' own model on padded batches of the same
examples, bf16 by autocast, torch's fused AdamW. Knows nothing of packing.

Shape legend: S examples, L longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForSequenceClassification

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.check.gpu.workload import Size

NUM_LABELS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedBatch:
    """The examples of a micro-batch, padded to the longest, on the host."""

    input_ids: Tensor  # (S, L)
    token_type_ids: Tensor  # (S, L)
    attention_mask: Tensor  # (S, L)
    labels: Tensor  # (S,)


def padded(batch: PackedBatch, *, pin: bool) -> PaddedBatch:
    """A micro-batch as a collator would make it; labels mean nothing. `pin`: in page-locked memory."""
    of_examples = np.flatnonzero(batch.sequence_examples >= 0).tolist()  # not the fillers
    lengths = batch.cu_seqlens.diff().tolist()
    parts = [tensor.split(lengths) for tensor in (batch.input_ids, batch.token_type_ids)]
    ids, types = ([part[place] for place in of_examples] for part in parts)
    ones = [torch.ones(lengths[place], dtype=torch.int64) for place in of_examples]
    tensors = [pad_sequence(rows, batch_first=True) for rows in (ids, types, ones)]
    tensors.append(torch.arange(len(of_examples)) % NUM_LABELS)
    if pin:
        tensors = [tensor.pin_memory() for tensor in tensors]
    return PaddedBatch(
        input_ids=tensors[0], token_type_ids=tensors[1], attention_mask=tensors[2], labels=tensors[3]
    )


class PaddedLoop:
    """Model and optimizer."""

    def __init__(self, size: Size, device: torch.device) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.intermediate,
        )
        config.num_labels, config._attn_implementation = NUM_LABELS, "sdpa"
        self.device = device
        with device:  # weights are drawn where they are used
            self.model = BertForSequenceClassification(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def step(self, batches: Sequence[PaddedBatch]) -> None:
        """One update of some micro-batches."""
        for batch in batches:
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = self.model(
                    input_ids=batch.input_ids.to(self.device, non_blocking=True),
                    token_type_ids=batch.token_type_ids.to(self.device, non_blocking=True),
                    attention_mask=batch.attention_mask.to(self.device, non_blocking=True),
                    labels=batch.labels.to(self.device, non_blocking=True),
                ).loss
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def held_bytes(self) -> int:
        """Weights and AdamW's states: what it holds between steps."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *states))
