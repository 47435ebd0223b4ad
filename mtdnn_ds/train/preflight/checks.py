"""Every check that `train` and `plan` can make before any work, all problems in one message. Does no work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed, load_deepspeed_json, resolve_deepspeed
from mtdnn_ds.config.deepspeed_check import key_problems
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.load import RecipeRefused, load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.setting_types import UnknownSetting
from mtdnn_ds.config.stages import Stage, by_stage, load_runs
from mtdnn_ds.tasks.regularized import regularized_tasks
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec, scored_specs

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
        """`function()`, or None if it refused, or needs a setting that is not known (config/partial.py)."""
        try:
            return function()
        except ConfigError as error:
            self.add(error.problems)
        except UnknownSetting:
            pass
        return None

    def check_recipe(self, load: Callable[[], Result]) -> tuple[Result | None, Mapping[str, Recipe]]:
        """`load()`; or, if it refused a recipe, None and what is right of each of the recipe's runs."""
        try:
            return load(), {}
        except ConfigError as error:
            self.add(error.problems)
            return None, error.sound if isinstance(error, RecipeRefused) else {}

    @property
    def lines(self) -> tuple[str, ...]:
        """What has been refused so far."""
        return tuple(self._problems)

    def add(self, lines: Iterable[str]) -> None:
        """Problems that were found elsewhere."""
        self._problems += [line for line in lines if line not in self._problems]

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
    """The run that a recipe file, a DeepSpeed JSON file and flags describe. `also` is one more check of the
    caller's.

    `goes_on`: from a checkpoint of its own, so that nothing is wanted of the run that it began with.

    Raises ConfigError with every problem of all of them.
    """
    problems = Problems()
    settings, sound = problems.check_recipe(partial(load_recipe, recipe, overrides))
    json = problems.check(lambda: _json(deepspeed_config))
    problems.check(also)

    run = None
    for runnable in (settings, *sound.values()):
        if runnable is not None:
            run = _checked(
                runnable, json, problems, source=deepspeed_config, world_size=world_size, goes_on=goes_on
            )
    problems.refuse()
    assert run is not None
    return run


def checked_stages(
    recipe: str,
    deepspeed_config: str,
    overrides: Mapping[str, str],
    *,
    world_size: int,
    goes_on: Callable[[str], bool] = lambda folder: False,
    also: Callable[[], None] = lambda: None,
) -> tuple[tuple[Stage, CheckedRun], ...]:
    """Every stage of a recipe file as a run, as in `checked_run`; a recipe without stages is one.

    `goes_on`: whether the run in this folder of the run folder goes on from a checkpoint of its own.
    Raises ConfigError for all stages at once.
    """
    problems = Problems()
    stages, sound = problems.check_recipe(partial(load_runs, recipe, overrides))
    json = problems.check(lambda: _json(deepspeed_config))
    problems.check(also)

    of_stage: dict[str, Problems] = {}
    checked: dict[str, tuple[Stage, CheckedRun]] = {}
    for stage in stages or ():
        own = of_stage[stage.name] = Problems()
        begun = bool(stage.source) or goes_on(stage.folder)
        run = _checked(stage.recipe, json, own, source=deepspeed_config, world_size=world_size, goes_on=begun)
        if run is not None:
            checked[stage.name] = stage, run
    for name, part in sound.items():
        own = of_stage[name] = Problems()
        begun = bool(name) or goes_on("")
        _checked(part, json, own, source=deepspeed_config, world_size=world_size, goes_on=begun)

    for stage, run in checked.values():
        if stage.source in checked:
            of_stage[stage.name].check(partial(_fits_source, run, checked[stage.source][1], stage))
        if stage.source and stage.recipe.heads and not goes_on(stage.folder):
            of_stage[stage.name].check(partial(_heads_fit, run))
    problems.add(_lines_by_stage(of_stage))
    problems.refuse()
    return tuple(checked.values())


def checked_tasks(
    recipe: str, overrides: Mapping[str, str]
) -> tuple[tuple[Stage, tuple[TaskSpec, ...]], ...]:
    """The tasks of every stage of a recipe file; a recipe without stages is one.

    Raises ConfigError for all stages at once.
    """
    problems = Problems()
    stages, sound = problems.check_recipe(partial(load_runs, recipe, overrides))
    recipes = {stage.name: stage.recipe for stage in stages or ()} or sound

    of_stage, found = {}, {}
    for name, settings in recipes.items():
        own = of_stage[name] = Problems()
        found[name] = own.check(partial(resolve_tasks, settings, cross_checked=True)) or ()
    problems.add(_lines_by_stage(of_stage))
    problems.refuse()
    return tuple((stage, found[stage.name]) for stage in stages or ())


def _lines_by_stage(of_stage: Mapping[str, Problems]) -> Sequence[str]:
    lines = {name: own.lines for name, own in of_stage.items()}
    return lines[""] if "" in lines else by_stage(lines)


def _checked(
    settings: Recipe,
    json: dict[str, object] | None,
    problems: Problems,
    *,
    source: str,
    world_size: int,
    goes_on: bool,
) -> CheckedRun | None:
    specs = problems.check(partial(resolve_tasks, settings, cross_checked=True))
    if specs is not None:
        problems.check(partial(_preflight, settings, specs, goes_on=goes_on))
        problems.check(partial(_teachers, settings, specs))
        problems.check(partial(_regularizer_fits, settings, specs))

    for path in problems.check(partial(_encoder_paths, settings)) or ():
        problems.check(partial(resolve_encoder_path, path))

    resolved = None
    if json is not None:
        resolved = problems.check(lambda: _resolved(json, settings, source, world_size))
    if specs is None or resolved is None or problems.lines:
        return None
    return CheckedRun(recipe=settings, specs=specs, deepspeed=resolved)


def _fits_source(run: CheckedRun, source: CheckedRun, stage: Stage) -> None:
    """Raise ConfigError if a stage cannot begin with the weights that another one will leave."""
    from mtdnn_ds.train.preflight.init_checks import encoder_differences

    wrong = [
        f"from: {stage.source}: {line}; give both stages the same encoder"
        for line in encoder_differences(run.recipe, source.recipe)
    ]

    kind, _, task = run.recipe.init.checkpoint.partition("/")
    scored = [
        spec.name for spec in scored_specs(source.specs, source.recipe.mixture.only_task) if spec.dev_splits
    ]
    if kind == "best" and task not in ("average", *scored):
        wrong.append(
            f"checkpoint=best/{task}: stage {stage.source} scores no task '{task}'"
            f"{did_you_mean(task, ['average', *scored])}"
        )
    elif kind == "best" and not scored:
        wrong.append(
            f"checkpoint=best/{task}: no task of stage {stage.source} has a dev split, so it keeps no best; "
            "write latest"
        )
    if wrong:
        raise ConfigError(wrong)


def _heads_fit(run: CheckedRun) -> None:
    from mtdnn_ds.train.init.from_hf_heads import head_problems

    wrong = head_problems(run.recipe, run.specs)
    if wrong:
        raise ConfigError(wrong)


def _json(path: str) -> dict[str, object]:
    """The DeepSpeed JSON with every key known: that can be said of it even where the recipe is wrong."""
    json = load_deepspeed_json(path)
    wrong = key_problems(json, path)
    if wrong:
        raise ConfigError(wrong)
    return json


def _encoder_paths(settings: Recipe) -> set[str]:
    return {settings.encoder.path, settings.encoder.tokenizer or settings.encoder.path}


def _regularizer_fits(settings: Recipe, specs: tuple[TaskSpec, ...]) -> None:
    if settings.regularizer.name != "none":
        regularized_tasks(settings.regularizer.name, settings.regularizer.tasks, specs)


def _preflight(settings: Recipe, specs: tuple[TaskSpec, ...], *, goes_on: bool) -> None:
    if not (settings.train.freeze or settings.init.run is not None or settings.heads):
        return
    from mtdnn_ds.train.preflight.init_checks import preflight

    preflight(settings, specs, goes_on=goes_on)


def _teachers(settings: Recipe, specs: tuple[TaskSpec, ...]) -> None:
    if settings.distillation.teachers is None:
        return
    from mtdnn_ds.train.distillation.teachers import find_teachers

    find_teachers(settings, specs)


def _resolved(json: dict[str, object], settings: Recipe, source: str, world_size: int) -> ResolvedDeepSpeed:
    from mtdnn_ds.runs.device import probe_device

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


def one_task_alone(recipe: Recipe) -> dict[str, str]:
    """Flags without which a recipe does not fit one of its tasks alone: rates and scales that it gives by
    name, its only task, and what is about the other tasks' heads.
    """
    named = {
        "mixture.rates": (recipe.mixture.rates, "proportional"),
        "loss.scale": (recipe.loss.scale, "examples"),
    }
    flags = {setting: instead for setting, (value, instead) in named.items() if isinstance(value, dict)}
    if recipe.optimizer.idle_heads != "update":
        flags["optimizer.idle_heads"] = "update"
    if recipe.mixture.only_task is not None:
        flags["mixture.only_task"] = "null"
    return flags
