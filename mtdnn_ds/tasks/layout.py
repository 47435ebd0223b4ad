"""HeadLayout: which columns of the fused sequence head belong to which task. Integers only; shared by model and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtdnn_ds.tasks.spec import TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadLayout:
    """Task t owns columns first_column[t] .. first_column[t] + num_outputs[t] - 1 of the fused head."""

    task_names: tuple[str, ...]
    first_column: tuple[int, ...]
    num_outputs: tuple[int, ...]
    is_regression: tuple[bool, ...]

    @property
    def num_columns(self) -> int:
        return sum(self.num_outputs)


def head_layout(specs: Sequence[TaskSpec]) -> HeadLayout:
    """Columns in the order of `specs`."""
    outputs = tuple(spec.num_outputs for spec in specs)
    return HeadLayout(
        task_names=tuple(spec.name for spec in specs),
        first_column=tuple(sum(outputs[:index]) for index in range(len(outputs))),
        num_outputs=outputs,
        is_regression=tuple(spec.kind == "regression" for spec in specs),
    )
