"""What a recipe must and may say of a task of a user's own kind, and whether the kind's record fits the task.
Loads no file (tasks/plugins.py)."""

from __future__ import annotations

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.recipe import TaskSettings
from mtdnn_ds.tasks.kinds import KindFacts
from mtdnn_ds.tasks.spec import CustomKind, TaskSpec

NO_FACTS = KindFacts(metrics=(), texts=(1, 2))
"""Settings of its kind that a task of a user's own has: none of ours."""


def own_facts(kind: CustomKind) -> KindFacts:
    """The kind as tasks/kinds.py describes ours."""
    if kind.reads == "sequence":
        return KindFacts(metrics=tuple(kind.metrics), texts=(1, 2), has_classes=kind.has_labels)
    return KindFacts(
        metrics=tuple(kind.metrics), texts=(1, 1), has_classes=kind.has_labels, formats={".conll": "conll"}
    )


def own_metric_problems(name: str, settings: TaskSettings, kind: CustomKind) -> list[str]:
    """Metrics of the task that its kind does not have."""
    return [
        f"tasks.{name}.metrics: kind {kind.name} has no metric '{metric}'{did_you_mean(metric, kind.metrics)}"
        for metric in settings.metrics or ()
        if metric not in kind.metrics
    ]


def num_outputs_problem(spec: TaskSpec) -> str | None:
    """Why the kind's `num_outputs` does not serve the task, or None."""
    assert spec.custom is not None
    try:
        count = spec.custom.num_outputs(spec)
    except Exception as error:  # the user's own code, whatever it raises
        return f"tasks.{spec.name}: num_outputs of kind {spec.kind} failed: {type(error).__name__}: {error}"
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        return (
            f"tasks.{spec.name}: num_outputs of kind {spec.kind} gave {count!r}; it must give a whole "
            "number, at least 1"
        )
    return None
