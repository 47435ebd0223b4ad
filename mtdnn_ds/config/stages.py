"""Stages of a recipe: one file that describes several runs, each of which begins with the weights of another. Trains nothing.

Sections beside `stages` are the defaults of every stage; a stage's own settings go over them, one by one, as flags go over a file.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.load import checked_values, load_recipe, read_values, resolved_values
from mtdnn_ds.config.overrides import Overridden, apply_overrides, put
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.schema import unknown_setting
from mtdnn_ds.config.yaml_text import dump_yaml

log = logging.getLogger(__name__)

OWN_KEYS = ("name", "from", "checkpoint", "each_task")  # of a stage, beside the sections of a recipe
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # becomes a folder's name
_CHECKPOINT = re.compile(r"latest|best/.+")

_INIT_OF_STAGES = ("heads", "head_of")  # what a stage may say of `init`: the run is the earlier stage's


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One run of a staged recipe."""

    name: str
    folder: str  # inside the run folder
    source: str | None  # the stage whose weights it begins with; its folder and checkpoint are in recipe.init
    recipe: Recipe


def is_staged(path: str) -> bool:
    """Whether the recipe in `path` has stages."""
    return "stages" in read_values(path)


def load_runs(path: str, overrides: Mapping[str, str]) -> tuple[Stage, ...]:
    """The stages of a recipe; of one without stages, itself as the only one, without a name. Raises ConfigError like load_recipe."""
    if not is_staged(path):
        return (Stage(name="", folder="", source=None, recipe=load_recipe(path, overrides)),)
    return load_stages(path, overrides)


def load_stages(path: str, overrides: Mapping[str, str]) -> tuple[Stage, ...]:
    """The stages of the recipe in `path`, in their order, with flags applied: `train.steps` to the defaults, `stages.NAME.train.steps` to a stage.

    Raises ConfigError with the problems of all stages.
    """
    values = read_values(path)
    entries = values.pop("stages")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(
            f"{path}: stages: must be a list with one mapping for each stage, which begins with '- name: ...'"
        )
    base = apply_overrides(
        values, {name: text for name, text in overrides.items() if not name.startswith("stages.")}, path
    )
    drafts, problems = _drafts(base, entries, path)
    problems = [*base.problems, *problems, *_apply_flags(drafts, overrides, path)]
    checked = {draft.name: checked_values(draft.overridden, path) for draft in drafts}
    problems += by_stage({name: found for name, (_, found) in checked.items()}, path)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    for note in dict.fromkeys([*base.notes, *(note for draft in drafts for note in draft.notes)]):
        log.warning(note)
    return tuple(
        Stage(name=draft.name, folder=draft.folder, source=draft.source, recipe=recipe)
        for draft, (recipe, _) in zip(drafts, checked.values(), strict=True)
        if recipe is not None
    )


def dump_stages(stages: Sequence[Stage]) -> str:
    """The resolved stages as YAML, every one with all its settings. load_stages of this text gives equal stages."""
    entries = []
    for stage in stages:
        values = resolved_values(stage.recipe)
        init = values.pop("init", {})
        own = {"name": stage.name, "from": stage.source or "none"}
        if stage.source is not None:
            own["checkpoint"] = init["checkpoint"]
            init = {key: init[key] for key in _INIT_OF_STAGES if key in init}
        entries.append({**own, **({"init": init} if init else {}), **values})
    return dump_yaml({"stages": entries})


def by_stage(problems: Mapping[str, Sequence[str]], path: str = "") -> list[str]:
    """Problems of each stage as one list: with the stage's name, without it where all stages have the problem."""
    lines: list[str] = []
    for name, of_stage in problems.items():
        for line in of_stage:
            if len(problems) > 1 and all(line in others for others in problems.values()):
                lines.append(line)
            elif path and line.startswith(f"{path}: "):
                lines.append(f"{path}: stages.{name}: {line.removeprefix(f'{path}: ')}")
            else:
                lines.append(f"stages.{name}: {line}")
    return list(dict.fromkeys(lines))


@dataclass(kw_only=True, slots=True)
class _Draft:
    """A stage before its values are checked."""

    name: str
    entry: str  # the name in the file; differs for each_task
    folder: str
    source: str | None
    overridden: Overridden
    notes: list[str]


def _drafts(base: Overridden, entries: Sequence[dict[str, Any]], path: str) -> tuple[list[_Draft], list[str]]:
    drafts: list[_Draft] = []
    problems: list[str] = []
    previous: list[str] = []
    for number, entry in enumerate(entries, 1):
        label = entry.get("name")
        where = f"{path}: stages.{label if isinstance(label, str) else number}"
        if not isinstance(label, str) or _NAME.fullmatch(label) is None or label in ("none", "previous"):
            problems.append(
                f"{where}: name: a stage needs a name of up to 100 letters, digits, '_' and '-', other than none and previous"
            )
            continue
        problems += [
            f"{where}: {unknown_setting((key,))}"
            for key in entry
            if key not in OWN_KEYS and key not in Recipe.model_fields
        ]
        source = _source(entry, previous, [draft.name for draft in drafts], where, problems)
        checkpoint = _checkpoint(entry, source, where, problems)
        names = []
        for name, only in _runs_of(entry, base, where, problems):
            if name in [draft.name for draft in drafts]:
                problems.append(f"{where}: there are two stages '{name}'; give each a name of its own")
                continue
            overridden = _merged(base, entry, only, path)
            folder = f"stages/{len(drafts) + 1:02d}_{name}"
            _set_init(
                overridden,
                entry,
                next((draft for draft in drafts if draft.name == source), None),
                checkpoint,
                where,
                problems,
            )
            drafts.append(
                _Draft(name=name, entry=label, folder=folder, source=source, overridden=overridden, notes=[])
            )
            names.append(name)
        previous = names or previous
    return drafts, problems


def _source(
    entry: Mapping[str, Any], previous: Sequence[str], known: Sequence[str], where: str, problems: list[str]
) -> str | None:
    wanted = entry.get("from", "previous" if previous else "none")
    if wanted in (None, "none"):
        return None
    if wanted == "previous" and len(previous) == 1:
        return previous[0]
    if wanted == "previous":
        what = (
            f"the stages before it are {', '.join(previous)}; name one of them"
            if previous
            else "there is no stage before it; write from: none"
        )
        problems.append(f"{where}: from: previous: {what}, or none")
    elif wanted not in known:
        problems.append(
            f"{where}: from: {wanted}: no stage before it has this name{did_you_mean(str(wanted), [*known, 'none'])}"
        )
    else:
        return str(wanted)
    return None


def _checkpoint(entry: Mapping[str, Any], source: str | None, where: str, problems: list[str]) -> str:
    checkpoint = entry.get("checkpoint", "latest")
    if "checkpoint" in entry and source is None and entry.get("from") in (None, "none"):
        problems.append(
            f"{where}: checkpoint={checkpoint}: has no effect with from: none; remove it, or name a stage in from"
        )
    elif not isinstance(checkpoint, str) or _CHECKPOINT.fullmatch(checkpoint) is None:
        problems.append(
            f"{where}: checkpoint={checkpoint}: must be latest (after the last step), best/average or best/TASK"
        )
    return str(checkpoint)


def _runs_of(
    entry: Mapping[str, Any], base: Overridden, where: str, problems: list[str]
) -> Iterator[tuple[str, str | None]]:
    """(name, its only task) of each run that an entry of the list stands for; None: all its tasks."""
    each = entry.get("each_task", False)
    if not isinstance(each, bool):
        problems.append(f"{where}: each_task={each}: must be true or false")
    if each is not True:
        yield entry["name"], None
        return
    tasks = entry.get("tasks", base.values.get("tasks"))
    if not isinstance(tasks, (list, dict)) or not all(isinstance(task, str) for task in tasks):
        problems.append(
            f"{where}: each_task: there are no tasks; list them under 'tasks', of the stage or of the recipe"
        )
        return
    for task in tasks:
        yield f"{entry['name']}_{task}", task


def _merged(base: Overridden, entry: Mapping[str, Any], only: str | None, path: str) -> Overridden:
    """The defaults with a stage's own settings over them."""
    result = Overridden(values=copy.deepcopy(base.values), flags=dict(base.flags))
    sections = {section: settings for section, settings in entry.items() if section in Recipe.model_fields}
    if "tasks" in sections:
        result.values["tasks"] = _tasks(result.values.get("tasks"), sections.pop("tasks"))
        result.flags.pop(("tasks",), None)
    given: set[tuple[str, ...]] = {
        (section, key)
        for section, settings in sections.items()
        if isinstance(settings, dict)
        for key in settings
    }
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
            result.values["tasks"] = {only: tasks.get(only)}
            given = set()  # its settings are those of all the entry's tasks
        _leave_out_others(result.values, list(result.values["tasks"]), given)
    result.notes.clear()  # what a stage's own setting replaces is plain from the file
    return result


def _tasks(defaults: Any, own: Any) -> Any:
    """A stage's tasks: names take their settings from the recipe's tasks, and settings go over those."""
    known = defaults if isinstance(defaults, dict) else {}
    if isinstance(own, list) and all(isinstance(name, str) for name in own):
        return {name: copy.deepcopy(known.get(name) or {}) for name in own}
    if not isinstance(own, dict):
        return own
    return {
        name: {**copy.deepcopy(known.get(name) or {}), **(settings or {})}
        if isinstance(settings, (dict, type(None)))
        else settings
        for name, settings in own.items()
    }


def _leave_out_others(values: dict[str, Any], tasks: Sequence[str], given: set[tuple[str, ...]]) -> None:
    """Of defaults that name tasks, only what is about a stage's own ones stays."""
    for section, key in (
        ("mixture", "rates"),
        ("loss", "scale"),
        ("sharing", "groups"),
        ("regularizer", "tasks"),
        ("distillation", "tasks"),
    ):
        holder = values.get(section)
        named = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or (section, key) in given:
            continue
        if isinstance(named, list):
            holder[key] = [name for name in named if name in tasks]
        elif isinstance(named, dict) and key == "groups":
            kept = {
                group: [name for name in names if name in tasks]
                for group, names in named.items()
                if isinstance(names, list)
            }
            holder[key] = {group: names for group, names in kept.items() if names}
        elif isinstance(named, dict):
            holder[key] = {name: value for name, value in named.items() if name in tasks}
        if key == "tasks" and holder.get(key) == []:
            del values[section]  # it is for other tasks only
    if isinstance(values.get("heads"), dict) and not any(path[0] == "heads" for path in given):
        values["heads"] = {name: path for name, path in values["heads"].items() if name in tasks}


def _set_init(
    overridden: Overridden,
    entry: Mapping[str, Any],
    source: _Draft | None,
    checkpoint: str,
    where: str,
    problems: list[str],
) -> None:
    own, values = entry.get("init"), overridden.values
    named = [key for key in ("run", "checkpoint") if isinstance(own, dict) and key in own]
    if source is None:
        if own is None and isinstance(values.get("init"), dict) and "run" not in values["init"]:
            del values["init"]  # init.heads of the defaults is for the stages that begin with another
        return
    heads, own_heads = values.get("heads"), entry.get("heads", {})
    if isinstance(heads, dict) and isinstance(
        own_heads, dict
    ):  # those of the defaults have been trained by the earlier stage
        values["heads"] = {name: path for name, path in heads.items() if name in own_heads} or None
    problems += [
        f"{where}: init.{key}: the stage begins with stage '{source.name}'; remove it, or write from: none"
        for key in named
    ]
    init = values.get("init") or {}
    if isinstance(init, dict):
        heads = {key: init[key] for key in _INIT_OF_STAGES if key in init}
        values["init"] = {"run": source.folder, "checkpoint": checkpoint, **heads}


def _apply_flags(drafts: Sequence[_Draft], overrides: Mapping[str, str], path: str) -> list[str]:
    """Flags --stages.NAME.SETTING over the values of the stages they name; returns what is wrong with the flags' names."""
    problems = []
    names = list(dict.fromkeys(name for draft in drafts for name in (draft.entry, draft.name)))
    of_draft: dict[str, dict[str, str]] = {}
    for flag, text in overrides.items():
        if not flag.startswith("stages."):
            continue
        _, stage, *rest = flag.split(".")
        hit = [
            draft
            for draft in drafts
            if stage in (draft.name.replace("-", "_"), draft.entry.replace("-", "_"), draft.name, draft.entry)
        ]
        if not hit or not rest:
            problems.append(
                f"--{flag}: there is no stage '{stage}'{did_you_mean(stage, names)}"
                if rest
                else f"--{flag}: name a setting of the stage"
            )
        for draft in hit:
            of_draft.setdefault(draft.name, {})[".".join(rest)] = text
    for draft in drafts:
        applied = apply_overrides(draft.overridden.values, of_draft.get(draft.name, {}), path)
        draft.overridden.flags |= {
            value: flag.replace("--", f"--stages.{draft.name}.", 1) for value, flag in applied.flags.items()
        }
        draft.overridden.problems += applied.problems
        draft.notes += [f"stages.{draft.name}: {note}" for note in applied.notes]
    return problems
