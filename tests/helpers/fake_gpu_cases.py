"""The runs on a fake GPU: a case for every row of the tables, and faults that are to be found.

Not a test file. What a case does is in fake_gpu_runs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args
from unittest.mock import patch

import torch
from torch import Tensor

from mtdnn_ds.config.choices import ATTENTION_BACKENDS
from mtdnn_ds.config.training_sections import RegularizerSettings
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.model.heads.linear_bank import LinearBank
from mtdnn_ds.tasks.sharing import Mode

FEW = ("colours", "tags", "span", "words")
# All tasks of fake_gpu_tasks.py but those of masked_lm.
OTHERS = (
    *("tags", "choice", "ranking", "similar", "colours", "span", "nli", "score", "pairwise"),
    *("contrastive", "talk", "stars", "lengths"),
)

# Settings and tasks of some rows. SMART has its averaged model. Masked-LM tasks have one decoder, so with
# copies of the encoder they are one group.
Row = tuple[Mapping[str, Any], tuple[str, ...] | None]
REGULARIZERS: Mapping[str, Row] = {
    "smart": ({"proximal_factor": 1.0}, None),
    "freelb": ({}, FEW),
    "r_drop": ({}, FEW),
}
SHARINGS: Mapping[str, Row] = {
    "soft": ({"groups": {"documents": ["words", "documents"], "rows": list(OTHERS)}}, None),
    "low_rank": ({}, FEW),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One run: what its recipe says beside the base's, by section, and what is no setting of a recipe."""

    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    encoder: str = "bert"
    attention: str | None = None  # set on the model: a kernel is refused where there is no CUDA
    tasks: tuple[str, ...] | None = None  # None: all
    distils: bool = False
    planted: str | None = None  # a fault of PLANTS: the check has to find it


def cases() -> dict[str, Case]:
    """Every row of the tables of back ends, regularisers, sharing and dropout.

    "plain" has the first of each. All tasks are in those cases that heads or losses know of.
    """
    found = {"plain": Case()}
    found |= {
        f"attention {name}": Case(attention=name, tasks=FEW)
        for name in ATTENTION_BACKENDS
        if name != "grouped"
    }
    for name in get_args(DropoutMode)[1:]:
        tasks = FEW if name == "none" else None
        found[f"dropout {name}"] = Case(changes={"train": {"dropout": name}}, tasks=tasks)
    for name in get_args(Mode)[1:]:
        settings, tasks = SHARINGS.get(name, ({}, None))
        found[f"sharing {name}"] = Case(changes={"sharing": {"mode": name, **settings}}, tasks=tasks)
    for name in get_args(RegularizerSettings.model_fields["name"].annotation)[1:]:
        settings, tasks = REGULARIZERS.get(name, ({}, None))
        found[f"regularizer {name}"] = Case(changes={"regularizer": {"name": name, **settings}}, tasks=tasks)

    # Beside the tables.
    recomputes = {"encoder": {"gradient_checkpointing": True}}
    counts = {"train": {"dropout": "counter"}}
    return {
        **found,
        "recomputed": Case(changes=recomputes, tasks=FEW),
        "recomputed counter": Case(changes={**recomputes, **counts}, tasks=FEW),
        "soft targets": Case(distils=True),
        "padded encoder": Case(encoder="deberta", tasks=FEW),
        **{f"planted {name}": Case(planted=name, tasks=FEW) for name in PLANTS},
    }


# Faults


@contextmanager
def _in_bank(fault: Callable[[Tensor], Any]) -> Iterator[None]:
    """The banks' forward, with a fault on what they read."""
    forward = LinearBank.forward

    def faulty(bank: LinearBank, states_KD: Tensor, *others: Any) -> Tensor:
        states = fault(states_KD)
        return forward(bank, states_KD if states is None else states, *others)

    with patch.object(LinearBank, "forward", faulty):
        yield


PLANTS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "item": lambda: _in_bank(lambda states: states * states.sum().item()),
    "mask": lambda: _in_bank(lambda states: states * states[states > 0].sum()),
    "copy": lambda: _in_bank(lambda states: states * torch.ones(1).to(states.device)),
    "mixed devices": lambda: _in_bank(lambda states: states * torch.ones(1, states.shape[1])),
    "detached": lambda: _in_bank(lambda states: states.detach()),
}
