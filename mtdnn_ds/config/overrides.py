"""Dotted flags (--train.steps 1000) applied to a recipe's plain values before validation. Text is typed here
as far as the schema says; ranges are the models' business."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.idle_settings import ONLY_WITH
from mtdnn_ds.config.schema import annotation_at, field_docs, member_types, section_of, unknown_setting
from mtdnn_ds.config.yaml_text import parse_scalar

_REPLACES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("train", "steps"): ("train", "epochs"),
    ("train", "epochs"): ("train", "steps"),
}


@dataclass(kw_only=True, slots=True)
class Overridden:
    """A recipe's values after the flags, which flag each value came from, what was replaced, and what was
    wrong."""

    values: dict[str, Any]
    # Path of the value -> the flag as the user wrote it
    flags: dict[tuple[str, ...], str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def apply_overrides(values: dict[str, Any], overrides: Mapping[str, str], source: str) -> Overridden:
    """`values` with each `overrides` entry ("train.steps" -> "1000") set; `values` is changed in place.

    `tasks` first, then the rest in the given order, so that `--tasks cola,rte --tasks.cola.dropout 0.2` means
    what it says.
    """
    result = Overridden(values=values)
    tasks = values.get("tasks")
    if isinstance(tasks, list) and all(isinstance(name, str) for name in tasks):
        values["tasks"] = {name: {} for name in tasks}
    if "tasks" in overrides:
        _select_tasks(result, overrides["tasks"], source)
    given = {tuple(name.split(".")) for name in overrides}
    for name, raw in overrides.items():
        if name != "tasks":
            _apply(result, tuple(name.split(".")), raw, given, source)
    return result


def parse_text(raw: str, annotation: Any) -> Any:
    """A flag's text as the value that `annotation` asks for; where it cannot be one, what YAML makes of it
    (the model then refuses it).

    Text settings take the text as it is ('#', ',' and all), quotes around the whole of it removed. Lists are
    written a,b or [a, b].
    """
    members = member_types(annotation)
    if raw in ("null", "~") and types.NoneType in members:
        return None
    if bool in members and isinstance(parse_scalar(raw), bool):
        return parse_scalar(raw)

    origins = {get_origin(member): member for member in members}
    sequence = origins.get(list) or origins.get(tuple)
    if sequence is not None and not raw.startswith("["):
        return [parse_text(part.strip(), get_args(sequence)[0]) for part in raw.split(",")]
    if origins.keys() & {dict, list, tuple} and raw[:1] in ("{", "["):
        return parse_scalar(raw)

    if str in members or Literal in origins:
        quoted = len(raw) >= 2 and raw[0] == raw[-1] and raw[0] in "'\""
        return parse_scalar(raw) if quoted else raw
    return parse_scalar(raw)


def _select_tasks(result: Overridden, raw: str, source: str) -> None:
    known = result.values.get("tasks")
    settings = known if isinstance(known, dict) else {}
    names = [name.strip() for name in raw.strip("[]").split(",") if name.strip()]
    for name in sorted({name for name in names if names.count(name) > 1}):
        result.problems.append(f"--tasks {raw}: task '{name}' is named twice; name it once")
    if not names:
        result.problems.append(f"--tasks {raw}: names no task; write --tasks cola,rte")

    result.values["tasks"] = {name: settings.get(name, {}) for name in names}
    result.flags[("tasks",)] = f"--tasks {raw}"

    left_out = [name for name in settings if name not in names]
    for path in (("mixture", "rates"), ("loss", "scale"), ("heads",)):
        _leave_out(result, path, left_out, raw, source)


def _leave_out(
    result: Overridden, path: tuple[str, ...], tasks: Sequence[str], raw: str, source: str
) -> None:
    """Forget, with a note, what a setting says of tasks that --tasks leaves out."""
    named: Any = result.values
    for part in path:
        named = named.get(part) if isinstance(named, dict) else None
    if not isinstance(named, dict):
        return
    for name in tasks:
        if name in named:
            value = named.pop(name)
            result.notes.append(
                f"--tasks {raw} leaves out {name}: {'.'.join(path)}.{name}={value} of {source} is not used"
            )


def _apply(
    result: Overridden, path: tuple[str, ...], raw: str, given: set[tuple[str, ...]], source: str
) -> None:
    name, flag = ".".join(path), f"--{'.'.join(path)} {raw}"
    annotation = annotation_at(path)
    if annotation is None or not all(path):
        line = unknown_setting(path).replace("setting '", "setting '--", 1)
        result.problems.append(line.replace("did you mean '", "did you mean '--", 1))
        return
    if section_of(path) is not None:
        inside = [doc.name for doc in field_docs() if doc.name.startswith(f"{path[0]}.")]
        example = inside[0].replace("tasks.NAME.", f"{name}.") if inside else path[0]
        result.problems.append(f"--{name}: is a section; name one of its settings, e.g. --{example}")
        return

    if path[0] == "tasks":
        task = _task_in_run(result, path[1])
        if task is None:
            hint = did_you_mean(path[1], _task_names(result))
            result.problems.append(
                f"--{name}: task '{path[1]}' is not in the run{hint}; "
                f"add it under 'tasks' in {source} or with --tasks"
            )
            return
        path = (path[0], task, *path[2:])
    elif path[:2] in (("mixture", "rates"), ("loss", "scale")) and len(path) == 3:
        path = (*path[:2], _task_in_run(result, path[2]) or path[2])
    elif path[0] == "heads" and len(path) == 2:
        path = ("heads", _task_in_run(result, path[1]) or path[1])

    put(result, path, parse_text(raw, annotation), given, source)
    result.flags[path] = flag


def put(
    result: Overridden, path: tuple[str, ...], value: Any, given: set[tuple[str, ...]], source: str
) -> None:
    """Set one value over another one; what contradicts it goes, and is noted, unless it is one of `given`,
    the paths set at the same time."""
    _forget_alternative(result, path, given, source)
    _forget_dependents(result, path, value, given, source)
    _set(result, path, value, source)


def _set(result: Overridden, path: tuple[str, ...], value: Any, source: str) -> None:
    section = result.values
    for depth, part in enumerate(path[:-1], start=1):
        inner = section.get(part)
        if not isinstance(inner, dict):
            if inner is not None:
                result.notes.append(
                    f"--{'.'.join(path)} replaces {'.'.join(path[:depth])}={inner} of {source}"
                )
            inner = section[part] = {}
        section = inner
    section[path[-1]] = value


def _forget_alternative(
    result: Overridden, path: tuple[str, ...], given: set[tuple[str, ...]], source: str
) -> None:
    """--train.steps on a recipe with train.epochs means: steps instead. Both as flags stay, and are refused
    as a contradiction."""
    other = _REPLACES.get(path)
    train = result.values.get("train")
    if other is None or other in given or not isinstance(train, dict) or train.get(other[1]) is None:
        return
    result.notes.append(f"--{'.'.join(path)} replaces {'.'.join(other)}={train.pop(other[1])} of {source}")


def _forget_dependents(
    result: Overridden, path: tuple[str, ...], value: Any, given: set[tuple[str, ...]], source: str
) -> None:
    """--mixture.rates uniform on a recipe with mixture.temperature: the temperature goes, unless a flag gives
    it too (a contradiction)."""
    for name, (decider, needed) in ONLY_WITH.items():
        section, key = name.split(".")
        settings = result.values.get(section)
        if (
            decider == ".".join(path[:2])
            and value not in needed
            and (section, key) not in given
            and isinstance(settings, dict)
            and key in settings
        ):
            result.notes.append(
                f"--{'.'.join(path)}: {name}={settings.pop(key)} of {source} has no effect with it and is "
                "not used"
            )


def _task_names(result: Overridden) -> list[str]:
    tasks = result.values.get("tasks")
    if not isinstance(tasks, dict):
        return []
    return [name for name in tasks if isinstance(name, str)]


def _task_in_run(result: Overridden, name: str) -> str | None:
    """The task a flag means. The command line writes every '-' of a flag's name as '_', so 'my_task' may mean
    'my-task'."""
    names = _task_names(result)
    if name in names:
        return name
    same = [candidate for candidate in names if candidate.replace("-", "_") == name]
    if len(same) != 1:
        return None
    return same[0]
