"""CustomHeads: heads that users bring with a kind of their own, one for each of its tasks. Not losses.

Shape legend: K supervised rows, D hidden, C columns of all the kind's tasks, M terms of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.model.dropout.counter_dropout import refuse_other_randomness, start_pass, use_counter_dropout
from mtdnn_ds.model.dropout.replayed import Replayed
from mtdnn_ds.model.dropout.word_dropout import DropoutMode, replace_dropout
from mtdnn_ds.model.heads.by_term import rows_by_term
from mtdnn_ds.model.heads.linear_bank import term_dropout
from mtdnn_ds.model.seeded import derived_seed


class CustomHeads(nn.Module):
    """outputs = head_m(dropout(states)) in the columns of term m.

    All heads run in every micro-batch, on no rows if need be.
    """

    per_term_module = "of_tasks"  # a later run takes over those of a term

    def __init__(
        self, heads: Sequence[nn.Module], *, columns: Mapping[int, range], dropout_M: Sequence[float]
    ) -> None:
        """`columns`: term id -> its columns, one entry for each of `heads` in their order.

        `dropout_M`: of every term of the run.
        """
        super().__init__()
        self.of_tasks = nn.ModuleList(heads)
        self.columns = tuple(columns.values())
        self.running = Replayed()
        self.has_dropout = any(dropout_M[term] > 0 for term in columns)
        self.dropout_M: Tensor
        self.register_buffer("dropout_M", torch.tensor(dropout_M, dtype=torch.float32), persistent=False)

    def forward(
        self, states_KD: Tensor, term_ids_K: Tensor, sizes: Sequence[int], keys_K: Tensor | None = None
    ) -> Tensor:
        """(K, C): each row's outputs in its term's columns, 0 in all others.

        `sizes`: rows of each term, on the host; `keys_K`: for counter dropout.
        """
        grouped = rows_by_term(term_ids_K, sizes)
        states_KD = states_KD[grouped.order]
        if keys_K is not None:
            keys_K = keys_K[grouped.order]
        if self.training and self.has_dropout:
            states_KD = term_dropout(self, states_KD, term_ids_K[grouped.order], keys_K)

        keys: Sequence[Tensor | None] = [None] * len(grouped.sizes)
        if keys_K is not None:
            keys = keys_K.split(grouped.sizes)
        rows = states_KD.split(grouped.sizes)

        num_columns = self.columns[-1].stop
        parts = []
        for head, own, rows_KD, own_keys in zip(self.of_tasks, self.columns, rows, keys, strict=True):
            if own_keys is not None:
                start_pass(self.running, own_keys, 0)
            parts.append(functional.pad(head(rows_KD), (own.start, num_columns - own.stop)))
        return torch.cat(parts)[grouped.back]


def build_custom_heads(
    make: Callable[[int, int], nn.Module],
    *,
    kind: str,
    tasks: Sequence[str],
    hidden_size: int,
    columns: Mapping[int, range],
    dropout_M: Sequence[float],
    dropout: DropoutMode,
    seed: int,
) -> CustomHeads:
    """One head of `make(hidden size, outputs)` for each of `tasks`, drawn from (seed, task).

    Raises ConfigError if it is no such head.
    """
    heads = []
    for task, own in zip(tasks, columns.values(), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, f"{task}_head"))
            head = make(hidden_size, len(own))
        _check_head(head, kind, hidden_size, len(own))

        if dropout == "none":
            for module in head.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.p = 0.0
        if dropout != "counter":
            replace_dropout(head)
        heads.append(head.train())

    bank = CustomHeads(heads, columns=columns, dropout_M=dropout_M)
    if dropout == "counter":
        _count_dropout(bank, kind, tasks, hidden_size)
    return bank


def _check_head(head: object, kind: str, hidden_size: int, num_outputs: int) -> None:
    """Raises ConfigError if a user's head is no module that gives a row of outputs for each of two rows."""
    if not isinstance(head, nn.Module):
        raise ConfigError(
            f"kind {kind}: its head made a {type(head).__name__}; it must return a torch.nn.Module"
        )

    with torch.no_grad():
        shape = tuple(head.eval()(torch.zeros(2, hidden_size)).shape)
    if shape != (2, num_outputs):
        raise ConfigError(
            f"kind {kind}: its head turns states of shape (2, {hidden_size}) into {shape} and must give "
            f"(2, {num_outputs}), a row of outputs for each row"
        )


def _count_dropout(bank: CustomHeads, kind: str, tasks: Sequence[str], hidden_size: int) -> None:
    """Dropout from counters in every head, by its task's name.

    Raises ConfigError where it cannot be, found on two rows.
    """
    for head, task in zip(bank.of_tasks, tasks, strict=True):
        use_counter_dropout(head, prefix=f"the head of {task}", running=bank.running)

        def run(head: nn.Module = head) -> None:
            start_pass(bank.running, torch.arange(2), 0)
            head(torch.zeros(2, hidden_size))

        refuse_other_randomness(f"the head of kind {kind}", run)
