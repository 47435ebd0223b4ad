"""Which tasks a regulariser applies to. Names and forms only; the regularisers are in
train/regularizers/regularizer.py."""

from __future__ import annotations

from collections.abc import Sequence

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.tasks.layout import FORMS, terms_of_spec
from mtdnn_ds.tasks.spec import TaskSpec

COMPARABLE_FORMS: tuple[str, ...] = tuple(form for form in FORMS if form != "masked_token")
"""Forms whose outputs for one micro-batch can be compared with each other (losses/divergence.py).

Masked tokens are left out: several distributions over the whole vocabulary would cost more memory than the
encoder does. A kind of the user's own has a loss, but no rule that says how far two of its outputs are apart.
"""


def regularized_tasks(
    name: str, wanted: Sequence[str] | None, specs: Sequence[TaskSpec]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks that regulariser `name` applies to, and what has to be said of those left out. `wanted`:
    regularizer.tasks.

    Only freelb, which needs nothing but a task's own loss, applies to every kind. Raises ConfigError.
    """
    fitting = [spec for spec in specs if name == "freelb" or _is_comparable(spec)]
    chosen = fitting if wanted is None else [spec for spec in specs if spec.name in wanted]
    others = [f"{spec.name} ({spec.kind})" for spec in specs if spec not in fitting]
    refused = [f"{spec.name} ({spec.kind})" for spec in chosen if spec not in fitting]

    if refused:
        raise ConfigError(
            f"regularizer.name={name}: has no rule for the predictions of {', '.join(refused)}; "
            "take them out of regularizer.tasks, or set regularizer.name to freelb, which needs none, "
            "or to none"
        )
    if not chosen:
        raise ConfigError(
            f"regularizer.name={name}: has no rule for the predictions of {', '.join(others)}; "
            "set regularizer.name to freelb, which needs none, or to none"
        )

    notes: tuple[str, ...] = ()
    if wanted is None and others:
        notes = (
            f"regularizer {name} does not apply to {', '.join(others)}: it has no rule for their predictions",
        )
    return tuple(spec.name for spec in chosen), notes


def _is_comparable(spec: TaskSpec) -> bool:
    return any(form in COMPARABLE_FORMS for _, form, _ in terms_of_spec(spec))
