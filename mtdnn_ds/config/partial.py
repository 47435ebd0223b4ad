"""A recipe's plain values as a Recipe, or as much of one as is right, so that other checks can look at it
too.

A partial recipe is a Recipe like others, but for what is not known of it: reading such a setting raises
UnknownSetting (config/setting_types.py). A setting is not known if it is wrong or missing, or if an unknown
key may be meant for it. No text of a message is made here (messages.py).
"""

from __future__ import annotations

import copy
import difflib
from typing import Any

from pydantic import ValidationError

from mtdnn_ds.config.messages import path_of
from mtdnn_ds.config.recipe import Recipe, TaskSettings
from mtdnn_ds.config.schema import section_of
from mtdnn_ds.config.setting_types import Section

Path = tuple[str, ...]

_MAX_PASSES = (
    4  # the second finds what the first one's errors hid; later ones are for what nobody has thought of
)
_LENGTH = (("train", "steps"), ("train", "epochs"))  # exactly one of them is given


def validated(values: dict[str, Any]) -> tuple[Recipe | None, list[ValidationError]]:
    """The recipe that `values` are, or its sound part, and what is wrong with them; a whole recipe has no
    errors.

    None where nothing can be made of the rest. `values` are left as they are.
    """
    try:
        return Recipe.model_validate(values), []
    except ValidationError as error:
        errors = [error]

    rest, unknown = _with_names_only(copy.deepcopy(values)), set[Path]()
    for _ in range(_MAX_PASSES):
        for detail in errors[-1].errors(include_url=False):
            unknown |= _take_out(rest, detail)
        try:
            recipe = Recipe.model_validate(_with_stand_ins(rest, unknown))
        except ValidationError as error:
            errors.append(error)
            continue
        for path in unknown:
            _forget(recipe, path)
        return recipe, errors
    return None, errors


def _with_names_only(values: Any) -> Any:
    """Mappings without keys that are no text; the errors say that these are wrong."""
    if not isinstance(values, dict):
        return values
    return {key: _with_names_only(value) for key, value in values.items() if isinstance(key, str)}


def _take_out(values: dict[str, Any], detail: Any) -> set[Path]:
    """Remove what one error is about; the settings that are not known for it."""
    path = path_of(detail["loc"])
    if detail["type"] == "extra_forbidden":
        holder = _holder(values, path)
        holder.pop(path[-1], None)
        return {(*path[:-1], name) for name in _may_be_meant(path, holder)}

    settings = {_setting(path)}
    if path == ("train",) and detail["type"] == "value_error" and isinstance(values.get("train"), dict):
        settings = {*_LENGTH}
    for setting in settings:
        holder = _holder(values, setting)
        if setting[0] == "tasks" and len(setting) == 2:
            holder[setting[1]] = {}  # there is such a task, whatever it is
        else:
            holder.pop(setting[-1], None)
    return settings


def _setting(path: Path) -> Path:
    """The setting that a place inside its value belongs to, or the section or task, if it is as a whole
    wrong."""
    if path[:1] == ("tasks",):
        return path[:3]
    if section_of(path[:1]) is None:
        return path[:1]
    return path[:2]


def _holder(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The mapping that holds the value at `path`; an empty one where there is none."""
    holder: Any = values
    for part in path[:-1]:
        holder = holder.get(part) if isinstance(holder, dict) else None
    if not isinstance(holder, dict):
        return {}
    return holder


def _may_be_meant(path: Path, holder: dict[str, Any]) -> list[str]:
    """Settings that are not written, and that an unknown key may be meant for: the closest, or any of its
    section."""
    section = section_of(path[:-1])
    if section is None:
        return []
    absent = [name for name in section.model_fields if name not in holder]
    close = difflib.get_close_matches(path[-1], absent)
    if len(path) == 1:
        return close
    return close or absent


def _with_stand_ins(values: dict[str, Any], unknown: set[Path]) -> dict[str, Any]:
    """The values with something in place of what is not known and cannot be left out."""
    filled = dict(values)
    if {("encoder",), ("encoder", "path")} & unknown:
        filled["encoder"] = {**filled.get("encoder", {}), "path": "unknown"}
    if ("tasks",) in unknown or filled.get("tasks") == {}:
        filled["tasks"] = {"unknown": {}}

    train = filled.get("train", {})
    has_length = any(train.get(name) is not None for _, name in _LENGTH)
    if {("train",), *_LENGTH} & unknown and not has_length:
        filled["train"] = {**train, "steps": 1}
    return filled


def _forget(recipe: Recipe, path: Path) -> None:
    """Let reading the setting at `path`, or all of a task's, raise UnknownSetting."""
    section, *rest = path
    if not rest:
        _drop(recipe, section)
        return

    holder: dict[str, Any] = recipe.__dict__
    name, settings = section, rest
    if section == "tasks":
        holder = holder.get("tasks", {})
        name, settings = rest[0], rest[1:] or list(TaskSettings.model_fields)
    if name not in holder:
        return

    # A copy: sections that a recipe leaves out are one object in all recipes.
    holder[name] = part = holder[name].model_copy()
    for setting in settings:
        _drop(part, setting)


def _drop(section: Section, name: str) -> None:
    section.__dict__.pop(name, None)
    section.__pydantic_fields_set__.discard(name)
