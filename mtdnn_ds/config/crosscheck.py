"""Settings of a valid recipe that contradict each other or have no effect. Pure; what tasks need is tasks/resolve.py's business."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from mtdnn_ds.config.choices import LOSS_SCALES, scales_with
from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.freeze import freeze_problems
from mtdnn_ds.config.recipe import Recipe

# setting -> (the setting that decides, the values under which the former has an effect)
ONLY_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "sharing.groups": ("sharing.mode", ("soft", "low_rank")),
    "sharing.penalty": ("sharing.mode", ("soft", "low_rank")),
    "sharing.rank": ("sharing.mode", ("low_rank",)),
    "mixture.temperature": ("mixture.rates", ("temperature",)),
    "mixture.cap": ("mixture.rates", ("cap",)),
    "mixture.anneal_to": ("mixture.rates", ("annealed",)),
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

# regularizer.name -> its default norm and what that is taken of
USUAL_NORMS: dict[str, tuple[Literal["inf", "l2"], Literal["token", "sequence"]]] = {
    "smart": ("inf", "token"),
    "freelb": ("l2", "sequence"),
}


def cross_check(recipe: Recipe) -> list[str]:
    """One line per contradiction or setting without effect, in the user's words; empty for a sound recipe.

    Whether a setting was written counts, not its value: `mixture.temperature: 2` beside `rates: uniform` is a mistake too.
    """
    return [
        *_without_effect(recipe),
        *_lengths(recipe),
        *_task_names(recipe),
        *_samples(recipe),
        *_sharing(recipe),
        *_loss_scale(recipe),
        *_regularizer(recipe),
        *freeze_problems(recipe.train.freeze),
    ]


def is_without_effect(recipe: Recipe, section: str, key: str) -> bool:
    """Whether another setting of the recipe makes `section.key` meaningless."""
    name = f"{section}.{key}"
    if name == "schedule.final_lr_ratio":
        return recipe.schedule.name == "constant"
    if name == "encoder.sha256":
        return recipe.encoder.random_init
    if name == "init.head_of" and recipe.init.heads == "none":
        return True
    if section == "init":
        return recipe.init.run is None
    if section == "distillation":
        return recipe.distillation.teachers is None
    if name == "regularizer.proximal_momentum" and recipe.regularizer.name == "smart":
        return recipe.regularizer.proximal_factor == 0
    decider, needed = ONLY_WITH.get(name, ("", ()))
    return bool(decider) and _value(recipe, decider) not in needed


def _without_effect(recipe: Recipe) -> Iterator[str]:
    for section in (
        "encoder",
        "init",
        "sharing",
        "mixture",
        "schedule",
        "loss",
        "regularizer",
        "distillation",
    ):
        settings = getattr(recipe, section)
        for key in sorted(settings.model_fields_set):
            if getattr(settings, key) is not None and is_without_effect(recipe, section, key):
                yield _why(recipe, f"{section}.{key}", getattr(settings, key))


def _why(recipe: Recipe, name: str, value: object) -> str:
    if name == "schedule.final_lr_ratio":
        return f"{name}={value}: has no effect with schedule.name=constant; remove it, or choose linear, cosine or polynomial"
    if name == "encoder.sha256":
        return (
            f"{name}: has no effect with encoder.random_init, which reads no weights; remove one of the two"
        )
    if name == "init.head_of" and recipe.init.run is not None:
        return f"{name}: has no effect with init.heads=none; remove one of the two"
    if name.startswith("init."):
        return (
            f"{name}={value}: has no effect without init.run; remove it, or name the run folder to start from"
        )
    if name.startswith("distillation."):
        return f"{name}: has no effect without distillation.teachers; remove it, or name the run folders to learn from"
    if name == "regularizer.proximal_momentum" and recipe.regularizer.name == "smart":
        return f"{name}={value}: has no effect with regularizer.proximal_factor=0; remove it, or set regularizer.proximal_factor"
    decider, needed = ONLY_WITH[name]
    actual = _value(recipe, decider)
    return f"{name}={value}: has no effect with {decider}={actual if isinstance(actual, str) else 'a mapping'}; remove it, or set {decider} to {' or '.join(needed)}"


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
    for name in recipe.heads or {}:
        if name not in recipe.tasks:
            yield f"heads.{name}: there is no task '{name}' in the run{did_you_mean(name, names)}; remove it, or add the task"
    for setting, some in (
        ("distillation.tasks", recipe.distillation.tasks),
        ("regularizer.tasks", recipe.regularizer.tasks),
    ):
        for name in some or ():
            if name not in recipe.tasks:
                yield f"{setting}: there is no task '{name}' in the run{did_you_mean(name, names)}; remove it, or add the task"
    if isinstance(recipe.mixture.rates, dict):
        missing = [name for name in names if name not in recipe.mixture.rates]
        if missing:
            yield f"mixture.rates: no rate for {', '.join(missing)}; with rates of your own every task needs one"


def _samples(recipe: Recipe) -> Iterator[str]:
    for name, task in recipe.tasks.items():
        if task.sample_seed is not None and task.train_fraction is None:
            yield f"tasks.{name}.sample_seed={task.sample_seed}: has no effect without tasks.{name}.train_fraction; remove it, or set the latter"


def _sharing(recipe: Recipe) -> Iterator[str]:
    if recipe.sharing.mode == "hard":
        return
    groups, names = recipe.sharing.groups, list(recipe.tasks)
    if groups is not None:
        grouped = [(group, task) for group, tasks in groups.items() for task in tasks]
        for group, task in grouped:
            if task not in recipe.tasks:
                yield f"sharing.groups.{group}: there is no task '{task}' in the run{did_you_mean(task, names)}; remove it, or add the task"
        for name in names:
            owners = [group for group, task in grouped if task == name]
            if len(owners) != 1:
                what = f"is in {' and '.join(owners)}" if owners else "is in none of them"
                yield f"sharing.groups: task '{name}' {what}; put it into exactly one"
    if recipe.sharing.mode == "soft" and len(names if groups is None else groups) < 2:
        yield "sharing.mode=soft: with one group there is nothing to share; set sharing.mode to hard, or make a second group"
    if recipe.sharing.mode == "soft" and "encoder" in recipe.train.freeze:
        yield "sharing.mode=soft: copies of a frozen encoder stay equal; set sharing.mode to hard or low_rank, or take encoder out of train.freeze"


def _loss_scale(recipe: Recipe) -> Iterator[str]:
    scale, mixing = recipe.loss.scale, recipe.mixture.mixing
    if scale in ("dwa", "random", "famo") and (
        len(recipe.tasks) == 1 or mixing in ("per_step", "sequential")
    ):
        why = (
            "the run has one task"
            if len(recipe.tasks) == 1
            else f"with mixture.mixing={mixing} each step has one task"
        )
        yield f"loss.scale={scale}: shares a step out among its tasks, but {why}; remove it, or mix several tasks per_example"


def _regularizer(recipe: Recipe) -> Iterator[str]:
    settings, usual = recipe.regularizer, USUAL_NORMS.get(recipe.regularizer.name)
    if settings.name == "r_drop" and recipe.train.dropout == "none":
        yield "regularizer.name=r_drop: without dropout both passes are equal and it has no effect; remove train.dropout=none, or the regularizer"
    if usual is not None and ((settings.norm or usual[0]), (settings.norm_per or usual[1])) != usual:
        missing = [name for name in ("step_size", "radius") if getattr(settings, name) is None]
        if missing:
            yield (
                f"regularizer.{' and regularizer.'.join(missing)}: the defaults of {settings.name} are lengths in the {usual[0]} norm of "
                f"a {usual[1]}; with another norm give your own"
            )


def _value(recipe: Recipe, name: str) -> object:
    section, key = name.split(".")
    return getattr(getattr(recipe, section), key)
