"""One task of a model as a model of its own: weights and recipe. Copies no weights that it can share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtdnn_ds.config.recipe import LossSettings, MixtureSettings, Recipe, RegularizerSettings, SharingSettings
from mtdnn_ds.model.heads.san import SanBank
from mtdnn_ds.model.sharing import ENCODER, merged_encoder_state
from mtdnn_ds.tasks.layout import HeadLayout, Term
from mtdnn_ds.tasks.sharing import Sharing


def one_task_weights(
    weights: Mapping[str, Tensor], layout: HeadLayout, sharing: Sharing, task: str
) -> dict[str, Tensor]:
    """Weights of a MultiTaskNet of this task alone, with hard sharing."""
    own = {ENCODER + name: tensor for name, tensor in merged_encoder_state(weights, sharing, [task]).items()}
    for index in layout.terms_of(layout.task_names.index(task)):
        term = layout.terms[index]
        prefix = f"heads.{term.head}."
        for name, tensor in weights.items():
            if name.startswith(prefix):
                part = _part_of_head(name.removeprefix(prefix), tensor, term, number_in_head(layout, term))
                own |= {prefix + new_name: new for new_name, new in part.items()}
    return own


def number_in_head(layout: HeadLayout, term: Term) -> int:
    """Which of the terms of its head it is."""
    return [other.task for other in layout.terms if other.head == term.head].index(term.task)


def _part_of_head(name: str, tensor: Tensor, term: Term, number: int) -> dict[str, Tensor]:
    """What of a head's `tensor` belongs to the term, under its name in a head of that term alone."""
    if name.startswith("of_tasks."):  # heads of a kind of the user's own, one module each
        module, own = f"of_tasks.{number}.", "of_tasks.0."
        if not name.startswith(module):
            return {}
        return {own + name.removeprefix(module): tensor}
    if term.head == "san" and name in SanBank.per_term:
        return {name: tensor[number : number + 1]}
    if not term.num_outputs:
        return {name: tensor}
    return {name: tensor[term.columns.start : term.columns.stop]}


def one_task_recipe(recipe: Recipe, task: str) -> Recipe:
    """The recipe with this task only; settings that name other tasks are the defaults."""
    loss = recipe.loss if isinstance(recipe.loss.scale, str) else LossSettings()
    return recipe.model_copy(
        update={
            "tasks": {task: recipe.tasks[task]},
            "sharing": SharingSettings(),
            "mixture": MixtureSettings(),
            "loss": loss,
            "regularizer": RegularizerSettings(),
        }
    )
