"""A run folder as numbers: log, best weights, plan, starts and stops. Reads small files only, loads no weights; what is missing is noted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtdnn_ds.checkpoint.weights import BEST
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.runs.folder import PLAN, RunFolder, refuse_staged_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a run folder says of itself."""

    name: str
    folder: RunFolder
    recipe: Recipe
    recipe_yaml: str
    steps: tuple[Mapping[str, Any], ...]  # training lines of metrics.jsonl
    evaluations: tuple[Mapping[str, Any], ...]
    best: Mapping[str, Mapping[str, Any]]  # task or average -> step, metrics
    plan: Mapping[str, Any] | None  # plan.json
    starts: tuple[Mapping[str, Any], ...]  # environment.json of each start, the first one first
    marks: tuple[tuple[int, str], ...]  # steps after which it stopped or went on
    notes: tuple[str, ...]  # what is missing

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.recipe.tasks)

    @property
    def last_step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    def drawn(self) -> dict[str, int]:
        """Examples of each task in all logged steps."""
        totals = dict.fromkeys(self.tasks, 0)
        for line in self.steps:
            for task, count in line["task_examples"].items():
                totals[task] = totals.get(task, 0) + count
        return totals

    def planned(self, step: int) -> dict[str, float] | None:
        """Examples of each task that the plan has in the first `step` steps; between the steps that plan.json lists, a straight line."""
        if self.plan is None:
            return None
        return {
            task: interpolated([0, *self.plan["steps"]], [0, *counts], step)
            for task, counts in self.plan["examples"].items()
        }


def interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The value at `x` of straight lines through the points, whose `xs` rise."""
    for index in range(1, len(xs)):
        if x <= xs[index]:
            share = (x - xs[index - 1]) / (xs[index] - xs[index - 1])
            return ys[index - 1] + share * (ys[index] - ys[index - 1])
    return float(ys[-1])


SMOOTHED_FROM = 20  # values


def read_runs(folders: Sequence[str]) -> list[RunRecord]:
    """All runs, with names that differ. Raises ConfigError with every folder that is none."""
    problems: list[str] = []
    records: list[RunRecord] = []
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    for index, (folder, path) in enumerate(zip(folders, paths, strict=True)):
        if resolved[index] in resolved[:index]:
            problems.append(f"--run_dir {folder}: is given twice; keep one")
            continue
        if not (path / "recipe.yaml").is_file():
            stages = sorted(str(stage.parent) for stage in path.glob("stages/*/recipe.yaml"))
            hint = (
                f"; it is a run in stages, give some of them: {', '.join(stages)}"
                if stages
                else "; give the --output_dir of a training run"
            )
            problems.append(f"--run_dir {folder}: not a run folder (recipe.yaml is missing){hint}")
            continue
        try:
            refuse_staged_folder(RunFolder(path), "--run_dir")
            records.append(_read_run(path, _name(path, resolved)))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return records


def _name(path: Path, all_paths: Sequence[Path]) -> str:
    own = path.resolve()
    same = sum(other.name == own.name for other in all_paths)
    return own.name if same == 1 else f"{own.parent.name}/{own.name}"


def _read_run(path: Path, name: str) -> RunRecord:
    folder, notes = RunFolder(path), []
    steps, evaluations = [], []
    num_torn = 0
    if folder.metrics.is_file():
        for line in folder.metrics.read_bytes().splitlines():
            record = _json_object(line)
            if record is None or not isinstance(record.get("step"), int):
                num_torn += 1
            elif "eval" in record:
                evaluations.append(record)
            elif "task_loss" in record and "task_examples" in record:
                steps.append(record)
    else:
        notes.append("metrics.jsonl is not there: no curve can be drawn")
    if num_torn:
        notes.append(f"metrics.jsonl: {num_torn} lines cannot be read and are left out")
    if not steps and folder.metrics.is_file():
        notes.append("metrics.jsonl has no training step yet")
    if not evaluations:
        notes.append("it was never evaluated: no development metric, no best weights")
    plan = _json_object((path / PLAN).read_bytes()) if (path / PLAN).is_file() else None
    if plan is None or not {"steps", "examples", "total_steps"} <= plan.keys():
        plan = None
        notes.append(
            f"{PLAN} is not there (runs of versions before 0.4 have none): the mixture as planned cannot be shown"
        )
    starts = _starts(path)
    if not starts:
        notes.append("environment.json is not there: versions and ranks are unknown")
    return RunRecord(
        name=name,
        folder=folder,
        recipe=load_recipe(str(folder.recipe), {}),
        recipe_yaml=folder.recipe.read_text(encoding="utf-8"),
        steps=tuple(steps),
        evaluations=tuple(evaluations),
        best={
            each.parent.name: record
            for each in sorted(folder.best.glob(f"*/{BEST}"))
            if (record := _json_object(each.read_bytes())) is not None
        },
        plan=plan,
        starts=starts,
        marks=_marks(path),
        notes=tuple(notes),
    )


def _starts(path: Path) -> tuple[Mapping[str, Any], ...]:
    """environment.json and those of earlier starts, which are kept under numbers."""
    found = [_json_object(each.read_bytes()) for each in path.glob("environment*.json")]
    return tuple(
        sorted((each for each in found if each is not None), key=lambda each: str(each.get("started", "")))
    )


def _marks(path: Path) -> tuple[tuple[int, str], ...]:
    """Stops on request, and steps that were done again after a crash."""
    marks: list[tuple[int, str]] = []
    if (path / "stops.jsonl").is_file():
        for line in (path / "stops.jsonl").read_bytes().splitlines():
            stop = _json_object(line)
            if stop is not None and isinstance(stop.get("step"), int):
                reasons = "; ".join(map(str, stop.get("reasons", [])))
                marks.append(
                    (
                        stop["step"],
                        f"stopped after step {stop['step']} at {stop.get('time', 'an unknown time')}: {reasons}",
                    )
                )
    repeated: list[int] = []
    discarded = path / "metrics.discarded.jsonl"
    for line in discarded.read_bytes().splitlines() if discarded.is_file() else []:
        record = _json_object(line)
        if record is not None and isinstance(record.get("step"), int):
            repeated.append(record["step"])
    first = [step for index, step in enumerate(repeated) if index == 0 or step <= repeated[index - 1]]
    marks += [
        (step - 1, f"went on from step {step - 1}: later steps were lost with a process, and done again")
        for step in first
        if step > 0
    ]
    return tuple(sorted(marks))


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value with its neighbours: on either side a sixtieth of all points, at least two (fewer at the ends, equally many on
    both sides). Fewer than 20 values stay as they are.

    NaN stays where it is, and counts not.
    """
    reach = max(len(values) // 60, 2) if len(values) >= SMOOTHED_FROM else 0
    totals, counts = [0.0], [0]
    for value in values:
        finite = math.isfinite(value)
        totals.append(totals[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    result = []
    for index, value in enumerate(values):
        side = min(reach, index, len(values) - 1 - index)
        first, last = index - side, index + side + 1
        result.append(
            (totals[last] - totals[first]) / (counts[last] - counts[first])
            if math.isfinite(value)
            else math.nan
        )
    return result


def thinned(xs: Sequence[float], ys: Sequence[float], most: int = 700) -> tuple[list[float], list[float]]:
    """At most `most` points: means of neighbours, equally many in each."""
    size = -(-len(xs) // most) if xs else 1
    if size == 1:
        return list(xs), list(ys)
    chunks = [range(begin, min(begin + size, len(xs))) for begin in range(0, len(xs), size)]
    return [sum(xs[i] for i in chunk) / len(chunk) for chunk in chunks], [
        _mean([ys[i] for i in chunk]) for chunk in chunks
    ]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
