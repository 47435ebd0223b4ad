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
from time import perf_counter
from typing import Any, Literal

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

OnError = Literal["stop", "continue"]
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
    run_state: dict[str, Any]
    keep_last: int
    writer: ShardWriter

    @property
    def final(self) -> Path:
        """Where it will be once it is whole."""
        return self.checkpoints / f"step_{self.step}"


class Saver:
    """Saves the checkpoints of a run as its recipe says, and knows which step is safe.

    Every method is collective: all ranks must call it.
    """

    def __init__(
        self,
        engine: Any,
        checkpoints: Path,
        *,
        keep_last: int,
        on_error: OnError,
        in_background: bool,
        step: int,
        say: Callable[[str], None],
    ) -> None:
        """`step`: of the checkpoint that the run went on from, 0 for a new run."""
        self._engine, self._checkpoints, self._keep_last = engine, checkpoints, keep_last
        self._on_error, self._in_background, self._say = on_error, in_background, say
        self._pending: PendingSave | None = None
        self._began = 0.0  # perf_counter of the pending one
        self.saved_step = step  # of the newest checkpoint that is whole
        self.longest_seconds = 0.0  # from the beginning of a save to its end

    def save(self, *, step: int, run_state: dict[str, Any], also: Also = (), must: bool = False) -> None:
        """Save `step`; what is still being written is completed first.

        `must`: SaveFailed whatever the recipe says, and wait for it.
        """
        self.wait()
        try:
            self._begin(step, run_state, also)
            if must or not self._in_background:
                self._complete()
        except SaveFailed as error:
            self._failed(error, must)

    def poll(self) -> None:
        """Between two steps: complete what all ranks have written.

        One small reduction while something is, else nothing.
        """
        if self._pending is None:
            return
        if not dist.any_rank(not self._pending.writer.is_done(), self._engine.device):
            self.wait()

    def wait(self, *, must: bool = False) -> None:
        """Complete what is being written."""
        try:
            if self._pending is not None:
                self._complete()
        except SaveFailed as error:
            self._failed(error, must)

    def _begin(self, step: int, run_state: dict[str, Any], also: Also) -> None:
        began = perf_counter()
        pending = begin_save(
            self._engine,
            self._checkpoints,
            step=step,
            run_state=run_state,
            keep_last=self._keep_last,
            also=also,
            in_background=self._in_background,
        )
        self._pending, self._began = pending, began

    def _complete(self) -> None:
        assert self._pending is not None
        pending, self._pending = self._pending, None
        for note in complete_save(pending):
            self._say(note)

        self.saved_step = pending.step
        self.longest_seconds = max(self.longest_seconds, perf_counter() - self._began)

    def _failed(self, error: SaveFailed, must: bool) -> None:
        if must or self._on_error == "stop":
            raise error
        for problem in error.problems:
            self._say(
                f"{problem}; going on (train.on_save_error=continue), and saving again at the next time"
            )


def save_checkpoint(
    engine: Any, checkpoints: Path, *, step: int, run_state: dict[str, Any], keep_last: int, also: Also = ()
) -> tuple[Path, tuple[str, ...]]:
    """Write checkpoints/step_N; returns it and what is to be said.

    Collective: all ranks must call this, between steps. `run_state` is JSON, equal on all ranks. `also`: each
    writes a file of its own into the folder, on rank 0. Raises SaveFailed on all ranks.
    """
    pending = begin_save(
        engine,
        checkpoints,
        step=step,
        run_state=run_state,
        keep_last=keep_last,
        also=also,
        in_background=False,
    )
    return pending.final, complete_save(pending)


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

    Collective: all ranks must call this. Raises SaveFailed on all of them.
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
        run_state=run_state,
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
    """Weights as they compute, float32 masters beside them under ZeRO, and two float32 states of each trained
    one.

    The states are AdamW's.
    """
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
