"""RunMonitor: what happened in each step, to metrics.jsonl and TensorBoard. Measures and prints nothing.

Rank 0 only: the other ranks hold no monitor. A full disk raises nothing here: `problem` says it, and the
lines wait in memory.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.files import PatientFile
from mtdnn_ds.monitor.tensorboard import (
    EventFile,
    board_layout,
    end_summary,
    flat_settings,
    recipe_summary,
    start_summaries,
    write_projector,
)

Event = tuple[str, float, int]  # tag, value, step: what DeepSpeed's monitors take

TENSORBOARD_ONLY = ("mfu",)  # fields of StepRecord that metrics.jsonl does not have
ONLY_WHEN_ON = (
    "penalty",
    "regularizer",
    "task_scale",
    "task_grad_norm",
)  # fields that a run, or a step, without what they are of does not have


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One optimizer step, summed or averaged over all ranks: a training line of metrics.jsonl."""

    step: int  # optimizer steps done, so the first is 1
    loss: float  # the objective
    task_loss: Mapping[str, float]  # mean loss of each task in the step
    task_examples: Mapping[str, int]
    lr: float
    grad_norm: float | None  # before clipping; None where the engine does not compute it
    loss_scale: float  # 1 without fp16
    skipped: int  # attempts at this step that overflowed in fp16 and changed no parameter
    tokens: int  # real tokens
    tokens_per_second: float
    padding_efficiency: float  # real tokens / tokens computed, at most 1
    rank_imbalance: float  # cost of the busiest rank / mean cost, at least 1
    micro_batches: int  # of one rank
    seconds: float
    penalty: float | None = (
        None  # of soft or low-rank sharing, of the weights after the step; not in the loss
    )
    regularizer: float | None = None  # the regulariser's part of the loss; None without one
    task_scale: Mapping[str, float] | None = None  # w_t of each task in the step, where the loss scales adapt
    # Of each task's part of the encoder's gradient, before clipping; None in steps that do not measure it
    task_grad_norm: Mapping[str, float] | None = None
    mfu: float | None = None  # fraction of the peak FLOP/s; None where the peak is unknown
    wait_fraction: float = 0.0  # fraction of `seconds` in which rank 0 waited for data

    def json_fields(self) -> dict[str, Any]:
        absent = {name for name in ONLY_WHEN_ON if getattr(self, name) is None}
        left_out = {*TENSORBOARD_ONLY, *absent}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def scalars(self) -> list[tuple[str, float | None]]:
        """(tag, value) of every curve; None where a step has no point on it."""
        of_tasks = [
            *((f"task_scale/{task}", scale) for task, scale in (self.task_scale or {}).items()),
            *((f"task_grad_norm/{task}", norm) for task, norm in (self.task_grad_norm or {}).items()),
            *((f"loss/{task}", loss) for task, loss in self.task_loss.items()),
            *((f"examples/{task}", count) for task, count in self.task_examples.items()),
        ]

        return [
            ("loss", self.loss),
            ("penalty", self.penalty),
            ("regularizer", self.regularizer),
            *of_tasks,
            ("lr", self.lr),
            ("grad_norm", self.grad_norm),
            ("loss_scale", self.loss_scale),
            ("skipped", float(self.skipped)),
            ("tokens_per_second", self.tokens_per_second),
            ("mfu", self.mfu),
            ("padding_efficiency", self.padding_efficiency),
            ("rank_imbalance", self.rank_imbalance),
            ("micro_batches", self.micro_batches),
            ("seconds", self.seconds),
            ("wait_fraction", self.wait_fraction),
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRecord:
    """All dev metrics after `step` steps: an evaluation line of metrics.jsonl."""

    step: int
    eval: Mapping[str, Mapping[str, float]]  # task -> metric -> value
    average: float  # of the tasks' scores

    def json_fields(self) -> dict[str, Any]:
        return asdict(self)

    def scalars(self) -> list[tuple[str, float | None]]:
        by_metric = [
            (f"eval/{task}/{metric}", value)
            for task, values in self.eval.items()
            for metric, value in values.items()
        ]
        return [*by_metric, ("eval/average", self.average)]


def check_monitors(deepspeed_config: Mapping[str, Any]) -> None:
    """Refuse a run whose board, or whose DeepSpeed monitor, could not be written.

    Every rank calls it before the first collective: DeepSpeed imports its monitors on rank 0 only, and the
    others would wait.
    """
    for section, package in (("wandb", "wandb"), ("comet", "comet_ml")):
        if deepspeed_config.get(section, {}).get("enabled") and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"the DeepSpeed JSON enables {section}, but the package {package} is missing; "
                f"install it with: pip install {package}"
            )

    try:
        import tensorboard  # noqa: F401
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the run's TensorBoard files cannot be written: {error}; "
            "install it with: pip install tensorboard"
        ) from error


class RunMonitor:
    """Owns a run's metrics.jsonl and TensorBoard writer; close it, or use it in a `with` block (rank 0 only).

    `task_metrics`: each task's metric names as they will appear in EvalRecord.eval, the main one first.
    `settings`: the recipe as nested plain values; its scalars become the row of TensorBoard's HPARAMS tab.
    `recipe_text`: the recipe as the board's TEXT tab shows it; None: no such tab. `last_step`: optimizer
    steps already done, 0 for a new run. Lines of a later step, or a line that the end of the earlier process
    cut in two, move to metrics.discarded.jsonl; `num_discarded_lines` counts them, for the caller to say.
    `write_events`: DeepSpeed's `engine.monitor.write_events`, when the JSON switches on one of its monitors.
    Steps are ours; DeepSpeed's own events count examples, so a caller that sends both to wandb must convert
    (wandb drops a step that goes back).
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        task_metrics: Mapping[str, Sequence[str]],
        settings: Mapping[str, Any],
        recipe_text: str | None = None,
        last_step: int = 0,
        write_events: Callable[[list[Event]], None] | None = None,
    ) -> None:
        from torch.utils.tensorboard.summary import custom_scalars

        run_dir.mkdir(parents=True, exist_ok=True)
        self._write_events = write_events

        metrics_path = run_dir / "metrics.jsonl"
        self.num_discarded_lines = cut_metrics(metrics_path, last_step)
        self._lines = PatientFile(metrics_path)

        purge_step = 0
        if last_step:
            purge_step = last_step + 1
        self._board = EventFile(run_dir / "tensorboard", purge_step=purge_step)
        has_task_norms = bool(settings["train"].get("gradient_norms_every"))
        self._board.add(custom_scalars(board_layout(task_metrics, has_task_norms=has_task_norms)))
        for summary in start_summaries(run_dir.name, flat_settings(settings), task_metrics):
            self._board.add(summary)
        if recipe_text is not None:
            self._board.add(recipe_summary(recipe_text))
        self._board.flush()

    @property
    def problem(self) -> str | None:
        """Why lines or points wait in memory, None if none do."""
        return self._lines.problem or self._board.file.problem

    def write(self, record: StepRecord | EvalRecord) -> None:
        """Append one line, and the same scalars to TensorBoard and DeepSpeed's monitor. A value that is not
        finite becomes null, and no point.
        """
        self._lines.write(json.dumps(_without_nan(record.json_fields()), allow_nan=False).encode() + b"\n")
        self._lines.flush()

        events = [
            (tag, float(value), record.step)
            for tag, value in record.scalars()
            if value is not None and math.isfinite(value)
        ]
        for tag, value, step in events:
            self._board.add_scalar(tag, value, step)
        if self._write_events is not None:
            self._write_events(events)

    def write_projector(
        self, vectors: np.ndarray, columns: Sequence[str], metadata: Sequence[Sequence[str]]
    ) -> None:
        """Embeddings for the board's PROJECTOR tab. Raises OSError."""
        write_projector(self._board.folder, vectors, columns, metadata)

    def flush(self) -> None:
        """Write what waits, as far as the disk takes it."""
        self._lines.flush()
        self._board.flush()

    def close(self, *, succeeded: bool = True) -> None:
        """Flush and close both; the HPARAMS tab then shows the run as succeeded or failed. A second call does
        nothing.
        """
        if self._lines.closed:
            return
        self._lines.close()
        self._board.add(end_summary(succeeded))
        self._board.close()

    def __enter__(self) -> RunMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(succeeded=kind is None)


def cut_metrics(path: Path, last_step: int) -> int:
    """Move lines of steps after `last_step` (all lines, if it is 0) and unreadable lines to
    metrics.discarded.jsonl; return their number.

    The kept lines replace the file in one rename, after the cut ones are on disk: a crash in between loses no
    line.
    """
    if not path.exists():
        return 0

    kept_path = path.with_name(path.name + ".tmp")
    cut: list[bytes] = []
    with path.open("rb") as lines, kept_path.open("wb") as kept:
        for line in lines:
            step = _line_step(line)
            line = line.rstrip(b"\n") + b"\n"
            if step is not None and last_step > 0 and step <= last_step:
                kept.write(line)
            else:
                cut.append(line)
        kept.flush()
        os.fsync(kept.fileno())

    if cut:
        with path.with_name("metrics.discarded.jsonl").open("ab") as discarded:
            discarded.writelines(cut)
            discarded.flush()
            os.fsync(discarded.fileno())

    kept_path.replace(path)
    return len(cut)


def _line_step(line: bytes) -> int | None:
    """The line's step, or None for a line that is torn or not ours."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # the first is also what undecodable bytes raise
        return None
    if not isinstance(record, dict):
        return None
    step = record.get("step")
    if not isinstance(step, int):
        return None
    return step


def _without_nan(value: Any) -> Any:
    """NaN and infinity are not JSON: null instead, at any depth."""
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
