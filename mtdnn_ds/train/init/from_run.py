"""Starting from an earlier run's weights: the encoder, and heads where they match. No optimizer state.

A term matches if task (or the one that init.head_of names), form, number of outputs and label names are the
same; its parameters are then copied, whichever columns they were there. A head without columns (a
masked-language-model head) belongs to no task and matches its like. What is not carried keeps what was drawn
from the seed.
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
from mtdnn_ds.model.heads.linear_bank import in_scale
from mtdnn_ds.model.multitask import MultiTaskNet
from mtdnn_ds.model.sharing import ENCODER, carried_encoder
from mtdnn_ds.runs.folder import RunFolder
from mtdnn_ds.runs.load import find_weights
from mtdnn_ds.runs.setup import recipe_sharing
from mtdnn_ds.tasks.layout import HeadLayout, head_layout
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.sharing import Sharing
from mtdnn_ds.tasks.spec import ScoreScale, TaskSpec

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class InitSource:
    """Where a run's first weights come from. `specs`: the tasks of that run, in its order; None if its heads
    are not wanted.
    """

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
    score_scale: ScoreScale | None = None

    @property
    def columns(self) -> slice:
        return slice(self.first_column, self.first_column + self.num_outputs)


def find_source(recipe: Recipe) -> InitSource | None:
    """The checkpoint that `init` names, checked; None without `init.run`. Collective: all ranks must call
    this.
    """
    init = recipe.init
    if init.run is None:
        return None
    run = RunFolder(Path(init.run))
    # It checks every byte: once is enough.
    weights_folder = dist.on_main(lambda: find_weights(run, init.checkpoint, "init.checkpoint"))
    theirs = load_recipe(str(run.recipe), {})
    specs = None
    if init.heads == "matching":
        specs = resolve_tasks(theirs)

    return InitSource(
        weights_folder=weights_folder,
        specs=specs,
        sharing=recipe_sharing(theirs),
        own_sharing=recipe_sharing(recipe),
        head_of=init.head_of or {},
    )


def begin_with(model: MultiTaskNet, specs: Sequence[TaskSpec], source: InitSource) -> str:
    """Put the source's weights into `model`; returns in words what was carried and what was not. Raises
    CheckpointError if they do not fit.
    """
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
        hint = "init needs a run with this encoder"
        raise CheckpointError([f"{source.weights_folder}: {line}; {hint}" for line in sorted(wrong)[:8]])

    heads, note = _heads(model, specs, source, theirs)
    # Only what is carried is loaded: a tied decoder of a new head would bring the old embeddings back.
    model.load_state_dict({**encoder, **heads}, strict=False)

    before, now = source.sharing.mode, source.own_sharing.mode
    shared = ""
    if before != now:
        shared = f" from {before} to {now} sharing"
    return f"starting from {source.weights_folder}: encoder and pooler carried{shared}; {note}"


def _heads(
    model: MultiTaskNet, specs: Sequence[TaskSpec], source: InitSource, theirs: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """Parameters of heads as they shall be, and what is said of them."""
    if source.specs is None:
        return {}, "all heads drawn from the seed (init.heads=none)"

    their_layout = head_layout(source.specs)
    state: dict[str, Tensor] = {}
    slots_there: dict[str, _Slot] = {}
    for other in their_layout.heads:
        slots_there |= _slots(their_layout, source.specs, other)

    carried: list[str] = []
    new: list[str] = []
    for name, head in model.heads.items():
        ours = _slots(model.layout, specs, name)
        others = _renamed(_slots(their_layout, source.specs, name), source.head_of)
        anywhere = {**_renamed(slots_there, source.head_of), **others}
        prefix = f"heads.{name}."
        of_head = _without_prefix(theirs, prefix)

        matching = []
        for key, slot in ours.items():
            reason = _reason(slot, others, anywhere.get(key))
            reason = reason or _parameters_differ(head, of_head, ours, others, key)
            if reason is None:
                matching.append(key)
            else:
                new.append(f"{key} ({reason})")

        if matching:
            pairs = [(ours[key], others.get(key)) for key in matching]
            state |= {prefix + rest: tensor for rest, tensor in _carry(head, of_head, pairs).items()}
        carried += matching

    notes = []
    if carried:
        notes.append(f"heads of {', '.join(carried)} carried")
    if new:
        notes.append(f"drawn from the seed: {', '.join(new)}")
    return state, "; ".join(notes)


def _slots(layout: HeadLayout, specs: Sequence[TaskSpec], head: str) -> dict[str, _Slot]:
    """The terms of a head by name, in its order."""
    slots = {}
    for index, term in enumerate(term for term in layout.terms if term.head == head):
        spec = specs[term.task]
        key = f"{spec.name}.{term.suffix}" if term.suffix else spec.name
        slots[key] = _Slot(
            form=term.form,
            labels=spec.labels,
            num_outputs=term.num_outputs,
            first_column=term.first_column,
            index=index,
            score_scale=spec.score_scale,
        )
    return slots


def _renamed(slots: Mapping[str, _Slot], head_of: Mapping[str, str]) -> dict[str, _Slot]:
    """Slots by the names they have here: a task of `head_of` has its namesake's place taken by the one it
    names.
    """
    known = {
        key.replace(theirs, ours, 1): slot
        for ours, theirs in head_of.items()
        for key, slot in slots.items()
        if key.split(".")[0] == theirs
    }
    others = {key: slot for key, slot in slots.items() if key.split(".")[0] not in head_of}
    return {**others, **known}


def _reason(slot: _Slot, of_head: Mapping[str, _Slot], other: _Slot | None) -> str | None:
    """Why a term's parameters cannot be carried, or None."""
    if slot.num_outputs == 0:  # a head without columns belongs to no task
        if any(there.form == slot.form for there in of_head.values()):
            return None
        return "no such head there"

    if other is None:
        return "no such task there"
    if slot.form != other.form:
        return f"its loss is {other.form} there and {slot.form} here"
    if slot.num_outputs != other.num_outputs:
        return f"{other.num_outputs} outputs there and {slot.num_outputs} here"
    if slot.labels != other.labels:
        return "other labels there"
    return None


def _parameters_differ(
    head: nn.Module,
    of_head: Mapping[str, Tensor],
    ours: Mapping[str, _Slot],
    others: Mapping[str, _Slot],
    key: str,
) -> str | None:
    """Why a matching term cannot be carried with what the head says of its parameters (see `_carry`), or
    None.
    """
    if hasattr(head, "per_column"):
        return None

    mine = {rest: tensor.shape for rest, tensor in head.state_dict().items()}
    theirs = {rest: tensor.shape for rest, tensor in of_head.items()}
    if hasattr(head, "per_term_module"):
        module = str(head.per_term_module)
        mine, theirs = _below(mine, module, ours[key]), _below(theirs, module, others[key])
    elif any(slot.num_outputs for slot in ours.values()) and list(ours.items()) != list(others.items()):
        return "its head serves other tasks there"

    if mine != theirs:
        return "its head has other parameters there"
    return None


def _carry(
    head: nn.Module, of_head: Mapping[str, Tensor], terms: Sequence[tuple[_Slot, _Slot | None]]
) -> dict[str, Tensor]:
    """The head's parameters with those of `terms` (ours, theirs) replaced.

    Heads say which parameters are a term's: dimension 0 of those in `per_column` counts columns, of those in
    `per_term` terms, and `per_term_module` is a list with a module for each term. A head that says nothing is
    carried as a whole.
    """
    module: str | None = getattr(head, "per_term_module", None)
    columns_first: tuple[str, ...] = getattr(head, "per_column", ())
    if module is None and not columns_first:
        return dict(of_head)

    state = {rest: tensor.clone() for rest, tensor in head.state_dict().items()}
    for ours, theirs in terms:
        assert theirs is not None, "a term with columns has its like there"
        for rest in columns_first:
            state[rest][ours.columns] = of_head[rest][theirs.columns]
        if ours.score_scale != theirs.score_scale:  # it keeps answering the same
            own = (state[rest][ours.columns] for rest in ("weight", "bias"))
            scaled = in_scale(*own, theirs=theirs.score_scale, ours=ours.score_scale)
            state["weight"][ours.columns], state["bias"][ours.columns] = scaled
        for rest in getattr(head, "per_term", ()):
            state[rest][ours.index] = of_head[rest][theirs.index]
        if module is not None:
            of_term = _below(of_head, module, theirs)
            state |= {f"{module}.{ours.index}.{rest}": tensor for rest, tensor in of_term.items()}
    return state


def _below(state: Mapping[str, Value], module: str, slot: _Slot) -> dict[str, Value]:
    """What belongs to one term's own module, by the names inside it."""
    return _without_prefix(state, f"{module}.{slot.index}.")


def _without_prefix(state: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """What has a name with the prefix, by the rest of that name."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
