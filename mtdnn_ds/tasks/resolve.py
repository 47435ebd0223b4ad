"""Recipe -> TaskSpecs: built-in rows and user tasks checked and completed, all problems in one ConfigError. Opens no data file.

Only existence of files and folders is looked at here; what is in them is checked by data/rows/checked.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.recipe import DataSettings, Recipe, TaskSettings
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS, NO_GOLD_LABEL
from mtdnn_ds.tasks.kind_checks import kind_problems
from mtdnn_ds.tasks.kinds import KIND_OPTIONS, KINDS, KindFacts
from mtdnn_ds.tasks.metrics import METRICS, metric_misfit
from mtdnn_ds.tasks.own_kinds import NO_FACTS, num_outputs_problem, own_facts, own_metric_problems
from mtdnn_ds.tasks.plugins import load_plugins
from mtdnn_ds.tasks.saved_datasets import completed
from mtdnn_ds.tasks.spec import CustomKind, Kind, Source, TaskSpec
from mtdnn_ds.tasks.user_sources import COLUMN_NUMBER, user_splits

_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # becomes a folder name and a TensorBoard tag
_USER_KEYS = (
    "kind",
    "files",
    "dataset",
    "hub",
    "splits",
    "text_columns",
    "label_column",
    "labels",
    "choice_columns",
    "group_column",
)


def resolve_tasks(
    recipe: Recipe, *, own_kinds: Mapping[str, CustomKind] | None = None, needs_files: bool = True
) -> tuple[TaskSpec, ...]:
    """Specs of the recipe's tasks, in its order, every one of them trainable. Raises one ConfigError with every problem.

    `own_kinds`: kinds of the user's own, instead of those in the recipe's plugin files, which are run. Without `needs_files`, splits
    whose files are gone are left out: a trained model does not need them.
    """
    problems: list[str] = []
    absent = problems if needs_files else []
    try:
        own_kinds = load_plugins(recipe.plugins) if own_kinds is None else own_kinds
    except ConfigError as error:
        problems += error.problems
    specs: list[TaskSpec] = []
    scales = recipe.loss.scale if isinstance(recipe.loss.scale, dict) else {}
    for key, named in (("loss.scale", scales), ("mixture.rates", recipe.mixture.rates)):
        if isinstance(named, dict):
            problems += [
                f"{key}.{name}: no such task in this run{did_you_mean(name, recipe.tasks)}"
                for name in named
                if name not in recipe.tasks
            ]
    for name, settings in recipe.tasks.items():
        before = len(problems)
        if name in BUILTIN_TASKS:
            spec = _builtin(name, settings, recipe.data, problems, absent)
        else:
            spec = _user_task(name, settings, own_kinds, problems, absent)
        if spec is not None and len(problems) == before:
            specs.append(replace(spec, loss_scale=scales.get(name, 1.0)))
    if problems:
        raise ConfigError(problems)
    return tuple(specs)


def builtin_task(name: str, data: DataSettings) -> TaskSpec:
    """A built-in task outside any recipe: for prediction (`ax`, which has only a test split) and for listing."""
    if name not in BUILTIN_TASKS:
        raise ConfigError(f"unknown task '{name}'{did_you_mean(name, BUILTIN_TASKS)}")
    problems: list[str] = []
    spec = _builtin_spec(name, TaskSettings.model_validate({}), data, problems, absent=problems)
    if problems:
        raise ConfigError(problems)
    return spec


def _builtin(
    name: str, settings: TaskSettings, data: DataSettings, problems: list[str], absent: list[str]
) -> TaskSpec | None:
    """`absent`: where files that are not there are named, here and below."""
    if "train" not in BUILTIN_TASKS[name].remote:
        problems.append(
            f"tasks.{name}: this task has no training rows and is only predicted, with the head of mnli; take it out of 'tasks'"
        )
        return None
    for key in _USER_KEYS:
        if getattr(settings, key) is not None:
            problems.append(
                f"tasks.{name}.{key}: '{name}' is a built-in task, whose {key} is fixed; give your own task another name"
            )
    return _builtin_spec(name, settings, data, problems, absent)


def _builtin_spec(
    name: str, settings: TaskSettings, data: DataSettings, problems: list[str], absent: list[str]
) -> TaskSpec:
    task = BUILTIN_TASKS[name]
    folder = getattr(data, task.folder_setting) if task.folder_setting else None
    splits = (
        dict(task.remote)
        if folder is None
        else _folder_splits(name, f"data.{task.folder_setting}", Path(folder).expanduser(), absent)
    )
    metrics = _metrics(name, settings, task.kind, len(task.labels), task.metrics, problems)
    objective, head = (
        _objective(name, settings, task.kind, problems),
        _head(name, settings, task.kind, splits, problems),
    )
    options = _options(name, settings, task.kind, problems, task.options)
    return TaskSpec(
        name=name, kind=task.kind, labels=task.labels, metrics=metrics, splits=splits, dropout=settings.dropout,
        head=head, objective=objective, options=options,
    )  # fmt: skip


def _folder_splits(name: str, key: str, folder: Path, absent: list[str]) -> dict[str, Source]:
    """Splits whose files exist. Missing dev and test files leave their splits out; a missing first file (train) is named in `absent`."""
    sources = {
        split: replace(source, path=str(folder / source.path))
        for split, source in BUILTIN_TASKS[name].folder.items()
    }
    required = next(iter(sources))
    if not Path(sources[required].path).is_file():
        absent.append(
            f"tasks.{name}: {key}={folder} has no file {Path(sources[required].path).relative_to(folder)}; put it there, or unset {key} to use the hub"
        )
    return {split: source for split, source in sources.items() if Path(source.path).is_file()}


def _user_task(
    name: str,
    settings: TaskSettings,
    own_kinds: Mapping[str, CustomKind] | None,
    problems: list[str],
    absent: list[str],
) -> TaskSpec | None:
    """`own_kinds` None: their files cannot be used, which has been said."""
    where, settings = f"tasks.{name}", completed(settings)
    if all(getattr(settings, key) is None for key in _USER_KEYS):
        problems.append(
            f"{where}: unknown task '{name}'{did_you_mean(name, BUILTIN_TASKS)}; a task of your own needs kind, text_columns, label_column and files"
        )
        return None
    if _TASK_NAME.fullmatch(name) is None or name == "average":
        problems.append(
            f"{where}: a task name is made of up to 100 letters, digits, '_' and '-', and is not 'average'"
        )
    custom = (own_kinds or {}).get(settings.kind or "")
    if settings.kind is not None and settings.kind not in KINDS and custom is None:
        if own_kinds is not None:
            known = did_you_mean(settings.kind, [*KINDS, *own_kinds])
            problems.append(
                f"{where}.kind={settings.kind}: unknown kind{known}; a kind of your own comes from a file that plugins names"
            )
        return None
    facts = KINDS.get(settings.kind or "") if custom is None else own_facts(custom)
    for key in _needed_keys(settings, facts):
        if getattr(settings, key) is None:
            problems.append(f"{where}.{key}: missing; {_who_needs(key, settings)} needs it")
    labels = _labels(where, settings, facts, problems)
    splits = user_splits(where, settings, facts, problems, absent)
    _check_columns(where, settings, facts, problems)
    problems += kind_problems(where, settings, labels)
    if settings.kind is None or facts is None:
        return None
    options = _options(name, settings, settings.kind, problems)
    default = (*facts.metrics, *_metrics_of_options(name, settings, facts, options, problems))
    metrics = _metrics(name, settings, settings.kind, len(labels), default, problems, custom)
    objective, head = (
        _objective(name, settings, settings.kind, problems),
        _head(name, settings, settings.kind, splits, problems),
    )
    spec = TaskSpec(
        name=name, kind=settings.kind, labels=labels, metrics=metrics, splits=splits, dropout=_dropout(name, settings, facts, problems),
        head=head, objective=objective, options=options, custom=custom,
    )  # fmt: skip
    if (
        custom is not None
        and (labels or not custom.has_labels)
        and (problem := num_outputs_problem(spec)) is not None
    ):
        problems.append(problem)
    return spec


def _needed_keys(settings: TaskSettings, facts: KindFacts | None) -> tuple[str, ...]:
    """What a task of the user's own cannot do without: columns only where a file is a table."""
    if (
        facts is not None
        and settings.files
        and all(Path(file).suffix.lower() in facts.formats for file in settings.files.values())
    ):
        return ("kind",)
    has_label = facts is None or facts.has_label
    return (
        "kind",
        "text_columns",
        *(("label_column",) if has_label else ()),
        *(facts.needs if facts else ()),
    )


def _who_needs(key: str, settings: TaskSettings) -> str:
    return f"a {settings.kind}" if key in KIND_OPTIONS else "every task of your own"


def _options(
    name: str,
    settings: TaskSettings,
    kind: Kind,
    problems: list[str],
    of_task: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The kind's own settings, completed by those `of_task` and the kind's defaults; settings of other kinds are problems."""
    for key in KIND_OPTIONS:
        if getattr(settings, key) is not None and key not in KINDS.get(kind, NO_FACTS).options:
            owners = [other for other, facts in KINDS.items() if key in facts.options]
            problems.append(
                f"tasks.{name}.{key}: has no effect on a {kind}; it belongs to {' and '.join(owners)}; remove it"
            )
    defaults = {**KINDS.get(kind, NO_FACTS).options, **(of_task or {})}
    return {
        key: default if getattr(settings, key, None) is None else getattr(settings, key)
        for key, default in defaults.items()
    }


def _dropout(name: str, settings: TaskSettings, facts: KindFacts, problems: list[str]) -> float | None:
    if facts.has_dropout:
        return settings.dropout
    if settings.dropout is not None:
        problems.append(
            f"tasks.{name}.dropout: has no effect on a {settings.kind}, whose head has none; remove it"
        )
    return 0.0


def _metrics_of_options(
    name: str, settings: TaskSettings, facts: KindFacts, options: Mapping[str, Any], problems: list[str]
) -> tuple[str, ...]:
    """Metrics of the options that are on; one of an option that is off is a problem."""
    for option, metric in facts.option_metrics.items():
        if not options[option] and metric in (settings.metrics or ()):
            problems.append(
                f"tasks.{name}.metrics: '{metric}' needs tasks.{name}.{option}: true; remove the metric, or set it"
            )
    return tuple(metric for option, metric in facts.option_metrics.items() if options[option])


def _objective(name: str, settings: TaskSettings, kind: Kind, problems: list[str]) -> str | None:
    choices = KINDS.get(kind, NO_FACTS).objectives
    if settings.objective is not None and settings.objective not in choices:
        what = f"a {kind} has {', '.join(choices)}" if choices else f"a {kind} has only one loss; remove it"
        problems.append(f"tasks.{name}.objective={settings.objective}: {what}")
    return settings.objective or (choices[0] if choices else None)


def _head(
    name: str, settings: TaskSettings, kind: Kind, splits: Mapping[str, Source], problems: list[str]
) -> Literal["linear", "san"]:
    if settings.head == "san" and "san" not in KINDS.get(kind, NO_FACTS).heads:
        problems.append(
            f"tasks.{name}.head=san: is for classification of pairs, this task is a {kind}; remove it"
        )
    elif settings.head == "san" and any(len(source.text_columns) != 2 for source in splits.values()):
        problems.append(
            f"tasks.{name}.head=san: attends from one text to the other, and this task has one text; remove it"
        )
    return settings.head or "linear"


def _labels(
    where: str, settings: TaskSettings, facts: KindFacts | None, problems: list[str]
) -> tuple[str, ...]:
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


def _metrics(
    name: str,
    settings: TaskSettings,
    kind: Kind,
    num_labels: int,
    default: tuple[str, ...],
    problems: list[str],
    custom: CustomKind | None = None,
) -> tuple[str, ...]:
    metrics = tuple(settings.metrics or default)
    problems += [] if custom is None else own_metric_problems(name, settings, custom)
    for metric in metrics if custom is None else ():
        if metric not in METRICS:
            problems.append(
                f"tasks.{name}.metrics: unknown metric '{metric}'{did_you_mean(metric, _metrics_for(kind))}"
            )
        elif (misfit := metric_misfit(metric, kind, num_labels)) is not None and (
            num_labels or not KINDS[kind].has_classes
        ):
            problems.append(f"tasks.{name}.metrics: {misfit}")
    if len(set(metrics)) < len(metrics):
        problems.append(
            f"tasks.{name}.metrics: a metric stands twice, which would count it twice in the task's score"
        )
    return metrics


def _metrics_for(kind: Kind) -> list[str]:
    return [name for name, metric in METRICS.items() if kind in metric.kinds]


def _check_columns(where: str, settings: TaskSettings, facts: KindFacts | None, problems: list[str]) -> None:
    texts = settings.text_columns or []
    if texts and facts is not None and not facts.texts[0] <= len(texts) <= facts.texts[1]:
        wanted = (
            str(facts.texts[0])
            if facts.texts[0] == facts.texts[1]
            else f"{facts.texts[0]} or {facts.texts[1]}"
        )
        problems.append(f"{where}.text_columns: a {settings.kind} has {wanted}, not {len(texts)}")
    if facts is not None and not facts.has_label and settings.label_column is not None:
        problems.append(f"{where}.label_column: a {settings.kind} makes its own labels; remove the key")
    if len(set(texts)) < len(texts):
        problems.append(
            f"{where}.text_columns: '{texts[0]}' stands twice; a task with one text names one column"
        )
    if settings.label_column in texts:
        problems.append(
            f"{where}.label_column: '{settings.label_column}' is a text column too, so the model would read its answer"
        )
    columns = [*texts, *([settings.label_column] if settings.label_column else [])]
    numbered = [column for column in columns if COLUMN_NUMBER.fullmatch(column)]
    if settings.files and 0 < len(numbered) < len(columns):
        problems.append(
            f"{where}: columns are given both by number and by name; numbers (0, 1, -1 ...) are for files without a header, names for files with one"
        )
