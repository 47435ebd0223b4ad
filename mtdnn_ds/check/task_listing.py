"""The tasks that are built in, or a recipe's, with what there is of each: labels, metrics, rows.

Prints nothing.

Rows are counted in the files themselves; no text is kept and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from mtdnn_ds.config.errors import ConfigError, UserError
from mtdnn_ds.config.overrides import parse_text
from mtdnn_ds.config.recipe import DataSettings
from mtdnn_ds.config.schema import annotation_at, unknown_setting
from mtdnn_ds.config.stages import Stage
from mtdnn_ds.data.sources.tables import iterate_rows
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.resolve import builtin_task
from mtdnn_ds.tasks.spec import Source, TaskSpec

MANY_ROWS = 10_000_000  # counting stops here: the listing is for orientation


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedTask:
    """One task as texts; `stages`: those of a recipe that train it."""

    name: str
    kind: str
    labels: str
    metrics: str
    rows: str
    stages: tuple[str, ...] = ()


def list_builtin_tasks(overrides: Mapping[str, str], problems: list[str]) -> list[ListedTask]:
    """The built-in tasks. `overrides`: data.* settings as raw text, which say where files are.

    Adds to `problems` what cannot be read. Raises ConfigError for settings that have no effect.
    """
    data = _data_settings(overrides)
    listed = []
    for name in BUILTIN_TASKS:
        try:
            spec = builtin_task(name, data)
        except ConfigError as error:
            problems += error.problems
            spec = builtin_task(name, DataSettings())
        listed.append(_listed(spec, problems))
    return listed


def list_recipe_tasks(
    stages: Sequence[tuple[Stage, Sequence[TaskSpec]]], problems: list[str]
) -> list[ListedTask]:
    """The tasks of all stages, each once; stages may differ in what the listing does not show.

    Adds to `problems` what cannot be read.
    """
    distinct: list[TaskSpec] = []
    for _, of_stage in stages:
        distinct += [spec for spec in of_stage if not _is_among(spec, distinct)]

    return [
        _listed(spec, problems, tuple(stage.name for stage, of_stage in stages if _is_among(spec, of_stage)))
        for spec in distinct
    ]


def _is_among(spec: TaskSpec, others: Sequence[TaskSpec]) -> bool:
    shown = (spec.name, spec.splits, spec.metrics, spec.labels)
    return any(shown == (other.name, other.splits, other.metrics, other.labels) for other in others)


def _data_settings(overrides: Mapping[str, str]) -> DataSettings:
    wrong = []
    values = {}
    for name, text in overrides.items():
        path = tuple(name.split("."))
        if path[0] != "data":
            wrong.append(
                f"--{name}: has an effect with --recipe only; without it, data.glue_dir and other data.* "
                "settings have one"
            )
        elif len(path) != 2 or annotation_at(path) is None:
            wrong.append(unknown_setting(path))
        else:
            values[path[1]] = parse_text(text, annotation_at(path))
    if wrong:
        raise ConfigError(wrong)
    return DataSettings.model_validate(values)


def _listed(spec: TaskSpec, problems: list[str], stages: tuple[str, ...] = ()) -> ListedTask:
    return ListedTask(
        name=spec.name,
        kind=spec.kind,
        labels=_labels(spec),
        metrics=", ".join(spec.metrics),
        rows=_rows(spec, problems),
        stages=stages,
    )


def _labels(spec: TaskSpec) -> str:
    if spec.labels:
        return ", ".join(spec.labels)
    if spec.custom is not None:
        return "as its kind reads them"
    return "a number" if spec.kind in ("regression", "similarity") else "-"


def _rows(spec: TaskSpec, problems: list[str]) -> str:
    remote = [split for split, source in spec.splits.items() if source.format == "hub"]
    parts = [
        f"{split} {_count(spec.name, source, problems)}"
        for split, source in spec.splits.items()
        if split not in remote
    ]
    if remote:
        parts.append(f"{', '.join(remote)} on the hub ({spec.splits[remote[0]].path})")
    return ", ".join(parts)


def _count(task: str, source: Source, problems: list[str]) -> str:
    try:
        rows = sum(1 for _ in islice(iterate_rows(source), MANY_ROWS))
    except UserError as error:
        problems += [f"{task}: {problem}" for problem in error.problems]
        return "unreadable, see below"
    return f"{rows:,} or more" if rows == MANY_ROWS else f"{rows:,}"
