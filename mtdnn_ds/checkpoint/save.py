"""Saving checkpoints: whole or not at all, on every rank alike, at once or beside the training. Reads none.

A checkpoint is written into checkpoints/.partial_step_N.XXXXXX, checked, given a manifest with every file's
size and sha256, flushed to disk and only then renamed to checkpoints/step_N; `latest` is replaced and old
ones are deleted last. A kill or a full disk at any point leaves a folder without a manifest, or an untouched
older checkpoint. The X are new each time: a rank of a killed run that still dies cannot write into the folder
of the run that has taken its place.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mtdnn_ds import dist
from mtdnn_ds.checkpoint.manifest import (
    MANIFEST,
    PARTIAL,
    RUN_STATE,
    newest_bytes,
    numbered,
    write_manifest,
)
from mtdnn_ds.checkpoint.shard_writer import ShardReport, ShardWriter
from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.faults.heartbeat import announce
from mtdnn_ds.files import SaveFailed, free_bytes, reason, size, sync, written_aside

Also = Sequence[Callable[[Path], None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingSave:
    """A checkpoint that is being written.

    Equal on all ranks but for `writer`, which writes this rank's files.
    """

    engine: Any
    checkpoints: Path
    partial: Path
    step: int
    keep_last: int
    writer: ShardWriter

    @property
    def final(self) -> Path:
        """Where it will be once it is whole."""
        return self.checkpoints / f"step_{self.step}"


def begin_save(
    engine: Any,
    checkpoints: Path,
    *,
    step: int,
    run_state: dict[str, Any],
    keep_last: int,
    also: Also,
    in_background: bool,
) -> PendingSave:
    """Take the state of every rank, and write it: before this returns, or in a thread.

    Collective: all ranks must call this, between steps. `run_state` is JSON, equal on all ranks. `also`: each
    writes a file of its own into the folder, on rank 0. Raises SaveFailed on all ranks.
    """
    partial = dist.on_main(lambda: _open_partial(checkpoints, step, run_state, also))
    announce(f"saving step {step}, before its shards")

    writer = ShardWriter(in_background=in_background)
    ours = {"step": step, "optimizer_order": _optimizer_order(engine)}
    client_state = {"mtdnn_ds": ours, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
    with writer.in_place_of(engine):
        engine.save_checkpoint(
            str(checkpoints), tag=partial.name, client_state=client_state, save_latest=False
        )

    return PendingSave(
        engine=engine,
        checkpoints=checkpoints,
        partial=partial,
        step=step,
        keep_last=keep_last,
        writer=writer,
    )


def complete_save(pending: PendingSave) -> tuple[str, ...]:
    """Wait for all ranks' files and make them a checkpoint; returns what is to be said.

    Collective: all ranks must call this. Raises SaveFailed on all of them.
    """
    reports = dist.gather(pending.writer.wait())
    return dist.on_main(lambda: _finish(pending, reports))


def space_note(engine: Any, checkpoints: Path, keep_last: int) -> str | None:
    """What is to be said before the first step, if the disk has no room for the checkpoints to come.

    Any one rank.
    """
    each = newest_bytes(checkpoints) or _estimated_bytes(engine)
    # An old one is deleted when the new one is whole.
    needed = each * max(1, keep_last + 1 - len(numbered(checkpoints)))

    free = free_bytes(checkpoints)
    if free is None or free >= needed:
        return None
    return (
        f"{checkpoints}: checkpoints of about {size(each)} will need {size(needed)} "
        f"(train.keep_last={keep_last}, and one more while it is written); {size(free)} are free there"
    )


def _open_partial(checkpoints: Path, step: int, run_state: dict[str, Any], also: Also) -> Path:
    """A folder for step N with the files that rank 0 alone writes."""
    partial = checkpoints / f"{PARTIAL}step_{step}.{secrets.token_hex(3)}"

    needed, free = newest_bytes(checkpoints), free_bytes(checkpoints)
    if needed is not None and free is not None and free < needed:
        raise _save_failed(checkpoints, step, ["the disk has no room for it; nothing was written"])

    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        (partial / RUN_STATE).write_text(json.dumps(run_state, indent=1))
        for write in also:
            write(partial)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _save_failed(checkpoints, step, [reason(error)]) from error
    return partial


def _finish(pending: PendingSave, reports: Sequence[ShardReport]) -> tuple[str, ...]:
    """Of rank 0: the partial folder becomes the checkpoint, `latest` names it, and old ones go."""
    checkpoints = pending.checkpoints
    problems = [
        f"rank {rank}: {report.problem}" for rank, report in enumerate(reports) if report.problem is not None
    ]
    try:
        if not problems:
            _make_whole(pending, reports)
    except (OSError, CheckpointError) as error:
        problems = [reason(error)]
    if problems:
        shutil.rmtree(pending.partial, ignore_errors=True)
        raise _save_failed(checkpoints, pending.step, problems)

    try:
        announce(f"saving step {pending.step}, before latest")
        with written_aside(checkpoints / "latest") as aside:
            aside.write_text(pending.final.name)
            announce(f"saving step {pending.step}, inside latest")
        _prune(checkpoints, pending.keep_last)
    except OSError as error:
        return (f"{pending.final}: is saved, but not all that comes after could be done: {reason(error)}",)
    return ()


def _make_whole(pending: PendingSave, reports: Sequence[ShardReport]) -> None:
    announce(f"saving step {pending.step}, all shards written")
    _check_shards(pending.partial, pending.engine)
    write_manifest(
        pending.partial, known={name: entry for report in reports for name, entry in report.files.items()}
    )

    announce(f"saving step {pending.step}, before the rename")
    os.replace(pending.partial, pending.final)
    sync(pending.checkpoints)


def _save_failed(checkpoints: Path, step: int, problems: Sequence[str]) -> SaveFailed:
    room = []
    needed, free = newest_bytes(checkpoints), free_bytes(checkpoints)
    if needed is not None:
        room.append(f"a checkpoint takes {size(needed)}")
    if free is not None:
        room.append(f"{size(free)} are free")

    kept = "there is no earlier one"
    there = numbered(checkpoints)
    if there:
        kept = f"{there[0][1]} is untouched"
    return SaveFailed(
        f"step {step}: the checkpoint could not be saved: {'; '.join(problems)} ({', '.join(room)}); {kept}"
    )


def _estimated_bytes(engine: Any) -> int:
    """Weights as they compute, float32 masters beside them under ZeRO, and AdamW's two float32 states."""
    bytes_of_states = 8 if engine.zero_optimization_stage() == 0 else 12
    total = 0
    for parameter in engine.module.parameters():
        each = parameter.element_size()
        if parameter.requires_grad:
            each += bytes_of_states
        total += each * getattr(parameter, "ds_numel", parameter.numel())
    return total


def _optimizer_order(engine: Any) -> list[str] | None:
    """Which parameter each of the optimizer's numbers means, where DeepSpeed does not write it (ZeRO 0)."""
    if engine.zero_optimization_stage() > 0:
        return None
    return [
        engine.param_names[parameter]
        for group in engine.optimizer.param_groups
        for parameter in group["params"]
    ]


def _check_shards(folder: Path, engine: Any) -> None:
    """Count the files that DeepSpeed must have written (its layout, DeepSpeed 0.19.8)."""
    stage, ranks = engine.zero_optimization_stage(), dist.world_size()
    optimizer_files = len(list(folder.glob("*_optim_states.pt")))
    model_files = len(list(folder.glob("*_model_states.pt")))
    expected = {0: (1, 0), 1: (1, ranks), 2: (1, ranks), 3: (ranks, ranks)}[stage]
    if (model_files, optimizer_files) != expected:
        raise CheckpointError(
            f"{folder}: holds {model_files} model and {optimizer_files} optimizer files "
            f"instead of {expected[0]} and {expected[1]}; is --output_dir a folder that all nodes share?"
        )


def _prune(checkpoints: Path, keep_last: int) -> None:
    whole = [path for _step, path in numbered(checkpoints) if (path / MANIFEST).is_file()]
    for path in whole[keep_last:]:
        # Renamed first: a kill in between leaves something that is plainly unfinished, not a damaged
        # checkpoint.
        doomed = checkpoints / f"{PARTIAL}{path.name}"
        os.replace(path, doomed)
        announce(f"removing {path.name}")
        shutil.rmtree(doomed)
