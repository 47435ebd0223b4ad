"""Settings of a valid recipe that contradict each other or have no effect. Pure; what tasks need is tasks/resolve.py's business."""

from __future__ import annotations

from collections.abc import Iterator

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.recipe import Recipe

# setting -> (the setting that decides, the value under which the former has an effect)
ONLY_WITH: dict[str, tuple[str, str]] = {
    "mixture.temperature": ("mixture.rates", "temperature"),
    "mixture.cap": ("mixture.rates", "cap"),
    "mixture.anneal_to": ("mixture.rates", "annealed"),
    "schedule.power": ("schedule.name", "polynomial"),
}


def cross_check(recipe: Recipe) -> list[str]:
    """One line per contradiction or setting without effect, in the user's words; empty for a sound recipe.

    Whether a setting was written counts, not its value: `mixture.temperature: 2` beside `rates: uniform` is a mistake too.
    """
    return [*_without_effect(recipe), *_lengths(recipe), *_task_names(recipe)]


def is_without_effect(recipe: Recipe, section: str, key: str) -> bool:
    """Whether another setting of the recipe makes `section.key` meaningless."""
    name = f"{section}.{key}"
    if name == "schedule.final_lr_ratio":
        return recipe.schedule.name == "constant"
    if name == "encoder.sha256":
        return recipe.encoder.random_init
    decider, needed = ONLY_WITH.get(name, ("", ""))
    return bool(decider) and _value(recipe, decider) != needed


def _without_effect(recipe: Recipe) -> Iterator[str]:
    for section in ("encoder", "mixture", "schedule"):
        settings = getattr(recipe, section)
        for key in sorted(settings.model_fields_set):
            if getattr(settings, key) is not None and is_without_effect(recipe, section, key):
                yield _why(recipe, f"{section}.{key}", getattr(settings, key))


def _why(recipe: Recipe, name: str, value: object) -> str:
    if name == "schedule.final_lr_ratio":
        return f"{name}={value}: has no effect with schedule.name=constant; remove it, or choose linear, cosine or polynomial"
    if name == "encoder.sha256":
        return f"{name}: has no effect with encoder.random_init, which reads no weights; remove one of the two"
    decider, needed = ONLY_WITH[name]
    actual = _value(recipe, decider)
    return f"{name}={value}: has no effect with {decider}={actual if isinstance(actual, str) else 'a mapping'}; remove it, or set {decider} to {needed}"


def _lengths(recipe: Recipe) -> Iterator[str]:
    longest, room = recipe.encoder.max_length, recipe.batch.max_tokens_per_micro_batch
    if longest > room:
        yield f"encoder.max_length={longest} is more than batch.max_tokens_per_micro_batch={room}: one long example would not fit; raise the latter to at least {longest}"
    warmup, steps = recipe.schedule.warmup, recipe.train.steps
    if warmup >= 1 and warmup != int(warmup):
        yield f"schedule.warmup={warmup:g}: from 1 on it counts steps and must be a whole number; below 1 it is a fraction of all steps"
    if warmup >= 1 and steps is not None and warmup >= steps:
        yield f"schedule.warmup={warmup:g} leaves none of train.steps={steps} after the warm-up; lower it, or write a fraction such as 0.1"


def _task_names(recipe: Recipe) -> Iterator[str]:
    names = list(recipe.tasks)
    for setting, value in (("mixture.rates", recipe.mixture.rates), ("loss.scale", recipe.loss.scale)):
        if isinstance(value, dict):
            for name in value:
                if name not in recipe.tasks:
                    yield f"{setting}.{name}: there is no task '{name}' in the run{did_you_mean(name, names)}; remove it, or add the task"
    if isinstance(recipe.mixture.rates, dict):
        missing = [name for name in names if name not in recipe.mixture.rates]
        if missing:
            yield f"mixture.rates: no rate for {', '.join(missing)}; with rates of your own every task needs one"


def _value(recipe: Recipe, name: str) -> object:
    section, key = name.split(".")
    return getattr(getattr(recipe, section), key)
