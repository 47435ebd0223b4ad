"""Every check that `train` and `plan` can make before any work, all problems in one message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed, load_deepspeed_json, resolve_deepspeed
from mtdnn_ds.config.deepspeed_check import key_problems
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedRun:
    """A run whose recipe, tasks, encoder path and DeepSpeed JSON fit together."""

    recipe: Recipe
    specs: tuple[TaskSpec, ...]
    deepspeed: ResolvedDeepSpeed


class Problems:
    """Runs checks that may raise ConfigError, and raises all of their problems together."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def check(self, function: Callable[[], Result]) -> Result | None:
        """`function()`, or None if it refused."""
        try:
            return function()
        except ConfigError as error:
            self._problems += [problem for problem in error.problems if problem not in self._problems]
            return None

    def refuse(self) -> None:
        """Raise ConfigError if any check has refused."""
        if self._problems:
            raise ConfigError(self._problems)


def checked_run(
    recipe: str,
    deepspeed_config: str,
    overrides: Mapping[str, str],
    *,
    world_size: int,
    goes_on: bool = False,
    also: Callable[[], None] = lambda: None,
) -> CheckedRun:
    """The run that a recipe file, a DeepSpeed JSON file and flags describe. `also` is one more check of the caller's.

    `goes_on`: from a checkpoint of its own, so that nothing is wanted of the run that it began with.

    Raises ConfigError with every problem of all of them.
    """
    problems = Problems()
    settings = problems.check(lambda: load_recipe(recipe, overrides))
    json = problems.check(lambda: _json(deepspeed_config))
    problems.check(also)
    specs = resolved = None
    if settings is not None:
        specs = problems.check(lambda: resolve_tasks(settings))
        if specs is not None and (settings.train.freeze or settings.init.run is not None):
            problems.check(lambda: _preflight(settings, specs, goes_on=goes_on))
        if specs is not None and settings.distillation.teachers is not None:
            problems.check(lambda: _teachers(settings, specs))
        for path in {settings.encoder.path, settings.encoder.tokenizer or settings.encoder.path}:
            problems.check(lambda path=path: resolve_encoder_path(path))  # type: ignore[misc]
    if settings is not None and json is not None:
        resolved = problems.check(lambda: _resolved(json, settings, deepspeed_config, world_size))
    problems.refuse()
    assert settings is not None and specs is not None and resolved is not None
    return CheckedRun(recipe=settings, specs=specs, deepspeed=resolved)


def _json(path: str) -> dict[str, object]:
    """The DeepSpeed JSON with every key known: that can be said of it even where the recipe, which it must fit, is wrong."""
    json = load_deepspeed_json(path)
    if wrong := key_problems(json, path):
        raise ConfigError(wrong)
    return json


def _preflight(settings: Recipe, specs: tuple[TaskSpec, ...], *, goes_on: bool) -> None:
    from mtdnn_ds.train.preflight import preflight

    preflight(settings, specs, goes_on=goes_on)


def _teachers(settings: Recipe, specs: tuple[TaskSpec, ...]) -> None:
    from mtdnn_ds.train.teachers import find_teachers

    find_teachers(settings, specs)


def _resolved(json: dict[str, object], settings: Recipe, source: str, world_size: int) -> ResolvedDeepSpeed:
    from mtdnn_ds.train.device import probe_device

    device = probe_device()
    return resolve_deepspeed(
        json,
        settings,
        device_type=device.type,
        fast_bf16=device.fast_bf16,
        fp16_supported=device.fp16,
        world_size=world_size,
        source=source,
    )
