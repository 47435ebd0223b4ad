"""What a run goes on from: its state, compared with a checkpoint's and restored. Saves nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtdnn_ds import dist
from mtdnn_ds.checkpoint import restore
from mtdnn_ds.checkpoint.find import CheckpointInfo
from mtdnn_ds.checkpoint.shard_reader import SavedState
from mtdnn_ds.checkpoint.zero_partition import PARTITION
from mtdnn_ds.config.deepspeed import ResolvedDeepSpeed
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.plan.task_part import Plan
from mtdnn_ds.runs.setup import settings_dict
from mtdnn_ds.runs.state import RunState, check_fit
from mtdnn_ds.train.distillation.teacher_outputs import TeacherOutputs, fingerprints
from mtdnn_ds.train.model import TrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """A checkpoint that fits the run."""

    checkpoint: CheckpointInfo
    tensors: SavedState | None  # the checkpoint's, where they must be distributed anew


def fresh_state(
    recipe: Recipe, plan: Plan, deepspeed: ResolvedDeepSpeed, teacher_outputs: Sequence[TeacherOutputs]
) -> RunState:
    """The state of a run before its first step."""
    zero = deepspeed.config["zero_optimization"]
    topology = {key: value for key, value in zero.items() if key in PARTITION and value}
    if deepspeed.offload_optimizer:
        topology["offload_optimizer"] = True
    topology["world_size"] = dist.world_size()
    topology["zero_stage"] = deepspeed.zero_stage
    topology["precision"] = deepspeed.precision

    return RunState(
        step=0,
        recipe=settings_dict(recipe),
        plan=plan.state_dict(0),
        topology=topology,
        teachers=fingerprints(teacher_outputs),
    )


def open_resume_point(checkpoint: CheckpointInfo | None, fresh: RunState, plan: Plan) -> ResumePoint | None:
    """The checkpoint as what this run, whose state would be `fresh`, goes on from; says what differs between
    them.

    None without a checkpoint. Collective: all ranks must call this. Raises CheckpointError if it does not fit
    the run.
    """
    if checkpoint is None:
        return None

    check_fit(str(checkpoint.path), checkpoint.run_state, fresh, plan)
    tensors = restore.open_elsewhere(checkpoint, fresh.topology)
    for note in restore.changes(checkpoint.run_state, fresh.recipe, fresh.topology):
        log.info(note)
    return ResumePoint(checkpoint=checkpoint, tensors=tensors)


def restored_state(
    engine: Any, model: TrainedModel, point: ResumePoint | None, fresh: RunState, own_checkpoints: Path
) -> RunState:
    """Bring engine and model to where `point` is; the state there, or `fresh` without one.

    `own_checkpoints`: where the run keeps its checkpoints. Best weights of another folder's stay there.
    Collective: all ranks must call this.
    """
    if point is None:
        return fresh

    checkpoint = point.checkpoint
    restore.restore_engine(engine, checkpoint, point.tensors)
    state = RunState.from_json(checkpoint.run_state)
    state = replace(state, recipe=fresh.recipe, topology=fresh.topology)

    if model.averaged is not None:
        model.averaged.load(checkpoint.path)
    if model.scales is not None:
        model.scales.load_state_dict(state.loss_scales)
    if checkpoint.path.parent.resolve() != own_checkpoints.resolve():
        state.best = {}
    return state
