"""Stages of a recipe: one file that describes several runs, each of which may begin with the weights of
another. Trains nothing.

Sections beside `stages` are the defaults of every stage; a stage's own settings go over them, one by one, as
flags go over a file (stage_values.py).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.load import RecipeRefused, checked_values, load_recipe, read_values, resolved_values
from mtdnn_ds.config.overrides import Overridden, apply_overrides
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.schema import unknown_setting
from mtdnn_ds.config.stage_values import INIT_OF_STAGES, merged_values, set_init
from mtdnn_ds.config.yaml_text import dump_yaml

log = logging.getLogger(__name__)

OWN_KEYS = ("name", "from", "checkpoint", "each_task")  # of a stage, beside the sections of a recipe
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # becomes a folder's name
_CHECKPOINT = re.compile(r"latest|best/.+")


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
    """The stages of a recipe; of one without stages, itself as the only one, without a name.

    Raises ConfigError like load_recipe.
    """
    if not is_staged(path):
        return (Stage(name="", folder="", source=None, recipe=load_recipe(path, overrides)),)
    return load_stages(path, overrides)


def load_stages(path: str, overrides: Mapping[str, str]) -> tuple[Stage, ...]:
    """The stages of the recipe in `path`, in their order, with flags applied.

    `train.steps` is applied to the defaults, `stages.NAME.train.steps` to a stage. Raises ConfigError with
    the problems of all stages.
    """
    values = read_values(path)
    entries = values.pop("stages")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(
            f"{path}: stages: must be a list with one mapping for each stage, which begins with '- name: ...'"
        )

    of_defaults = {name: text for name, text in overrides.items() if not name.startswith("stages.")}
    base = apply_overrides(values, of_defaults, path)
    drafts, problems = _drafts(base, entries, path)
    problems = [*base.problems, *problems, *_apply_flags(drafts, overrides, path)]

    recipes, by_name = {}, {}
    for draft in drafts:
        recipes[draft.name], by_name[draft.name] = checked_values(draft.overridden, path)
    problems += by_stage(by_name, path)
    sound = {name: recipe for name, recipe in recipes.items() if recipe is not None}
    if problems:
        raise RecipeRefused(list(dict.fromkeys(problems)), sound)

    notes = [*base.notes, *(note for draft in drafts for note in draft.notes)]
    for note in dict.fromkeys(notes):
        log.warning(note)
    return tuple(
        Stage(name=draft.name, folder=draft.folder, source=draft.source, recipe=sound[draft.name])
        for draft in drafts
    )


def dump_stages(stages: Sequence[Stage]) -> str:
    """The resolved stages as YAML, every one with all its settings. load_stages of this text gives equal
    stages."""
    entries = []
    for stage in stages:
        values = resolved_values(stage.recipe)
        init = values.pop("init", {})
        entry: dict[str, Any] = {"name": stage.name, "from": stage.source or "none"}
        if stage.source is not None:
            entry["checkpoint"] = init["checkpoint"]
            init = {key: init[key] for key in INIT_OF_STAGES if key in init}
        if init:
            entry["init"] = init
        entries.append({**entry, **values})
    return dump_yaml({"stages": entries})


def by_stage(problems: Mapping[str, Sequence[str]], path: str = "") -> list[str]:
    """Problems of each stage as one list: with the stage's name, without it where all stages have the
    problem."""
    lines: list[str] = []
    for name, of_stage in problems.items():
        for line in of_stage:
            is_everywhere = all(line in others for others in problems.values())
            if len(problems) > 1 and is_everywhere:
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
    notes: list[str] = field(default_factory=list)


def _drafts(base: Overridden, entries: Sequence[dict[str, Any]], path: str) -> tuple[list[_Draft], list[str]]:
    drafts: dict[str, _Draft] = {}
    problems: list[str] = []
    previous: list[str] = []
    for number, entry in enumerate(entries, 1):
        label = entry.get("name")
        shown = label if isinstance(label, str) else number
        where = f"{path}: stages.{shown}"
        if not isinstance(label, str) or _NAME.fullmatch(label) is None or label in ("none", "previous"):
            problems.append(
                f"{where}: name: a stage needs a name of up to 100 letters, digits, '_' and '-', "
                "other than none and previous"
            )
            continue

        known = {*OWN_KEYS, *Recipe.model_fields}
        problems += [f"{where}: {unknown_setting((key,))}" for key in entry if key not in known]
        source = _source(entry, previous, list(drafts), where, problems)
        checkpoint = _checkpoint(entry, source, where, problems)
        source_folder = None if source is None else drafts[source].folder

        names = []
        for name, only in _runs_of(entry, base, where, problems):
            if name in drafts:
                problems.append(f"{where}: there are two stages '{name}'; give each a name of its own")
                continue
            overridden = merged_values(base, entry, only, path)
            problems += set_init(overridden, entry, source, source_folder, checkpoint, where)
            folder = f"stages/{len(drafts) + 1:02d}_{name}"
            drafts[name] = _Draft(name=name, entry=label, folder=folder, source=source, overridden=overridden)
            names.append(name)
        previous = names or previous
    return list(drafts.values()), problems


def _source(
    entry: Mapping[str, Any], previous: Sequence[str], known: Sequence[str], where: str, problems: list[str]
) -> str | None:
    """The stage that an entry begins with; None without one, and where what it says is wrong."""
    wanted = entry.get("from", "previous" if previous else "none")
    if wanted in (None, "none"):
        return None

    if wanted == "previous" and len(previous) == 1:
        return previous[0]
    if wanted == "previous":
        what = "there is no stage before it; write from: none"
        if previous:
            what = f"the stages before it are {', '.join(previous)}; name one of them"
        problems.append(f"{where}: from: previous: {what}, or none")
        return None
    if wanted not in known:
        hint = did_you_mean(str(wanted), [*known, "none"])
        problems.append(f"{where}: from: {wanted}: no stage before it has this name{hint}")
        return None
    return str(wanted)


def _checkpoint(entry: Mapping[str, Any], source: str | None, where: str, problems: list[str]) -> str:
    checkpoint = entry.get("checkpoint", "latest")
    if "checkpoint" in entry and source is None and entry.get("from") in (None, "none"):
        problems.append(
            f"{where}: checkpoint={checkpoint}: has no effect with from: none; "
            "remove it, or name a stage in from"
        )
    elif not isinstance(checkpoint, str) or _CHECKPOINT.fullmatch(checkpoint) is None:
        problems.append(
            f"{where}: checkpoint={checkpoint}: must be latest (after the last step), "
            "best/average or best/TASK"
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


def _apply_flags(drafts: Sequence[_Draft], overrides: Mapping[str, str], path: str) -> list[str]:
    """Flags --stages.NAME.SETTING over the values of the stages they name; returns what is wrong with the
    names."""
    problems = []
    names = list(dict.fromkeys(name for draft in drafts for name in (draft.entry, draft.name)))
    of_draft: dict[str, dict[str, str]] = {draft.name: {} for draft in drafts}
    for flag, text in overrides.items():
        if not flag.startswith("stages."):
            continue
        _, stage, *rest = flag.split(".")
        named = [draft for draft in drafts if stage in _spellings(draft)]
        if not rest:
            problems.append(f"--{flag}: name a setting of the stage")
        elif not named:
            problems.append(f"--{flag}: there is no stage '{stage}'{did_you_mean(stage, names)}")
        for draft in named:
            of_draft[draft.name][".".join(rest)] = text

    for draft in drafts:
        applied = apply_overrides(draft.overridden.values, of_draft[draft.name], path)
        for value, given in applied.flags.items():
            draft.overridden.flags[value] = given.replace("--", f"--stages.{draft.name}.", 1)
        draft.overridden.problems += applied.problems
        draft.notes += [f"stages.{draft.name}: {note}" for note in applied.notes]
    return problems


def _spellings(draft: _Draft) -> set[str]:
    """How a flag may call the stage: the command line writes every '-' of a flag's name as '_'."""
    names = {draft.name, draft.entry}
    return names | {name.replace("-", "_") for name in names}
