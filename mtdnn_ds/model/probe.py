"""Load-time checks of an encoder: Hugging Face's hidden states, and no unused parameter. No decisions.

Two short sequences in evaluation mode on the CPU; milliseconds, no random draws, no gradients kept. What
follows from the answers is decided in encoder.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtdnn_ds.batch.groups import CPU_COSTS, GroupCosts, attention_groups
from mtdnn_ds.batch.packed import PackedBatch

LENGTHS = np.array([3, 5])


def probe_batch(model: PreTrainedModel) -> PackedBatch:
    """Two sequences of 3 and 5 tokens that are not padding; nothing is supervised."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    ids = [index for index in range(min(embeddings.num_embeddings, 64)) if index != model.config.pad_token_id]
    return batch_of_lengths(LENGTHS, ids)


def batch_of_lengths(
    lengths: np.ndarray, ids: Sequence[int] = (0,), costs: GroupCosts = CPU_COSTS
) -> PackedBatch:
    """Sequences of these lengths, their tokens taken from `ids` in turn; nothing is supervised.

    `costs`: what attention's groups are chosen by.
    """
    groups, packed_to_padded = attention_groups(lengths, costs)
    num_tokens, num = int(lengths.sum()), len(lengths)

    return PackedBatch(
        input_ids=torch.tensor([ids[(7 * index) % len(ids)] for index in range(num_tokens)]),
        token_type_ids=torch.zeros(num_tokens, dtype=torch.int64),
        position_ids=torch.cat([torch.arange(length) for length in lengths.tolist()]),
        cu_seqlens=torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32),
        max_seqlen=int(lengths.max()),
        attention_groups=groups,
        packed_to_padded=packed_to_padded,
        targets={},
        unit_counts=np.zeros(0),
        example_tasks=np.zeros(num, dtype=np.int64),
        example_rows=np.arange(num),
        sequence_examples=np.arange(num),
        num_tokens=num_tokens,
    )


@torch.no_grad()
def hidden_one_by_one(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Hugging Face's own forward, each sequence alone and unpadded, (T, D).

    Must be called before the attention is replaced.
    """
    hidden = []
    for ids in batch.input_ids.split(LENGTHS.tolist()):
        outputs = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None])
        hidden.append(outputs[0][0])
    return torch.cat(hidden)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference, relative to the largest value where that exceeds 1."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def unused_parameters(module: nn.Module, output: Tensor) -> list[str]:
    """Names of parameters of `module` that `output` does not depend on, by a walk of its autograd graph."""
    used: set[int] = set()
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # the leaf node that accumulates a parameter's gradient
            used.add(id(node.variable))
        waiting.extend(parent for parent, _ in node.next_functions)

    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in used
    ]
