"""Recipe -> TaskSpecs: built-in rows and user tasks checked and completed, all problems in one ConfigError.
Opens no data file.

Only existence of files and folders is looked at here; what is in them is checked by data/rows/checked.py.
What a task's settings may say is in task_settings.py and kind_checks.py, where its rows come from in
user_sources.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.recipe import DataSettings, Recipe, TaskSettings
from mtdnn_ds.config.setting_types import UnknownSetting, as_far_as_known
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.kind_checks import kind_problems
from mtdnn_ds.tasks.kinds import KINDS
from mtdnn_ds.tasks.own_kinds import num_outputs_problem, own_facts
from mtdnn_ds.tasks.plugins import load_plugins
from mtdnn_ds.tasks.saved_datasets import completed
from mtdnn_ds.tasks.spec import CustomKind, Source, TaskSpec
from mtdnn_ds.tasks.task_settings import (
    check_columns,
    check_needed_keys,
    dropout_of,
    head_of,
    labels_of,
    metrics_of,
    metrics_of_options,
    objective_of,
    options_of,
)
from mtdnn_ds.tasks.user_sources import user_splits

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
    recipe: Recipe,
    *,
    own_kinds: Mapping[str, CustomKind] | None = None,
    needs_files: bool = True,
    cross_checked: bool = False,
) -> tuple[TaskSpec, ...]:
    """Specs of the recipe's tasks, in its order, every one of them trainable.

    `own_kinds`: kinds of the user's own, instead of those in the recipe's plugin files, which are run.
    Without `needs_files`, splits whose files are gone are left out: a trained model does not need them.
    `cross_checked`: names of tasks elsewhere in the recipe have been looked at (config/crosscheck.py).

    Raises one ConfigError with every problem; of the sound part of a recipe (config/partial.py)
    UnknownSetting, if nothing is wrong with that part.
    """
    problems: list[str] = []
    absent = problems if needs_files else []
    if own_kinds is None:
        own_kinds = _own_kinds(recipe, problems)
    if not cross_checked:
        problems += as_far_as_known(_strangers(recipe))

    specs: list[TaskSpec] = []
    unknown: UnknownSetting | None = None
    for name, settings in recipe.tasks.items():
        num_before = len(problems)
        try:
            if name in BUILTIN_TASKS:
                spec = _builtin(name, settings, recipe.data, problems, absent)
            else:
                spec = _user_task(name, settings, own_kinds, problems, absent)
        except UnknownSetting as error:
            unknown = error
            continue
        if spec is not None and len(problems) == num_before:
            specs.append(spec)

    if problems:
        raise ConfigError(problems)
    if unknown is not None:
        raise unknown
    if isinstance(recipe.loss.scale, dict):
        scales = recipe.loss.scale
        specs = [replace(spec, loss_scale=scales.get(spec.name, 1.0)) for spec in specs]
    return tuple(specs)


def builtin_task(name: str, data: DataSettings) -> TaskSpec:
    """A built-in task outside any recipe: for prediction (`ax`, which has only a test split) and for
    listing."""
    if name not in BUILTIN_TASKS:
        raise ConfigError(f"unknown task '{name}'{did_you_mean(name, BUILTIN_TASKS)}")
    problems: list[str] = []
    spec = _builtin_spec(name, TaskSettings.model_validate({}), data, problems, absent=problems)
    if problems:
        raise ConfigError(problems)
    return spec


def _own_kinds(recipe: Recipe, problems: list[str]) -> Mapping[str, CustomKind] | None:
    """Kinds of the recipe's plugin files; None where these cannot be used, or are not known."""
    try:
        return load_plugins(recipe.plugins)
    except ConfigError as error:
        problems += error.problems
    except UnknownSetting:
        pass
    return None


def _strangers(recipe: Recipe) -> Iterator[str]:
    """Names with a scale or a rate that are no task's."""
    for key, named in (("loss.scale", recipe.loss.scale), ("mixture.rates", recipe.mixture.rates)):
        if not isinstance(named, dict):
            continue
        for name in named:
            if name not in recipe.tasks:
                yield f"{key}.{name}: no such task in this run{did_you_mean(name, recipe.tasks)}"


def _builtin(
    name: str, settings: TaskSettings, data: DataSettings, problems: list[str], absent: list[str]
) -> TaskSpec | None:
    """`absent`: where files that are not there are named, here and below."""
    if "train" not in BUILTIN_TASKS[name].remote:
        problems.append(
            f"tasks.{name}: this task has no training rows and is only predicted, with the head of mnli; "
            "take it out of 'tasks'"
        )
        return None

    for key in _USER_KEYS:
        if getattr(settings, key) is not None:
            problems.append(
                f"tasks.{name}.{key}: '{name}' is a built-in task, whose {key} is fixed; "
                "give your own task another name"
            )
    return _builtin_spec(name, settings, data, problems, absent)


def _builtin_spec(
    name: str, settings: TaskSettings, data: DataSettings, problems: list[str], absent: list[str]
) -> TaskSpec:
    task = BUILTIN_TASKS[name]
    splits = dict(task.remote)
    if task.folder_setting is not None and getattr(data, task.folder_setting) is not None:
        folder = Path(getattr(data, task.folder_setting)).expanduser()
        splits = _folder_splits(name, f"data.{task.folder_setting}", folder, absent)

    return TaskSpec(
        name=name,
        kind=task.kind,
        labels=task.labels,
        metrics=metrics_of(name, settings, task.kind, len(task.labels), task.metrics, problems),
        splits=splits,
        dropout=settings.dropout,
        objective=objective_of(name, settings, task.kind, problems),
        head=head_of(name, settings, task.kind, splits, problems),
        options=options_of(name, settings, task.kind, problems, task.options),
    )


def _folder_splits(name: str, key: str, folder: Path, absent: list[str]) -> dict[str, Source]:
    """Splits whose files exist.

    Missing dev and test files leave their splits out; a missing first file (train) is named in `absent`.
    """
    task = BUILTIN_TASKS[name]
    if task.inner_folder and (folder / task.inner_folder).is_dir():
        folder = folder / task.inner_folder
    sources = task.folder
    required = next(iter(sources.values()))
    if not (folder / required.path).is_file():
        absent.append(
            f"tasks.{name}: {key}={folder} has no file {Path(required.path)}; put it there, or unset {key} "
            "to use the hub"
        )

    found = {split: folder / source.path for split, source in sources.items()}
    return {split: replace(sources[split], path=str(path)) for split, path in found.items() if path.is_file()}


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
            f"{where}: unknown task '{name}'{did_you_mean(name, BUILTIN_TASKS)}; "
            "a task of your own needs kind, text_columns, label_column and files"
        )
        return None
    if _TASK_NAME.fullmatch(name) is None or name == "average":
        problems.append(
            f"{where}: a task name is made of up to 100 letters, digits, '_' and '-', and is not 'average'"
        )

    kind, custom = settings.kind, (own_kinds or {}).get(settings.kind or "")
    if kind is not None and kind not in KINDS and custom is None:
        if own_kinds is not None:
            hint = did_you_mean(kind, [*KINDS, *own_kinds])
            problems.append(
                f"{where}.kind={kind}: unknown kind{hint}; "
                "a kind of your own comes from a file that plugins names"
            )
        return None
    facts = KINDS.get(kind or "") if custom is None else own_facts(custom)

    check_needed_keys(where, settings, facts, problems)
    labels = labels_of(where, settings, facts, problems)
    splits = user_splits(where, settings, facts, problems, absent)
    check_columns(where, settings, facts, problems)
    problems += kind_problems(where, settings, labels)
    if kind is None or facts is None:
        return None

    options = options_of(name, settings, kind, problems)
    default_metrics = (*facts.metrics, *metrics_of_options(name, settings, facts, options, problems))
    spec = TaskSpec(
        name=name,
        kind=kind,
        labels=labels,
        metrics=metrics_of(name, settings, kind, len(labels), default_metrics, problems, custom),
        splits=splits,
        objective=objective_of(name, settings, kind, problems),
        head=head_of(name, settings, kind, splits, problems),
        dropout=dropout_of(name, settings, facts, problems),
        options=options,
        custom=custom,
    )
    if custom is not None and (labels or not custom.has_labels):
        problem = num_outputs_problem(spec)
        if problem is not None:
            problems.append(problem)
    return spec
