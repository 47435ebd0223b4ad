"""Recipes from YAML files and flags, and back to YAML. Not the models themselves (recipe.py), not the
DeepSpeed JSON (deepspeed.py).

Relative paths inside a recipe (data.*, tasks.NAME.files, encoder.path as a folder) are relative to the
current directory, as everywhere on a command line, not to the recipe's folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mtdnn_ds.config.crosscheck import cross_check
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.idle_settings import is_without_effect
from mtdnn_ds.config.messages import plain_problems
from mtdnn_ds.config.overrides import Overridden, apply_overrides
from mtdnn_ds.config.partial import validated
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.schema import field_docs
from mtdnn_ds.config.text_files import read_text
from mtdnn_ds.config.yaml_text import dump_yaml, parse_yaml

__all__ = ["RecipeRefused", "cross_check", "dump_recipe", "field_docs", "load_recipe"]

log = logging.getLogger(__name__)


class RecipeRefused(ConfigError):
    """A recipe is wrong. Carries every problem found, and what can be looked at further.

    `sound` has the part that is right (config/partial.py) of each run that the recipe describes, by the name
    of its stage, which is "" in a recipe without stages.
    """

    def __init__(self, problems: Sequence[str], sound: Mapping[str, Recipe]) -> None:
        super().__init__(problems)
        self.sound = sound


def load_recipe(path: str, overrides: Mapping[str, str]) -> Recipe:
    """The recipe in `path` with `overrides` (dotted name -> the flag's raw text), validated and
    cross-checked.

    A flag may replace a setting it contradicts (train.steps for train.epochs, one rate for a named policy);
    that is logged. Raises ConfigError with every problem of file and flags.
    """
    values = read_values(path)
    if "stages" in values:
        raise ConfigError(
            f"{path}: has stages, each a run of its own; "
            "only tasks, prepare, plan, distill and train take such a recipe"
        )

    overridden = apply_overrides(values, overrides, path)
    recipe, problems = checked_values(overridden, path)
    if recipe is None:
        raise ConfigError(problems)
    if problems:
        raise RecipeRefused(problems, {"": recipe})

    for note in overridden.notes:
        log.warning(note)
    return recipe


def read_values(path: str) -> dict[str, Any]:
    """The plain values of the recipe in `path`, unchecked."""
    values = parse_yaml(read_text(path, "recipe"), path)
    if values is None:
        raise ConfigError(
            f"{path}: the recipe is empty; it needs at least encoder.path, tasks and train.steps"
        )
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: a recipe is a mapping of sections (encoder, tasks, ...), not a {type(values).__name__}"
        )
    return values


def checked_values(overridden: Overridden, source: str) -> tuple[Recipe | None, list[str]]:
    """The recipe that the values are, or its sound part, and every problem of values and flags."""
    problems = list(overridden.problems)
    recipe, errors = validated(overridden.values)
    for error in errors:
        problems += plain_problems(error, source=source, flags=overridden.flags)
    if recipe is not None:
        problems += [f"{source}: {line}" for line in cross_check(recipe)]
    return recipe, list(dict.fromkeys(problems))


def dump_recipe(recipe: Recipe) -> str:
    """The fully resolved recipe as YAML: every default written out, except settings that have no effect.

    load_recipe of this text gives an equal recipe.
    """
    return dump_yaml(resolved_values(recipe))


def resolved_values(recipe: Recipe) -> dict[str, Any]:
    """Sections and settings as dump_recipe writes them."""
    values = recipe.model_dump(mode="json")
    last = {name: values.pop(name) for name in ("plugins", "heads")}

    resolved: dict[str, Any] = {}
    for section, settings in values.items():
        if section == "tasks":
            resolved[section] = {name: _given(of_task) for name, of_task in settings.items()}
        else:
            resolved[section] = {
                key: value
                for key, value in _given(settings).items()
                if not is_without_effect(recipe, section, key)
            }
    return {section: settings for section, settings in {**resolved, **last}.items() if settings}


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}
