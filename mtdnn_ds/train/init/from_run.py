"""Starting from an earlier run's weights: the encoder and its pooler whole (model/sharing.py), heads term by term where they match.

No optimizer state.

A term matches if task (or the one that init.head_of names), form, number of outputs and label names are the same; its parameters are then copied, whichever columns they were
there. A head without columns (a masked-language-model head) belongs to no task and matches its like. What is not carried keeps what was
drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.weights import read_weights
from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.model.sharing import ENCODER, carried_encoder
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.runs.load import find_weights
from mtdnn_ds.runs.setup import recipe_sharing
from mtdnn_ds.tasks.layout import HeadLayout, head_layout
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.sharing import Sharing
from mtdnn_ds.tasks.spec import TaskSpec

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class InitSource:
    """Where a run's first weights come from. `specs`: the tasks of that run, in its order; None if its heads are not wanted."""

    weights_folder: Path
    specs: tuple[TaskSpec, ...] | None
    sharing: Sharing  # of that run
    own_sharing: Sharing  # of the run that begins
    head_of: Mapping[str, str]  # task here -> task there whose head it begins with


@dataclass(frozen=True, kw_only=True, slots=True)
class _Slot:
    """One term's place in a head."""

    form: str
    labels: tuple[str, ...]
    num_outputs: int
    first_column: int
    index: int  # among the terms of its head


def find_source(recipe: Recipe) -> InitSource | None:
    """The checkpoint that `init` names, checked; None without `init.run`. Collective: all ranks must call this."""
    init = recipe.init
    if init.run is None:
        return None
    run = RunFolder(Path(init.run))
    weights_folder = dist.on_main(
        lambda: find_weights(run, init.checkpoint, "init.checkpoint")
    )  # checks every byte: once is enough
    theirs = load_recipe(str(run.recipe), {})
    return InitSource(
        weights_folder=weights_folder,
        specs=resolve_tasks(theirs) if init.heads == "matching" else None,
        sharing=recipe_sharing(theirs),
        own_sharing=recipe_sharing(recipe),
        head_of=init.head_of or {},
    )


def begin_with(model: MultiTaskNet, specs: Sequence[TaskSpec], source: InitSource) -> str:
    """Put the source's weights into `model`; returns in words what was carried and what was not. Raises CheckpointError if they do not fit."""
    theirs, ours = read_weights(source.weights_folder), model.state_dict()
    encoder = carried_encoder(theirs, source.sharing, ours, source.own_sharing, [spec.name for spec in specs])
    expected = {name: tensor for name, tensor in ours.items() if name.startswith(ENCODER)}
    wrong = [f"{name} is only here" for name in expected.keys() - encoder.keys()]
    wrong += [f"{name} is only there" for name in encoder.keys() - expected.keys()]
    wrong += [
        f"{name} is {tuple(encoder[name].shape)} there and {tuple(expected[name].shape)} here"
        for name in expected.keys() & encoder.keys()
        if expected[name].shape != encoder[name].shape
    ]
    if wrong:
        raise CheckpointError(
            [
                f"{source.weights_folder}: {line}; init needs a run with this encoder"
                for line in sorted(wrong)[:8]
            ]
        )
    heads, said = _heads(model, specs, source, theirs)
    # Only what is carried is loaded: a tied decoder of a new head would bring the old embeddings back.
    model.load_state_dict({**encoder, **heads}, strict=False)
    modes = (source.sharing.mode, source.own_sharing.mode)
    shared = "" if modes[0] == modes[1] else f" from {modes[0]} to {modes[1]} sharing"
    return f"starting from {source.weights_folder}: encoder and pooler carried{shared}; {said}"


def _heads(
    model: MultiTaskNet, specs: Sequence[TaskSpec], source: InitSource, theirs: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """Parameters of heads as they shall be, and what is said of them."""
    if source.specs is None:
        return {}, "all heads drawn from the seed (init.heads=none)"
    their_layout = head_layout(source.specs)
    state: dict[str, Tensor] = {}
    carried: list[str] = []
    new: list[str] = []
    for name, head in model.heads.items():
        ours, others = (
            _slots(model.layout, specs, name),
            _renamed(_slots(their_layout, source.specs, name), source.head_of),
        )
        slots_there = {
            key: slot
            for other in their_layout.heads
            for key, slot in _slots(their_layout, source.specs, other).items()
        }
        anywhere = {**_renamed(slots_there, source.head_of), **others}
        reasons = {key: _reason(slot, others, anywhere.get(key)) for key, slot in ours.items()}
        prefix = f"heads.{name}."
        of_head = {
            rest.removeprefix(prefix): tensor for rest, tensor in theirs.items() if rest.startswith(prefix)
        }
        reasons = {
            key: reason or _parameters_differ(head, of_head, ours, others, key)
            for key, reason in reasons.items()
        }
        matching = [key for key, reason in reasons.items() if reason is None]
        if matching:
            state |= {
                prefix + rest: tensor
                for rest, tensor in _carry(
                    head, of_head, [(ours[key], others.get(key)) for key in matching]
                ).items()
            }
        carried += matching
        new += [f"{key} ({reason})" for key, reason in reasons.items() if reason is not None]
    parts = [f"heads of {', '.join(carried)} carried"] if carried else []
    return state, "; ".join([*parts, *([f"drawn from the seed: {', '.join(new)}"] if new else [])])


def _slots(layout: HeadLayout, specs: Sequence[TaskSpec], head: str) -> dict[str, _Slot]:
    """The terms of a head by name, in its order."""
    terms = [term for term in layout.terms if term.head == head]
    return {
        specs[term.task].name + (f".{term.suffix}" if term.suffix else ""): _Slot(
            form=term.form,
            labels=specs[term.task].labels,
            num_outputs=term.num_outputs,
            first_column=term.first_column,
            index=index,
        )
        for index, term in enumerate(terms)
    }


def _renamed(slots: Mapping[str, _Slot], head_of: Mapping[str, str]) -> dict[str, _Slot]:
    """Slots by the names they have here: a task of `head_of` has its namesake's place taken by the one it names."""
    known = {
        key.replace(theirs, ours, 1): slot
        for ours, theirs in head_of.items()
        for key, slot in slots.items()
        if key.split(".")[0] == theirs
    }
    return {**{key: slot for key, slot in slots.items() if key.split(".")[0] not in head_of}, **known}


def _reason(slot: _Slot, of_head: Mapping[str, _Slot], other: _Slot | None) -> str | None:
    """Why a term's parameters cannot be carried, or None."""
    if slot.num_outputs == 0:  # a head without columns belongs to no task
        return None if any(there.form == slot.form for there in of_head.values()) else "no such head there"
    if other is None:
        return "no such task there"
    if slot.form != other.form:
        return f"its loss is {other.form} there and {slot.form} here"
    if slot.num_outputs != other.num_outputs:
        return f"{other.num_outputs} outputs there and {slot.num_outputs} here"
    return "other labels there" if slot.labels != other.labels else None


def _parameters_differ(
    head: nn.Module,
    of_head: Mapping[str, Tensor],
    ours: Mapping[str, _Slot],
    others: Mapping[str, _Slot],
    key: str,
) -> str | None:
    """Why a matching term cannot be carried with what the head says of its parameters (see `_carry`), or None."""
    mine = {rest: tensor.shape for rest, tensor in head.state_dict().items()}
    theirs = {rest: tensor.shape for rest, tensor in of_head.items()}
    if hasattr(head, "per_column"):
        return None
    if hasattr(head, "per_term_module"):
        module = str(head.per_term_module)
        mine, theirs = (
            _below(shapes, module, slots[key]) for shapes, slots in ((mine, ours), (theirs, others))
        )
    elif any(slot.num_outputs for slot in ours.values()) and list(ours.items()) != list(others.items()):
        return "its head serves other tasks there"
    return None if mine == theirs else "its head has other parameters there"


def _carry(
    head: nn.Module, of_head: Mapping[str, Tensor], terms: Sequence[tuple[_Slot, _Slot | None]]
) -> dict[str, Tensor]:
    """The head's parameters with those of `terms` (ours, theirs) replaced.

    Heads say which parameters are a term's: dimension 0 of those in `per_column` counts columns, of those in `per_term` terms, and
    `per_term_module` is a list with a module for each term. A head that says nothing is carried as a whole.
    """
    module: str | None = getattr(head, "per_term_module", None)
    columns_first: tuple[str, ...] = getattr(head, "per_column", ())
    if module is None and not columns_first:
        return dict(of_head)
    state = {rest: tensor.clone() for rest, tensor in head.state_dict().items()}
    for ours, theirs in terms:
        assert theirs is not None, "a term with columns has its like there"
        for rest in columns_first:
            columns = slice(theirs.first_column, theirs.first_column + theirs.num_outputs)
            state[rest][ours.first_column : ours.first_column + ours.num_outputs] = of_head[rest][columns]
        for rest in getattr(head, "per_term", ()):
            state[rest][ours.index] = of_head[rest][theirs.index]
        if module is not None:
            state |= {
                f"{module}.{ours.index}.{rest}": tensor
                for rest, tensor in _below(of_head, module, theirs).items()
            }
    return state


def _below(state: Mapping[str, Value], module: str, slot: _Slot) -> dict[str, Value]:
    """What belongs to one term's own module, by the names inside it."""
    prefix = f"{module}.{slot.index}."
    return {rest.removeprefix(prefix): value for rest, value in state.items() if rest.startswith(prefix)}
