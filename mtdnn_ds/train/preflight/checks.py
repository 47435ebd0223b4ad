"""Every check that `train` and `plan` can make before any work, all problems in one message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed, load_deepspeed_json, resolve_deepspeed
from mtdnn_ds.config.deepspeed_check import key_problems
from mtdnn_ds.config.encoder_path import resolve_encoder_path
from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.stages import Stage, by_stage, load_runs
from mtdnn_ds.tasks.regularized import regularized_tasks
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
            self.add(error.problems)
            return None

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
    """The run that a recipe file, a DeepSpeed JSON file and flags describe. `also` is one more check of the caller's.

    `goes_on`: from a checkpoint of its own, so that nothing is wanted of the run that it began with.

    Raises ConfigError with every problem of all of them.
    """
    problems = Problems()
    settings = problems.check(lambda: load_recipe(recipe, overrides))
    json = problems.check(lambda: _json(deepspeed_config))
    problems.check(also)
    run = (
        None
        if settings is None
        else _checked(
            settings, json, problems, source=deepspeed_config, world_size=world_size, goes_on=goes_on
        )
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
    goes_on: Callable[[Stage], bool] = lambda stage: False,
    also: Callable[[], None] = lambda: None,
) -> tuple[tuple[Stage, CheckedRun], ...]:
    """Every stage of a recipe file as a run, as in `checked_run`; a recipe without stages is one. Raises ConfigError for all stages at once."""
    problems = Problems()
    stages = problems.check(lambda: load_runs(recipe, overrides)) or ()
    json = problems.check(lambda: _json(deepspeed_config))
    problems.check(also)
    runs: list[CheckedRun | None] = []
    of_stage: dict[str, Problems] = {}
    for stage in stages:
        own = of_stage[stage.name] = Problems()
        runs.append(
            _checked(
                stage.recipe,
                json,
                own,
                source=deepspeed_config,
                world_size=world_size,
                goes_on=bool(stage.source) or goes_on(stage),
            )
        )
    checked = {stage.name: (stage, run) for stage, run in zip(stages, runs, strict=True) if run is not None}
    for stage, run in checked.values():
        if stage.source in checked:
            of_stage[stage.name].check(partial(_fits_source, run, checked[stage.source][1], stage))
        if stage.source and stage.recipe.heads and not goes_on(stage):
            of_stage[stage.name].check(partial(_heads_fit, run))
    lines = {name: own.lines for name, own in of_stage.items()}
    problems.add(lines.get("") or by_stage(lines))
    problems.refuse()
    return tuple(checked.values())


def checked_tasks(
    recipe: str, overrides: Mapping[str, str]
) -> tuple[tuple[Stage, tuple[TaskSpec, ...]], ...]:
    """The tasks of every stage of a recipe file; a recipe without stages is one. Raises ConfigError for all stages at once."""
    stages = load_runs(recipe, overrides)
    found, problems = {}, {}
    for stage in stages:
        own = Problems()
        found[stage.name] = own.check(partial(resolve_tasks, stage.recipe)) or ()
        problems[stage.name] = own.lines
    if any(problems.values()):
        raise ConfigError(by_stage(problems) if stages[0].name else problems[""])
    return tuple((stage, found[stage.name]) for stage in stages)


def _checked(
    settings: Recipe,
    json: dict[str, object] | None,
    problems: Problems,
    *,
    source: str,
    world_size: int,
    goes_on: bool,
) -> CheckedRun | None:
    specs = problems.check(lambda: resolve_tasks(settings))
    if specs is not None and (settings.train.freeze or settings.init.run is not None or settings.heads):
        problems.check(lambda: _preflight(settings, specs, goes_on=goes_on))
    if specs is not None and settings.distillation.teachers is not None:
        problems.check(lambda: _teachers(settings, specs))
    if specs is not None and settings.regularizer.name != "none":
        problems.check(
            lambda: regularized_tasks(settings.regularizer.name, settings.regularizer.tasks, specs)
        )
    for path in {settings.encoder.path, settings.encoder.tokenizer or settings.encoder.path}:
        problems.check(lambda path=path: resolve_encoder_path(path))  # type: ignore[misc]
    resolved = None if json is None else problems.check(lambda: _resolved(json, settings, source, world_size))
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
    scored = [spec.name for spec in source.specs if spec.dev_splits]
    if kind == "best" and task not in ("average", *scored):
        wrong.append(
            f"checkpoint=best/{task}: stage {stage.source} scores no task '{task}'{did_you_mean(task, ['average', *scored])}"
        )
    elif kind == "best" and not scored:
        wrong.append(
            f"checkpoint=best/{task}: no task of stage {stage.source} has a dev split, so it keeps no best; write latest"
        )
    if wrong:
        raise ConfigError(wrong)


def _heads_fit(run: CheckedRun) -> None:
    from mtdnn_ds.train.init.from_hf_heads import head_problems

    if wrong := head_problems(run.recipe, run.specs):
        raise ConfigError(wrong)


def _json(path: str) -> dict[str, object]:
    """The DeepSpeed JSON with every key known: that can be said of it even where the recipe, which it must fit, is wrong."""
    json = load_deepspeed_json(path)
    if wrong := key_problems(json, path):
        raise ConfigError(wrong)
    return json


def _preflight(settings: Recipe, specs: tuple[TaskSpec, ...], *, goes_on: bool) -> None:
    from mtdnn_ds.train.preflight.init_checks import preflight

    preflight(settings, specs, goes_on=goes_on)


def _teachers(settings: Recipe, specs: tuple[TaskSpec, ...]) -> None:
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
    """Flags without which a recipe does not fit one of its tasks alone: rates and loss scales that it gives by name."""
    named = {
        "mixture.rates": (recipe.mixture.rates, "proportional"),
        "loss.scale": (recipe.loss.scale, "examples"),
    }
    return {setting: instead for setting, (value, instead) in named.items() if isinstance(value, dict)}
