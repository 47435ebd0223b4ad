"""What a checkpoint of any ZeRO stage and number of ranks holds, parameter by parameter, read where it lies.

Puts nothing into an engine (checkpoint/restore.py does). DeepSpeed writes each rank's share of flattened
groups of parameters. Here they are mapped into memory, not read, and found again by the names of the
parameters, so that any part of one costs what it is long. Nothing is converted or written. Layouts of
DeepSpeed 0.19.8:

    ZeRO 0     mp_rank_00_model_states.pt: parameters whole, optimizer's state by number; save.py adds names
    ZeRO 1, 2  *_optim_states.pt of each rank: a group of parameters laid end to end and cut into equal parts
    ZeRO 3     every parameter cut into equal parts, the last one padded; rank r's part of each in turn

Two ranks and parameters a (3 elements) and b (5) of one group: ZeRO 1 keeps aaab | bbbb, ZeRO 3 keeps aabbb |
a-bb-.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtdnn_ds.checkpoint.safe_load import load
from mtdnn_ds.config.errors import CheckpointError

FP32 = "fp32"  # the float32 weights, beside the names of an optimizer's states
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
LOSS_SCALER = ("loss_scaler", "dynamic_loss_scale", "overflow")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Flat:
    """A tensor that the optimizer updates as one, with its states."""

    values: dict[str, Tensor]  # float32 weights and states with one value an element, flattened
    counts: dict[str, Any]  # states of the whole: the optimizer's steps


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """Elements [start, start + numel) of a flattened parameter, which lie at `offset` of `flat`."""

    flat: _Flat
    start: int
    numel: int
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedState:
    """The state of a run's engine, whatever it was cut into. Reads from the files, which must stay."""

    shapes: dict[str, torch.Size]  # of trained parameters
    untrained: dict[str, Tensor]  # frozen parameters and buffers
    counters: dict[str, int]
    group_counts: tuple[dict[str, Any], ...]  # counts that an optimizer keeps by parameter group
    loss_scaler: Mapping[str, Any]  # of fp16: DeepSpeed's attributes by name
    pieces: dict[str, list[_Piece]]

    def keys(self, name: str) -> list[str]:
        """Names of the optimizer's states of a parameter, those with a value for each element."""
        return [key for key in self.pieces[name][0].flat.values if key != FP32]

    def counts(self, name: str) -> dict[str, Any]:
        """The other states of a parameter, as they were saved."""
        return self.pieces[name][0].flat.counts

    def values(self, name: str, key: str, start: int, numel: int) -> Tensor:
        """(numel,) float32, new: elements from `start` on of the flattened weights (`fp32`) or of a state."""
        result = torch.empty(numel, dtype=torch.float32)
        for piece in self.pieces[name]:
            low, high = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if low < high:
                there = piece.offset + low - piece.start
                result[low - start : high - start] = piece.flat.values[key][there : there + high - low]
        return result


def open_saved(folder: Path, *, zero_stage: int, num_ranks: int) -> SavedState:
    """The checkpoint `folder`, which is whole and was written at `zero_stage` by `num_ranks` ranks.

    Raises CheckpointError if it cannot be read so.
    """
    try:
        return _open(folder, zero_stage, num_ranks)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{folder}: its shards are not laid out as DeepSpeed 0.19.8 writes them "
            f"({type(error).__name__}: {str(error)[:200]}); "
            "resume with the number of ranks and the ZeRO stage that it was saved with"
        ) from error


def _open(folder: Path, zero_stage: int, num_ranks: int) -> SavedState:
    model_names = ["mp_rank_00"]
    if zero_stage == 3:
        model_names = [f"zero_pp_rank_{rank}_mp_rank_00" for rank in range(num_ranks)]
    models = [load(folder / f"{name}_model_states.pt", mmap=True) for name in model_names]
    first = models[0]

    scaler: Mapping[str, Any] = {}
    if zero_stage == 0:
        base = first["optimizer"]
        pieces = _whole(first, folder)
        shapes = {name: first["module"][name].shape for name in pieces}
    else:
        optims = [
            load(_optimizer_file(folder, rank), mmap=True)["optimizer_state_dict"]
            for rank in range(num_ranks)
        ]
        scaler = {name: optims[0][name] for name in LOSS_SCALER if name in optims[0]}
        shapes = {name: shape for group in first["param_shapes"] for name, shape in group.items()}
        if zero_stage == 3:
            base = optims[0]["optimizer_state_dict"]
            pieces = _cut_by_rank(first, optims)
        else:
            base = optims[0]["base_optimizer_state"]
            pieces = _cut_anywhere(first, optims)

    for name, shape in shapes.items():
        numel = sum(piece.numel for piece in pieces[name])
        if numel != shape.numel():
            raise IndexError(f"{name} has {shape.numel()} elements, its pieces have {numel}")

    return SavedState(
        shapes=shapes,
        untrained=_untrained(models, zero_stage, shapes.keys()),
        counters={name: int(first[name]) for name in COUNTERS},
        group_counts=tuple(
            {name: group[name] for name in ("step",) if name in group} for group in base["param_groups"]
        ),
        loss_scaler=scaler,
        pieces=pieces,
    )


def _optimizer_file(folder: Path, rank: int) -> Path:
    """With bf16 weights its name begins otherwise."""
    name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    bf16 = folder / f"bf16_{name}"
    if bf16.is_file():
        return bf16
    return folder / name


def _flat(weights: Tensor, state: Mapping[str, Any]) -> _Flat:
    """A state is of the elements if it has as many dimensions as the weights; the count of steps never is."""
    values = {FP32: weights.reshape(-1)}
    counts = {}
    for key, value in state.items():
        if torch.is_tensor(value) and key != "step" and value.dim() == weights.dim():
            values[key] = value.reshape(-1)
        else:
            counts[key] = value
    return _Flat(values=values, counts=counts)


def _whole(model: Mapping[str, Any], folder: Path) -> dict[str, list[_Piece]]:
    """ZeRO 0."""
    names = model["mtdnn_ds"].get("optimizer_order")
    if names is None:
        raise CheckpointError(
            f"{folder}: was saved at ZeRO stage 0 by mtdnn_ds 0.2 or older, "
            "which did not write which optimizer state belongs to which parameter; "
            "resume once with ZeRO stage 0, and from its next checkpoint as you like"
        )

    order, states = iter(names), model["optimizer"]["state"]
    pieces: dict[str, list[_Piece]] = {}
    for group in model["optimizer"]["param_groups"]:
        flats = {
            name: _flat(model["module"][name], states[number])
            for number, name in zip(group["params"], order, strict=False)
        }

        # All take part in every step. DeepSpeed's FusedAdam counts on in the last one of a group only, and
        # goes by that.
        furthest = max(
            (flat.counts for flat in flats.values()), key=lambda counts: float(counts.get("step", 0))
        )
        for name, flat in flats.items():
            counted = replace(flat, counts=furthest)
            pieces[name] = [_Piece(flat=counted, start=0, numel=flat.values[FP32].numel(), offset=0)]
    return pieces


def _cut_anywhere(model: Mapping[str, Any], optims: Sequence[Mapping[str, Any]]) -> dict[str, list[_Piece]]:
    """ZeRO 1 and 2.

    `param_slice_mappings` is not asked: with round_robin_gradients it takes another order than the groups
    were laid in.
    """
    pieces: dict[str, list[_Piece]] = {}
    for number, shapes in enumerate(model["param_shapes"]):
        paddings = (optims[0].get("param_alignment_paddings") or {number: [0] * len(shapes)})[number]
        flats = [
            _flat(
                optim["single_partition_of_fp32_groups"][number],
                optim["base_optimizer_state"]["state"].get(number, {}),
            )
            for optim in optims
        ]
        # The weights have lost the padding at the end of the group; the states have not.
        size = max(values.numel() for values in flats[0].values.values())

        begin = 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            pieces[name] = []
            for rank, flat in enumerate(flats):
                low, high = max(begin, rank * size), min(begin + shape.numel(), (rank + 1) * size)
                if low < high:
                    pieces[name].append(
                        _Piece(flat=flat, start=low - begin, numel=high - low, offset=low - rank * size)
                    )
            begin += shape.numel() + padding
    return pieces


def _cut_by_rank(model: Mapping[str, Any], optims: Sequence[Mapping[str, Any]]) -> dict[str, list[_Piece]]:
    """ZeRO 3."""
    pieces: dict[str, list[_Piece]] = {}
    for rank, optim in enumerate(optims):
        for number, shapes in enumerate(model["param_shapes"]):
            flat = _flat(optim["fp32_flat_groups"][number], optim["optimizer_state_dict"]["state"][number])
            offset = 0
            for name, shape in shapes.items():
                size = -(-shape.numel() // len(optims))
                start = min(rank * size, shape.numel())
                pieces.setdefault(name, []).append(
                    _Piece(flat=flat, start=start, numel=min(size, shape.numel() - start), offset=offset)
                )
                offset += size
    return pieces


def _untrained(
    models: Sequence[Mapping[str, Any]], zero_stage: int, trained: Collection[str]
) -> dict[str, Tensor]:
    """Frozen parameters and buffers.

    ZeRO 3 cuts the parameters up as it does trained ones, and leaves empty tensors in `module`.
    """
    rest = {name: tensor for name, tensor in models[0]["module"].items() if name not in trained}
    if zero_stage == 3:
        for name, shape in models[0]["frozen_param_shapes"].items():
            parts = [model["frozen_param_fragments"][name].reshape(-1) for model in models]
            rest[name] = torch.cat(parts)[: shape.numel()].reshape(shape)
    return rest
