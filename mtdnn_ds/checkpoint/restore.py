"""Going on at another number of ranks, ZeRO stage, offload or micro-batch: a saved state put into any engine.

Writes no file. The plan knows no topology, so the same examples make up the same steps. What differs is which
part of the weights and of the optimizer's state each rank holds: it looks up its own in the checkpoint,
wherever it lies there (checkpoint/shard_reader.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.find import CheckpointInfo, load_engine
from mtdnn_ds.checkpoint.shard_reader import FP32, SavedState, open_saved
from mtdnn_ds.checkpoint.zero_partition import PARTITION, OwnedPart, owned_parts
from mtdnn_ds.config.errors import CheckpointError


def open_elsewhere(found: CheckpointInfo, topology: Mapping[str, Any]) -> SavedState | None:
    """The checkpoint as any engine can take it; None where DeepSpeed can load it itself, into the same parts.

    Collective: all ranks must call this. Raises CheckpointError if the checkpoint cannot be taken apart.
    """
    saved = found.run_state["topology"]
    if all(saved.get(key) == topology.get(key) for key in PARTITION):
        return None

    opened: list[SavedState] = []

    def open_here() -> None:
        opened.append(open_saved(found.path, zero_stage=saved["zero_stage"], num_ranks=saved["world_size"]))

    dist.on_all(open_here)
    return opened[0]


def changes(saved: Mapping[str, Any], recipe: Mapping[str, Any], topology: Mapping[str, Any]) -> list[str]:
    """What a run says that goes on from the run state `saved` elsewhere; nothing if all is as it was."""
    before, ranks = saved["topology"], topology["world_size"]
    is_other_world = ranks != before["world_size"]
    parts = []
    if is_other_world:
        noun = "ranks" if ranks > 1 else "rank"
        parts.append(f"{ranks} {noun} instead of {before['world_size']}")
    if topology["zero_stage"] != before["zero_stage"]:
        parts.append(f"ZeRO stage {topology['zero_stage']} instead of {before['zero_stage']}")
    for key in PARTITION[2:]:
        if topology.get(key) != before.get(key):
            parts.append(
                f"zero_optimization.{key} {topology.get(key, 'off')} instead of {before.get(key, 'off')}"
            )
    is_cut_otherwise = bool(parts)

    tokens = saved["recipe"]["batch"].get("max_tokens_per_micro_batch")
    ours = recipe["batch"]["max_tokens_per_micro_batch"]
    if tokens != ours:
        parts.append(f"batch.max_tokens_per_micro_batch {ours} instead of {tokens}")
    if not parts:
        return []

    note = f"goes on with {', '.join(parts)}: the same examples in the same steps"
    if is_cut_otherwise:
        note += (
            "; every rank takes its part of the weights and of the optimizer's state "
            "from the checkpoint's shards"
        )
    if recipe["train"]["dropout"] != "model" or not (tokens != ours or is_other_world):
        return [note]
    return [
        note,
        "train.dropout=model: dropout is drawn by rank and micro-batch, so the losses from here on are not "
        "those that the run would have had where it was; "
        "train.dropout=none, or counter, does not depend on it",
    ]


def restore_engine(engine: Any, found: CheckpointInfo, saved: SavedState | None) -> None:
    """Put weights, optimizer and loss-scaler state back, by DeepSpeed or from `saved`.

    Collective: all ranks must call this.
    """
    if saved is None:
        load_engine(engine, found)
        return

    stage = engine.zero_optimization_stage()
    if stage == 3:
        # Every parameter in parts, as DeepSpeed does before it loads.
        engine.optimizer.checkpoint_event_prologue()
    dist.on_all(lambda: _fill(engine, saved, found))
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    elif stage == 3:
        engine.optimizer.checkpoint_event_epilogue()  # small ones whole again

    for name, value in saved.counters.items():
        setattr(engine, name, value)
    if engine.fp16_enabled():
        for name, value in saved.loss_scaler.items():
            setattr(engine.optimizer, name, value)


@torch.no_grad()
def _fill(engine: Any, saved: SavedState, found: CheckpointInfo) -> None:
    """This rank's parts of the trained parameters and their states, and what is not trained."""
    trained = {
        name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad
    }
    _check_shapes(trained, saved, str(found.path))

    optimizer = engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer
    parts = owned_parts(engine)
    have_states: set[int] = set()  # flat tensors
    for name, parameter in trained.items():
        part = parts.get(parameter)
        if part is None:
            continue
        state = optimizer.state[part.flat]
        if id(part.flat) not in have_states:
            have_states.add(id(part.flat))
            state.clear()
            state.update(_new_state(part.flat, optimizer.param_groups[part.group], saved, name))
        _fill_part(parameter, part, state, saved, name)

    for group, counts in zip(optimizer.param_groups, saved.group_counts, strict=True):
        group.update(counts)
    _fill_untrained(engine.module, saved)


def _fill_part(
    parameter: nn.Parameter, part: OwnedPart, state: Mapping[str, Tensor], saved: SavedState, name: str
) -> None:
    """The float32 values and states of one part, and ZeRO 3's copy of it in the type that computes."""
    for key in (FP32, *saved.keys(name)):
        tensor = part.flat if key == FP32 else state[key]
        values = saved.values(name, key, part.start, part.numel)
        tensor.view(-1)[part.offset : part.offset + part.numel].copy_(values)

    if hasattr(parameter, "ds_tensor"):
        own = parameter.ds_tensor
        own.data.copy_(part.flat[part.offset : part.offset + own.numel()].view_as(own))


def _new_state(flat: Tensor, group: Mapping[str, Any], saved: SavedState, name: str) -> dict[str, Any]:
    """The optimizer's state of `flat`, still without its values: at the start of a run it has none yet."""
    # torch's optimizers then count on the device, else on the CPU.
    counts_on_device = group.get("fused") or group.get("capturable")
    place = flat.device if counts_on_device else "cpu"

    state: dict[str, Any] = {}
    for key, count in saved.counts(name).items():
        state[key] = count.clone().to(place) if torch.is_tensor(count) else count
    for key in saved.keys(name):
        state[key] = torch.zeros_like(flat, dtype=torch.float32)
    return state


def _fill_untrained(module: nn.Module, saved: SavedState) -> None:
    """Frozen parameters, of which ZeRO 3 too gives each rank a part, and buffers."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            continue
        if not hasattr(parameter, "ds_tensor"):
            parameter.copy_(saved.untrained[name])
            continue
        part = parameter.ds_tensor
        mine = saved.untrained[name].reshape(-1)[dist.rank() * part.numel() :][: part.numel()]
        part.data.view(-1)[: mine.numel()].copy_(mine)

    for name, buffer in module.named_buffers():
        if name in saved.untrained:
            buffer.copy_(saved.untrained[name])


def _check_shapes(trained: Mapping[str, Any], saved: SavedState, where: str) -> None:
    """Raise CheckpointError naming parameters whose shapes differ, or that one side does not train."""
    ours = {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in trained.items()
    }
    theirs = {name: tuple(shape) for name, shape in saved.shapes.items()}

    wrong = [
        f"{where}: {name} is {theirs.get(name, 'not trained')} there "
        f"and {ours.get(name, 'not trained')} here; "
        "resume with the encoder, the tasks and the mtdnn_ds that it was saved with"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if wrong:
        raise CheckpointError(wrong[:8])
