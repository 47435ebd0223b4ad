"""CustomHeads: heads that users bring with a kind of their own (tasks/custom.py), one for each of its tasks. Not their losses.

Shape legend: K supervised rows, D hidden, C columns of all the kind's tasks, M terms of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.by_term import rows_by_term
from mtdnn_ds.model.dropout import replace_dropout
from mtdnn_ds.model.heads import row_dropout
from mtdnn_ds.model.seeded import derived_seed


class CustomHeads(nn.Module):
    """outputs = head_m(dropout(states)) in the columns of term m. All heads run in every micro-batch, on no rows if need be."""

    per_term_module = "of_tasks"  # a later run takes over those of a term

    def __init__(self, heads: Sequence[nn.Module], *, columns: Mapping[int, range], dropout_M: Sequence[float]) -> None:
        """`columns`: term id -> its columns, one entry for each of `heads` in their order; `dropout_M`: of every term of the run."""
        super().__init__()
        self.of_tasks = nn.ModuleList(heads)
        self.columns = tuple(columns.values())
        self.has_dropout = any(dropout_M[term] > 0 for term in columns)
        self.dropout_M: Tensor
        self.register_buffer("dropout_M", torch.tensor(dropout_M, dtype=torch.float32), persistent=False)

    def forward(self, states_KD: Tensor, term_ids_K: Tensor, sizes: Sequence[int]) -> Tensor:
        """(K, C): each row's outputs in its term's columns, 0 in all others. `sizes`: rows of each term, on the host."""
        grouped = rows_by_term(term_ids_K, sizes)
        states_KD = states_KD[grouped.order]
        if self.training and self.has_dropout:
            states_KD = row_dropout(states_KD, self.dropout_M[term_ids_K[grouped.order]])
        num_columns = self.columns[-1].stop
        parts = [
            functional.pad(head(rows_KD), (own.start, num_columns - own.stop))
            for head, own, rows_KD in zip(self.of_tasks, self.columns, states_KD.split(grouped.sizes), strict=True)
        ]
        return torch.cat(parts)[grouped.back]


def build_custom_heads(
    make: Callable[[int, int], nn.Module],
    *,
    kind: str,
    tasks: Sequence[str],
    hidden_size: int,
    columns: Mapping[int, range],
    dropout_M: Sequence[float],
    dropout: Literal["model", "none"],
    seed: int,
) -> CustomHeads:
    """One head of `make(hidden size, outputs)` for each of `tasks`, drawn from (seed, task). Raises ConfigError if it is no such head."""
    heads = []
    for task, own in zip(tasks, columns.values(), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, f"{task}_head"))
            head = make(hidden_size, len(own))
        if not isinstance(head, nn.Module):
            raise ConfigError(f"kind {kind}: its head made a {type(head).__name__}; it must return a torch.nn.Module")
        if dropout == "none":
            for module in head.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.p = 0.0
        with torch.no_grad():
            shape = tuple(head.eval()(torch.zeros(2, hidden_size)).shape)
        if shape != (2, len(own)):
            raise ConfigError(
                f"kind {kind}: its head turns states of shape (2, {hidden_size}) into {shape} and must give (2, {len(own)}), a row of outputs for each row"
            )
        replace_dropout(head)
        heads.append(head.train())
    return CustomHeads(heads, columns=columns, dropout_M=dropout_M)
