"""Settings of a recipe that contradict each other or have no effect. Pure; what tasks need is in
tasks/resolve.py.

Each check ends where it reads a setting that is not known (config/partial.py), and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from mtdnn_ds.config.choices import LOSS_SCALES
from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.freeze import freeze_problems
from mtdnn_ds.config.idle_settings import idle_settings
from mtdnn_ds.config.recipe import Recipe, TaskSettings
from mtdnn_ds.config.setting_types import as_far_as_known

# regularizer.name -> its default norm and what that is taken of
USUAL_NORMS: dict[str, tuple[Literal["inf", "l2"], Literal["token", "sequence"]]] = {
    "smart": ("inf", "token"),
    "freelb": ("l2", "sequence"),
}


def cross_check(recipe: Recipe) -> list[str]:
    """One line per contradiction or setting without effect, in the user's words; empty for a sound recipe.

    Whether a setting was written counts, not its value: `mixture.temperature: 2` beside `rates: uniform` is a
    mistake too.
    """
    found: list[str] = []
    for check in _CHECKS:
        found += as_far_as_known(check(recipe))
    return found


def _one_length(recipe: Recipe) -> Iterator[str]:
    """What the model of the section says too, unless something else is wrong with the section."""
    if (recipe.train.steps is None) == (recipe.train.epochs is None):
        yield "train: give exactly one of steps and epochs"


def _max_length(recipe: Recipe) -> Iterator[str]:
    longest, room = recipe.encoder.max_length, recipe.batch.max_tokens_per_micro_batch
    if longest > room:
        yield (
            f"encoder.max_length={longest} is more than batch.max_tokens_per_micro_batch={room}: "
            f"one long example would not fit; raise the latter to at least {longest}"
        )


def _warmup(recipe: Recipe) -> Iterator[str]:
    warmup = recipe.schedule.warmup
    if warmup >= 1 and warmup != int(warmup):
        yield (
            f"schedule.warmup={warmup:g}: from 1 on it counts steps and must be a whole number; "
            "below 1 it is a fraction of all steps"
        )
    steps = recipe.train.steps
    if warmup >= 1 and steps is not None and warmup >= steps:
        yield (
            f"schedule.warmup={warmup:g} leaves none of train.steps={steps} after the warm-up; "
            "lower it, or write a fraction such as 0.1"
        )


def _names_of_rates(recipe: Recipe) -> Iterator[str]:
    rates = recipe.mixture.rates
    if isinstance(rates, dict):
        yield from _strangers(recipe, rates, "mixture.rates.")


def _only_task(recipe: Recipe) -> Iterator[str]:
    task = recipe.mixture.only_task
    if task is None:
        return
    if task not in recipe.tasks:
        yield _no_such_task(recipe, "mixture.only_task", task)
    elif len(recipe.tasks) == 1:
        yield f"mixture.only_task={task}: has no effect, the run has no other task; remove it"
    elif recipe.mixture.mixing == "sequential":
        yield (
            f"mixture.only_task={task}: in a sequence a task's block begins with what the tasks before it "
            "have left, and without them it is an ordinary run of this task; remove it and the other tasks, "
            "or choose another mixture.mixing"
        )


def _names_of_scales(recipe: Recipe) -> Iterator[str]:
    scales = recipe.loss.scale
    if isinstance(scales, dict):
        yield from _strangers(recipe, scales, "loss.scale.")


def _names_of_heads(recipe: Recipe) -> Iterator[str]:
    yield from _strangers(recipe, recipe.heads or (), "heads.")


def _names_of_distillation(recipe: Recipe) -> Iterator[str]:
    yield from _strangers(recipe, recipe.distillation.tasks or (), "distillation.tasks")


def _names_of_regularizer(recipe: Recipe) -> Iterator[str]:
    yield from _strangers(recipe, recipe.regularizer.tasks or (), "regularizer.tasks")


def _strangers(recipe: Recipe, names: Iterable[str], setting: str) -> Iterator[str]:
    """Names that are no task's. `setting` ends with a dot where they are keys."""
    for name in names:
        if name not in recipe.tasks:
            where = f"{setting}{name}" if setting.endswith(".") else setting
            yield _no_such_task(recipe, where, name)


def _no_such_task(recipe: Recipe, where: str, name: str) -> str:
    hint = did_you_mean(name, recipe.tasks)
    return f"{where}: there is no task '{name}' in the run{hint}; remove it, or add the task"


def _missing_rates(recipe: Recipe) -> Iterator[str]:
    rates = recipe.mixture.rates
    if not isinstance(rates, dict):
        return
    missing = [name for name in recipe.tasks if name not in rates]
    if missing:
        yield (
            f"mixture.rates: no rate for {', '.join(missing)}; with rates of your own every task needs one"
        )


def _samples(recipe: Recipe) -> Iterator[str]:
    for name, task in recipe.tasks.items():
        yield from as_far_as_known(_idle_sample_seed(name, task))


def _idle_sample_seed(name: str, task: TaskSettings) -> Iterator[str]:
    if task.sample_seed is not None and task.train_fraction is None:
        yield (
            f"tasks.{name}.sample_seed={task.sample_seed}: has no effect without "
            f"tasks.{name}.train_fraction; remove it, or set the latter"
        )


def _groups(recipe: Recipe) -> Iterator[str]:
    groups = recipe.sharing.groups
    if recipe.sharing.mode == "hard" or groups is None:
        return

    for group, tasks in groups.items():
        for task in tasks:
            if task not in recipe.tasks:
                yield _no_such_task(recipe, f"sharing.groups.{group}", task)

    for name in recipe.tasks:
        owners = [group for group, tasks in groups.items() for task in tasks if task == name]
        if len(owners) != 1:
            place = f"is in {' and '.join(owners)}" if owners else "is in none of them"
            yield f"sharing.groups: task '{name}' {place}; put it into exactly one"


def _soft_sharing(recipe: Recipe) -> Iterator[str]:
    if recipe.sharing.mode != "soft":
        return
    groups = recipe.sharing.groups
    if len(recipe.tasks if groups is None else groups) < 2:
        yield (
            "sharing.mode=soft: with one group there is nothing to share; set sharing.mode to hard, "
            "or make a second group"
        )
    if "encoder" in recipe.train.freeze:
        yield (
            "sharing.mode=soft: copies of a frozen encoder stay equal; set sharing.mode to hard or low_rank, "
            "or take encoder out of train.freeze"
        )


def _loss_scale(recipe: Recipe) -> Iterator[str]:
    scale = recipe.loss.scale
    if isinstance(scale, dict) or not LOSS_SCALES[scale].shares_out:
        return

    why = None
    if len(recipe.tasks) == 1:
        why = "the run has one task"
    elif recipe.mixture.mixing in ("per_step", "sequential"):
        why = f"with mixture.mixing={recipe.mixture.mixing} each step has one task"
    elif recipe.mixture.only_task is not None:
        why = "with mixture.only_task each step has one task"
    if why is not None:
        yield (
            f"loss.scale={scale}: shares a step out among its tasks, but {why}; "
            "remove it, or mix several tasks per_example"
        )


def _idle_heads(recipe: Recipe) -> Iterator[str]:
    if recipe.optimizer.idle_heads == "update":
        return

    why = None
    if len(recipe.tasks) == 1:
        why = "the run has one task, which is in every step"
    elif "heads" in recipe.train.freeze:
        why = "train.freeze has heads"
    if why is not None:
        yield f"optimizer.idle_heads=freeze: has no effect: {why}; remove it"


def _regularizer_without_dropout(recipe: Recipe) -> Iterator[str]:
    if recipe.regularizer.name == "r_drop" and recipe.train.dropout == "none":
        yield (
            "regularizer.name=r_drop: without dropout both passes are equal and it has no effect; "
            "remove train.dropout=none, or the regularizer"
        )


def _regularizer_norm(recipe: Recipe) -> Iterator[str]:
    settings = recipe.regularizer
    if settings.name not in USUAL_NORMS:
        return
    norm, norm_per = USUAL_NORMS[settings.name]
    if (settings.norm or norm, settings.norm_per or norm_per) == (norm, norm_per):
        return

    missing = [name for name in ("step_size", "radius") if getattr(settings, name) is None]
    if missing:
        yield (
            f"regularizer.{' and regularizer.'.join(missing)}: the defaults of {settings.name} are lengths "
            f"in the {norm} norm of a {norm_per}; with another norm give your own"
        )


def _gradient_norms(recipe: Recipe) -> Iterator[str]:
    setting = f"train.gradient_norms_every={recipe.train.gradient_norms_every}"
    if not recipe.train.gradient_norms_every:
        return
    if recipe.regularizer.name != "none":
        yield (
            f"{setting}: with regularizer.name={recipe.regularizer.name} a step has more than losses, "
            "and is not taken apart; set the former to 0, or the latter to none"
        )
    if "encoder" in recipe.train.freeze and recipe.sharing.mode == "hard":
        yield (
            f"{setting}: has no effect on a frozen encoder, which has no gradient; remove it, "
            "or take encoder out of train.freeze"
        )


def _freeze(recipe: Recipe) -> Iterator[str]:
    yield from freeze_problems(recipe.train.freeze)


_CHECKS: tuple[Callable[[Recipe], Iterator[str]], ...] = (
    idle_settings,
    _one_length,
    _max_length,
    _warmup,
    _names_of_rates,
    _only_task,
    _names_of_scales,
    _names_of_heads,
    _names_of_distillation,
    _names_of_regularizer,
    _missing_rates,
    _samples,
    _groups,
    _soft_sharing,
    _loss_scale,
    _idle_heads,
    _regularizer_without_dropout,
    _regularizer_norm,
    _gradient_norms,
    _freeze,
)
"""In the order of their messages."""
