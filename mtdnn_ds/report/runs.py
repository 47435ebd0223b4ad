"""A run folder as numbers: log, best weights, plan, starts and stops. What is missing is noted.

Reads small files only, loads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtdnn_ds.checkpoint.weights import BEST
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.report.smoothing import interpolated
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
        """Those that it trains."""
        if self.recipe.mixture.only_task is not None:
            return (self.recipe.mixture.only_task,)
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
        """Examples of each task that the plan has in the first `step` steps.

        Between the steps that plan.json lists, a straight line.
        """
        if self.plan is None:
            return None

        return {
            task: interpolated([0, *self.plan["steps"]], [0, *counts], step)
            for task, counts in self.plan["examples"].items()
        }


def read_runs(folders: Sequence[str]) -> list[RunRecord]:
    """All runs, with names that differ. Raises ConfigError with every folder that is none."""
    problems: list[str] = []
    records: list[RunRecord] = []
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    for index, path in enumerate(paths):
        setting = f"--run_dir {folders[index]}"
        if resolved[index] in resolved[:index]:
            problems.append(f"{setting}: is given twice; keep one")
        elif not (path / "recipe.yaml").is_file():
            problems.append(f"{setting}: not a run folder (recipe.yaml is missing){_run_folder_hint(path)}")
        else:
            try:
                refuse_staged_folder(RunFolder(path), "--run_dir")
                records.append(_read_run(path, _name(path, resolved)))
            except ConfigError as error:
                problems += error.problems

    if problems:
        raise ConfigError(problems)
    return records


def _run_folder_hint(path: Path) -> str:
    stages = sorted(str(stage.parent) for stage in path.glob("stages/*/recipe.yaml"))
    if stages:
        return f"; it is a run in stages, give some of them: {', '.join(stages)}"
    return "; give the --output_dir of a training run"


def _name(path: Path, all_paths: Sequence[Path]) -> str:
    """The folder's name; with its parent's where another run's folder has the same."""
    own = path.resolve()
    same = sum(other.name == own.name for other in all_paths)
    if same == 1:
        return own.name
    return f"{own.parent.name}/{own.name}"


def _read_run(path: Path, name: str) -> RunRecord:
    folder = RunFolder(path)
    notes: list[str] = []
    steps, evaluations = _read_metrics(folder, notes)
    plan = _read_plan(path, notes)
    starts = _starts(path)
    if not starts:
        notes.append("environment.json is not there: versions and ranks are unknown")

    best = {file.parent.name: _json_object(file) for file in sorted(folder.best.glob(f"*/{BEST}"))}
    return RunRecord(
        name=name,
        folder=folder,
        recipe=load_recipe(str(folder.recipe), {}),
        recipe_yaml=folder.recipe.read_text(encoding="utf-8"),
        steps=tuple(steps),
        evaluations=tuple(evaluations),
        best={name: record for name, record in best.items() if record is not None},
        plan=plan,
        starts=starts,
        marks=_marks(path),
        notes=tuple(notes),
    )


def _read_metrics(folder: RunFolder, notes: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training lines and evaluations of metrics.jsonl; what is missing goes to `notes`."""
    steps, evaluations, num_torn = [], [], 0
    for record in _json_lines(folder.metrics):
        if record is None or not isinstance(record.get("step"), int):
            num_torn += 1
        elif "eval" in record:
            evaluations.append(record)
        elif "task_loss" in record and "task_examples" in record:
            steps.append(record)

    if not folder.metrics.is_file():
        notes.append("metrics.jsonl is not there: no curve can be drawn")
    if num_torn:
        notes.append(f"metrics.jsonl: {num_torn} lines cannot be read and are left out")
    if not steps and folder.metrics.is_file():
        notes.append("metrics.jsonl has no training step yet")
    if not evaluations:
        notes.append("it was never evaluated: no development metric, no best weights")
    return steps, evaluations


def _read_plan(path: Path, notes: list[str]) -> dict[str, Any] | None:
    plan = _json_object(path / PLAN)
    if plan is not None and {"steps", "examples", "total_steps"} <= plan.keys():
        return plan

    notes.append(
        f"{PLAN} is not there (runs of versions before 0.4 have none): the mixture as planned cannot be shown"
    )
    return None


def _starts(path: Path) -> tuple[Mapping[str, Any], ...]:
    """environment.json and those of earlier starts, which are kept under numbers."""
    found = [_json_object(file) for file in path.glob("environment*.json")]
    starts = [start for start in found if start is not None]
    return tuple(sorted(starts, key=lambda start: str(start.get("started", ""))))


def _marks(path: Path) -> tuple[tuple[int, str], ...]:
    """Stops on request, and steps that were done again after a crash."""
    marks: list[tuple[int, str]] = []
    for stop in _json_lines(path / "stops.jsonl"):
        if stop is not None and isinstance(stop.get("step"), int):
            reasons = "; ".join(map(str, stop.get("reasons", [])))
            when = stop.get("time", "an unknown time")
            marks.append((stop["step"], f"stopped after step {stop['step']} at {when}: {reasons}"))

    discarded = _json_lines(path / "metrics.discarded.jsonl")
    lost = [
        record["step"] for record in discarded if record is not None and isinstance(record.get("step"), int)
    ]
    for index, step in enumerate(lost):
        is_first = index == 0 or step <= lost[index - 1]  # of those that one crash lost
        if is_first and step > 0:
            words = f"went on from step {step - 1}: later steps were lost with a process, and done again"
            marks.append((step - 1, words))
    return tuple(sorted(marks))


def _json_lines(path: Path) -> list[dict[str, Any] | None]:
    """None for each line that is no object; nothing if there is no file."""
    if not path.is_file():
        return []
    return [_parsed(line) for line in path.read_bytes().splitlines()]


def _json_object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    return _parsed(path.read_bytes())


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
