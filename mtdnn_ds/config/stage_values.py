"""The plain values of a stage: the recipe's defaults with the stage's own settings over them. Checks no value
(stages.py)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mtdnn_ds.config.overrides import Overridden, put
from mtdnn_ds.config.recipe import Recipe

INIT_OF_STAGES = ("heads", "head_of")  # what a stage may say of `init`: the run is the earlier stage's

# Defaults that name tasks: of them, only what is about a stage's own tasks stays.
_NAMING_TASKS = (
    ("mixture", "rates"),
    ("loss", "scale"),
    ("sharing", "groups"),
    ("regularizer", "tasks"),
    ("distillation", "tasks"),
)

Paths = set[tuple[str, ...]]


def merged_values(base: Overridden, entry: Mapping[str, Any], only: str | None, path: str) -> Overridden:
    """The defaults with a stage's own settings over them. `only`: of its tasks the one that is trained."""
    result = Overridden(values=copy.deepcopy(base.values), flags=dict(base.flags))
    sections = {section: settings for section, settings in entry.items() if section in Recipe.model_fields}
    if "tasks" in sections:
        result.values["tasks"] = _own_tasks(result.values.get("tasks"), sections.pop("tasks"))
        result.flags.pop(("tasks",), None)

    given: Paths = set()
    for section, settings in sections.items():
        if isinstance(settings, dict):
            given |= {(section, key) for key in settings}
    for section, settings in sections.items():
        if not isinstance(settings, dict):
            result.values[section] = settings  # the recipe's own checks say what is wrong with it
            continue
        for key, value in settings.items():
            put(result, (section, key), copy.deepcopy(value), given, path)
            result.flags = {flag: text for flag, text in result.flags.items() if flag[:2] != (section, key)}

    tasks = result.values.get("tasks")
    if isinstance(tasks, dict):
        if only is not None:
            tasks = result.values["tasks"] = {only: tasks.get(only)}
            given = set()  # its settings are those of all the entry's tasks
        _leave_out_others(result.values, list(tasks), given)
    result.notes.clear()  # what a stage's own setting replaces is plain from the file
    return result


def set_init(
    overridden: Overridden,
    entry: Mapping[str, Any],
    source: str | None,
    source_folder: str | None,
    checkpoint: str,
    where: str,
) -> list[str]:
    """Let the run begin with the stage that it comes from, if any; what the entry says against that."""
    own, values = entry.get("init"), overridden.values
    if source is None:
        if own is None and isinstance(values.get("init"), dict) and "run" not in values["init"]:
            del values["init"]  # init.heads of the defaults is for the stages that begin with another
        return []

    heads, own_heads = values.get("heads"), entry.get("heads", {})
    if isinstance(heads, dict) and isinstance(own_heads, dict):
        # Those of the defaults have been trained by the earlier stage.
        values["heads"] = {name: path for name, path in heads.items() if name in own_heads} or None
    init = values.get("init") or {}
    if isinstance(init, dict):
        kept = {key: init[key] for key in INIT_OF_STAGES if key in init}
        values["init"] = {"run": source_folder, "checkpoint": checkpoint, **kept}

    named = [key for key in ("run", "checkpoint") if isinstance(own, dict) and key in own]
    return [
        f"{where}: init.{key}: the stage begins with stage '{source}'; remove it, or write from: none"
        for key in named
    ]


def _own_tasks(defaults: Any, own: Any) -> Any:
    """A stage's tasks: names take their settings from the recipe's tasks, and settings go over those."""
    if isinstance(own, list) and all(isinstance(name, str) for name in own):
        own = dict.fromkeys(own)
    if not isinstance(own, dict):
        return own

    known = defaults if isinstance(defaults, dict) else {}
    tasks = {}
    for name, settings in own.items():
        of_recipe = copy.deepcopy(known.get(name) or {})
        if settings is None:
            tasks[name] = of_recipe
        elif isinstance(settings, dict) and isinstance(of_recipe, dict):
            tasks[name] = {**of_recipe, **settings}
        else:
            tasks[name] = settings
    return tasks


def _leave_out_others(values: dict[str, Any], tasks: Sequence[str], given: Paths) -> None:
    """Leave out of the defaults what is about other tasks. `given`: what the stage says itself, which
    stays."""
    for section, key in _NAMING_TASKS:
        holder = values.get(section)
        if not isinstance(holder, dict) or (section, key) in given:
            continue
        named = holder.get(key)
        if isinstance(named, list):
            holder[key] = [name for name in named if name in tasks]
        elif isinstance(named, dict) and key == "groups":
            holder[key] = _groups_of(named, tasks)
        elif isinstance(named, dict):
            holder[key] = {name: value for name, value in named.items() if name in tasks}
        if key == "tasks" and holder.get(key) == []:
            del values[section]  # it is for other tasks only

    optimizer = values.get("optimizer")
    if len(tasks) == 1 and isinstance(optimizer, dict) and ("optimizer", "idle_heads") not in given:
        optimizer.pop("idle_heads", None)  # no other task's head could be idle

    if isinstance(values.get("heads"), dict) and not any(path[0] == "heads" for path in given):
        values["heads"] = {name: path for name, path in values["heads"].items() if name in tasks}


def _groups_of(groups: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, list[str]]:
    """The groups with those of `tasks` that they hold; empty ones are left out."""
    kept = {
        group: [name for name in names if name in tasks]
        for group, names in groups.items()
        if isinstance(names, list)
    }
    return {group: names for group, names in kept.items() if names}
