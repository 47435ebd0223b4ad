"""RunState: what a checkpoint keeps beside DeepSpeed's shards, and whether it fits a recipe.

Reads and writes no file. Randomness needs no state of its own: the plan's comes from (seed, epoch, example),
dropout's from (seed, step, rank), or, with train.dropout=counter, from (seed, step, example, layer,
position).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mtdnn_ds.checkpoint.zero_partition import PARTITION
from mtdnn_ds.config.choices import EARLIER_OPTIMIZER_NAMES
from mtdnn_ds.config.errors import CheckpointError
from mtdnn_ds.data.plan.task_part import Plan
from mtdnn_ds.runs.evaluate import Evaluation

# Settings that may differ from the checkpoint's: they change no example, no learning rate and no formula
# (rounding, and with it the last digits of a loss, may differ).
FREE_SETTINGS = (
    "train.eval_every",
    "train.save_every",
    "train.gradient_norms_every",
    "train.keep_last",
    "train.on_save_error",
    "train.async_save",
    "train.time_margin",
    "train.stall_timeout",
    "board.",
    "data.",
    "encoder.attention",
    "encoder.compile",
    "encoder.gradient_checkpointing",
    "encoder.sha256",
    "distillation.teachers",  # RunState.teachers says whether they answer alike
    "distillation.checkpoint",
    "distillation.tasks",
    "mixture.order",  # the plan's fingerprint says whether it is the same; version 0.4 had no such setting
    "batch.max_tokens_per_micro_batch",
    "batch.pad_tokens_to",
    *(f"topology.{key}" for key in PARTITION),
)


@dataclass(kw_only=True)
class RunState:
    """Where a run stands after `step` optimizer steps. Equal on every rank."""

    step: int
    recipe: dict[str, Any]
    plan: dict[str, Any]
    topology: dict[str, Any]
    # task -> fingerprint of its teachers' answers (train/distillation/teacher_outputs.py)
    teachers: dict[str, str] = field(default_factory=dict)
    loss_scales: dict[str, Any] = field(default_factory=dict)  # of adaptive scales (losses/adaptive.py)
    best: dict[str, dict[str, float]] = field(default_factory=dict)  # task or "average" -> {"score", "step"}
    evaluation: Evaluation | None = None  # the last one
    evaluated_at: int = 0  # its step

    def to_json(self) -> dict[str, Any]:
        """As run_state.json holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunState:
        """Of values that check_fit has seen."""
        state = cls(**values)
        if values["evaluation"] is not None:
            state.evaluation = Evaluation(**values["evaluation"])
        return state


def check_fit(name: str, saved: Mapping[str, Any], wanted: RunState, plan: Plan) -> None:
    """Raise CheckpointError listing every setting of checkpoint `name` that differs from this run's."""
    _check_layout(name, saved)

    problems = [
        *_setting_problems(name, saved, wanted),
        *_teacher_problems(name, saved.get("teachers", {}), wanted.teachers),
    ]
    if problems:
        advice = (
            "resume with the saved values (they are in the run folder's recipe.yaml), "
            "or start a new run in another --output_dir"
        )
        raise CheckpointError([*problems, advice])

    if plan.step_of_state(saved["plan"]) != saved["step"]:
        raise CheckpointError(
            f"{name}: its plan stands at step {saved['plan']['step']}, its weights at step {saved['step']}; "
            "use another checkpoint"
        )


def _setting_problems(name: str, saved: Mapping[str, Any], wanted: RunState) -> list[str]:
    theirs = flat({**saved["recipe"], "topology": saved["topology"]})
    ours = flat({**wanted.recipe, "topology": wanted.topology})
    return [
        f"{name}: {key} was {theirs.get(key)!r} when it was saved and is {ours.get(key)!r} now"
        for key in sorted(theirs.keys() | ours.keys())
        if _comparable(key, theirs.get(key)) != _comparable(key, ours.get(key))
        and not key.startswith(FREE_SETTINGS)
    ]


def _teacher_problems(name: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    return [
        f"{name}: the teachers of '{task}' were {theirs.get(task)} when it was saved "
        f"and are {ours.get(task)} now: their weights, or how they read the examples, have changed"
        for task in sorted(theirs.keys() | ours.keys())
        if theirs.get(task) != ours.get(task)
    ]


def _check_layout(name: str, saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError if `saved` is not what RunState.to_json writes: another version's, or changed."""
    try:
        TypeAdapter(RunState).validate_python(saved)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        ]
    else:
        wrong = _layout_problems(saved)

    if wrong:
        raise CheckpointError(
            [
                f"{name}: its run_state.json is not of this version: {line}; resume from another one"
                for line in wrong[:8]
            ]
        )


def _layout_problems(saved: Mapping[str, Any]) -> list[str]:
    """What is wrong inside the fields, whose types are right."""
    wrong = [f"{key}: no such field" for key in saved if key not in RunState.__dataclass_fields__]
    if not isinstance(saved["plan"].get("step"), int):
        wrong.append("plan.step: no whole number")
    for key in ("world_size", "zero_stage"):
        if not isinstance(saved["topology"].get(key), int):
            wrong.append(f"topology.{key}: no whole number")
    for section in ("batch", "train"):
        if not isinstance(saved["recipe"].get(section), Mapping):
            wrong.append(f"recipe.{section}: no section")
    return wrong


def _comparable(key: str, value: Any) -> Any:
    """Of a run that this one began with, or a head's checkpoint, the folder's name: folders may move. Of an
    optimizer, its name of today. Of a setting that is newer than the checkpoint, what was done before.
    """
    if key == "optimizer.idle_heads":
        return value or "update"
    if key == "optimizer.name":
        return EARLIER_OPTIMIZER_NAMES.get(value, value)
    is_folder = key == "init.run" or key.startswith("heads.")
    if is_folder and isinstance(value, str):
        return Path(value).name
    return value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one mapping with dotted keys; lists are values."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result
