"""Settings of a recipe that have no effect beside another one, whatever they say. Other contradictions:
crosscheck.py."""

from __future__ import annotations

from collections.abc import Iterator

from mtdnn_ds.config.choices import scales_with
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.config.setting_types import UnknownSetting, as_far_as_known

# setting -> (the setting that decides, the values under which the former has an effect)
ONLY_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "sharing.groups": ("sharing.mode", ("soft", "low_rank")),
    "sharing.penalty": ("sharing.mode", ("soft", "low_rank")),
    "sharing.rank": ("sharing.mode", ("low_rank",)),
    "mixture.temperature": ("mixture.rates", ("temperature",)),
    "mixture.cap": ("mixture.rates", ("cap",)),
    "mixture.anneal_to": ("mixture.rates", ("annealed",)),
    "mixture.order": ("mixture.mixing", ("per_step",)),
    "schedule.power": ("schedule.name", ("polynomial",)),
    "loss.scale_lr": ("loss.scale", scales_with("scale_lr")),
    "loss.scale_window": ("loss.scale", scales_with("scale_window")),
    "loss.scale_temperature": ("loss.scale", scales_with("scale_temperature")),
    "regularizer.tasks": ("regularizer.name", ("smart", "freelb", "r_drop")),
    "regularizer.factor": ("regularizer.name", ("smart", "r_drop")),
    "regularizer.ascent_steps": ("regularizer.name", ("smart", "freelb")),
    "regularizer.noise_std": ("regularizer.name", ("smart",)),
    "regularizer.norm": ("regularizer.name", ("smart", "freelb")),
    "regularizer.norm_per": ("regularizer.name", ("smart", "freelb")),
    "regularizer.step_size": ("regularizer.name", ("smart", "freelb")),
    "regularizer.radius": ("regularizer.name", ("smart", "freelb")),
    "regularizer.proximal_factor": ("regularizer.name", ("smart",)),
    "regularizer.proximal_momentum": ("regularizer.name", ("smart",)),
}
_SECTIONS = (
    "encoder",
    "init",
    "sharing",
    "mixture",
    "schedule",
    "loss",
    "regularizer",
    "distillation",
)


def idle_settings(recipe: Recipe) -> Iterator[str]:
    """A line for each setting that was written and has no effect. Those that are not known are passed
    over."""
    for section in _SECTIONS:
        yield from as_far_as_known(_idle_settings_of(recipe, section))


def _idle_settings_of(recipe: Recipe, section: str) -> Iterator[str]:
    settings = getattr(recipe, section)
    for key in sorted(settings.model_fields_set):
        if getattr(settings, key) is None:
            continue
        try:
            line = _idle_setting(recipe, section, key)
        except UnknownSetting:
            continue
        if line is not None:
            yield line


def is_without_effect(recipe: Recipe, section: str, key: str) -> bool:
    """Whether another setting of the recipe makes `section.key` meaningless."""
    return _idle_setting(recipe, section, key) is not None


def _idle_setting(recipe: Recipe, section: str, key: str) -> str | None:
    """What to say of `section.key` if another setting makes it meaningless, else None."""
    name, value = f"{section}.{key}", getattr(getattr(recipe, section), key)
    if name == "schedule.final_lr_ratio" and recipe.schedule.name == "constant":
        return (
            f"{name}={value}: has no effect with schedule.name=constant; "
            "remove it, or choose linear, cosine or polynomial"
        )
    if name == "encoder.sha256" and recipe.encoder.random_init:
        return (
            f"{name}: has no effect with encoder.random_init, which reads no weights; remove one of the two"
        )

    if section == "init" and recipe.init.run is None:
        return (
            f"{name}={value}: has no effect without init.run; remove it, or name the run folder to start from"
        )
    if name == "init.head_of" and recipe.init.heads == "none":
        return f"{name}: has no effect with init.heads=none; remove one of the two"
    if section == "distillation" and recipe.distillation.teachers is None:
        return (
            f"{name}: has no effect without distillation.teachers; "
            "remove it, or name the run folders to learn from"
        )

    if name == "regularizer.proximal_momentum" and recipe.regularizer.name == "smart":
        if recipe.regularizer.proximal_factor != 0:
            return None
        return (
            f"{name}={value}: has no effect with regularizer.proximal_factor=0; "
            "remove it, or set regularizer.proximal_factor"
        )
    return _idle_beside_choice(recipe, name, value)


def _idle_beside_choice(recipe: Recipe, name: str, value: object) -> str | None:
    if name not in ONLY_WITH:
        return None
    decider, needed = ONLY_WITH[name]
    section, key = decider.split(".")
    actual = getattr(getattr(recipe, section), key)
    if actual in needed:
        return None
    shown = actual if isinstance(actual, str) else "a mapping"
    return (
        f"{name}={value}: has no effect with {decider}={shown}; "
        f"remove it, or set {decider} to {' or '.join(needed)}"
    )
