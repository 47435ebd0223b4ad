"""What the settings of one task may and must say for its kind, by the table in tasks/kinds.py. Opens no file.

Each function adds to `problems` what is wrong, and gives the value that the task has. Checks that belong to a
single kind are in kind_checks.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.recipe import TaskSettings
from mtdnn_ds.tasks.builtin import NO_GOLD_LABEL
from mtdnn_ds.tasks.kinds import KIND_OPTIONS, KINDS, KindFacts
from mtdnn_ds.tasks.metrics import METRICS, metric_misfit
from mtdnn_ds.tasks.own_kinds import NO_FACTS, own_metric_problems
from mtdnn_ds.tasks.spec import CustomKind, Kind, Source
from mtdnn_ds.tasks.user_sources import COLUMN_NUMBER


def check_needed_keys(
    where: str, settings: TaskSettings, facts: KindFacts | None, problems: list[str]
) -> None:
    """What a task of the user's own cannot do without."""
    for key in _needed_keys(settings, facts):
        if getattr(settings, key) is not None:
            continue
        who = f"a {settings.kind}" if key in KIND_OPTIONS else "every task of your own"
        problems.append(f"{where}.{key}: missing; {who} needs it")


def _needed_keys(settings: TaskSettings, facts: KindFacts | None) -> list[str]:
    """Columns are needed only where a file is a table."""
    if facts is None:
        return ["kind", "text_columns", "label_column"]
    files = list((settings.files or {}).values())
    if files and all(Path(file).suffix.lower() in facts.formats for file in files):
        return ["kind"]
    label_column = ["label_column"] if facts.has_label else []
    return ["kind", "text_columns", *label_column, *facts.needs]


def options_of(
    name: str,
    settings: TaskSettings,
    kind: Kind,
    problems: list[str],
    of_task: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The kind's own settings, completed by those `of_task` and the kind's defaults; those of other kinds are
    problems."""
    own = KINDS.get(kind, NO_FACTS).options
    for key in KIND_OPTIONS:
        if getattr(settings, key) is not None and key not in own:
            owners = [other for other, facts in KINDS.items() if key in facts.options]
            problems.append(
                f"tasks.{name}.{key}: has no effect on a {kind}; it belongs to {' and '.join(owners)}; "
                "remove it"
            )

    options = {**own, **(of_task or {})}
    for key in options:
        given = getattr(settings, key, None)
        if given is not None:
            options[key] = given
    return options


def dropout_of(name: str, settings: TaskSettings, facts: KindFacts, problems: list[str]) -> float | None:
    """Before the task's head; None: the encoder's own."""
    if facts.has_dropout:
        return settings.dropout
    if settings.dropout is not None:
        problems.append(
            f"tasks.{name}.dropout: has no effect on a {settings.kind}, whose head has none; remove it"
        )
    return 0.0


def metrics_of_options(
    name: str, settings: TaskSettings, facts: KindFacts, options: Mapping[str, Any], problems: list[str]
) -> tuple[str, ...]:
    """Metrics of the options that are on; one of an option that is off is a problem."""
    for option, metric in facts.option_metrics.items():
        if not options[option] and metric in (settings.metrics or ()):
            problems.append(
                f"tasks.{name}.metrics: '{metric}' needs tasks.{name}.{option}: true; remove the metric, or "
                "set it"
            )
    return tuple(metric for option, metric in facts.option_metrics.items() if options[option])


def metrics_of(
    name: str,
    settings: TaskSettings,
    kind: Kind,
    num_labels: int,
    default: tuple[str, ...],
    problems: list[str],
    custom: CustomKind | None = None,
) -> tuple[str, ...]:
    """The metrics that are given, or the default."""
    metrics = tuple(settings.metrics or default)
    if custom is not None:
        problems += own_metric_problems(name, settings, custom)
    else:
        for metric in metrics:
            problem = _metric_problem(metric, kind, num_labels)
            if problem is not None:
                problems.append(f"tasks.{name}.metrics: {problem}")

    if len(set(metrics)) < len(metrics):
        problems.append(
            f"tasks.{name}.metrics: a metric stands twice, which would count it twice in the task's score"
        )
    return metrics


def _metric_problem(metric: str, kind: Kind, num_labels: int) -> str | None:
    if metric not in METRICS:
        fitting = [name for name, known in METRICS.items() if kind in known.kinds]
        return f"unknown metric '{metric}'{did_you_mean(metric, fitting)}"
    if num_labels == 0 and KINDS[kind].has_classes:
        return None  # whether it fits depends on the labels, which are missing
    return metric_misfit(metric, kind, num_labels)


def objective_of(name: str, settings: TaskSettings, kind: Kind, problems: list[str]) -> str | None:
    """Which of the kind's losses; None where it has only one."""
    choices = KINDS.get(kind, NO_FACTS).objectives
    if settings.objective is not None and settings.objective not in choices:
        what = f"a {kind} has {', '.join(choices)}" if choices else f"a {kind} has only one loss; remove it"
        problems.append(f"tasks.{name}.objective={settings.objective}: {what}")
    if settings.objective is None and choices:
        return choices[0]
    return settings.objective


def head_of(
    name: str, settings: TaskSettings, kind: Kind, splits: Mapping[str, Source], problems: list[str]
) -> Literal["linear", "san"]:
    """Which head the task has."""
    if settings.head == "san" and "san" not in KINDS.get(kind, NO_FACTS).heads:
        problems.append(
            f"tasks.{name}.head=san: is for classification of pairs, this task is a {kind}; remove it"
        )
    elif settings.head == "san" and any(len(source.text_columns) != 2 for source in splits.values()):
        problems.append(
            f"tasks.{name}.head=san: attends from one text to the other, and this task has one text; remove "
            "it"
        )
    return settings.head or "linear"


def labels_of(
    where: str, settings: TaskSettings, facts: KindFacts | None, problems: list[str]
) -> tuple[str, ...]:
    """The names of the task's labels."""
    labels = tuple(settings.labels or ())
    if facts is not None and facts.has_classes and not labels:
        problems.append(
            f"{where}.labels: missing; a {settings.kind} lists its label names, in class-id order"
        )
    if facts is not None and not facts.has_classes and labels:
        why = ", its label_column holds numbers" if settings.kind in ("regression", "similarity") else ""
        problems.append(f"{where}.labels: a {settings.kind} has no label names{why}; remove the key")

    if NO_GOLD_LABEL in labels:
        problems.append(f"{where}.labels: a label name is empty")
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        problems.append(f"{where}.labels: '{repeated[0]}' stands twice; every class has its own name")
    return labels


def check_columns(where: str, settings: TaskSettings, facts: KindFacts | None, problems: list[str]) -> None:
    """How many columns there are, and whether they can be told apart."""
    texts, label = settings.text_columns or [], settings.label_column
    if facts is not None:
        fewest, most = facts.texts
        if texts and not fewest <= len(texts) <= most:
            wanted = str(fewest) if fewest == most else f"{fewest} or {most}"
            problems.append(f"{where}.text_columns: a {settings.kind} has {wanted}, not {len(texts)}")
        if label is not None and not facts.has_label:
            problems.append(f"{where}.label_column: a {settings.kind} makes its own labels; remove the key")

    if len(set(texts)) < len(texts):
        problems.append(
            f"{where}.text_columns: '{texts[0]}' stands twice; a task with one text names one column"
        )
    if label in texts:
        problems.append(
            f"{where}.label_column: '{label}' is a text column too, so the model would read its answer"
        )

    columns = [*texts, label] if label else texts
    numbered = [column for column in columns if COLUMN_NUMBER.fullmatch(column)]
    if settings.files and 0 < len(numbered) < len(columns):
        problems.append(
            f"{where}: columns are given both by number and by name; numbers (0, 1, -1 ...) are for files "
            "without a header, names for files with one"
        )
