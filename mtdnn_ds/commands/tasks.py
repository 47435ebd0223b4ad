"""`tasks`: a table of the built-in tasks, or of a recipe's, with the rows that are there. Reads no text and writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mtdnn_ds.config.errors import ConfigError, UserError
from mtdnn_ds.config.overrides import parse_text
from mtdnn_ds.config.recipe import DataSettings
from mtdnn_ds.config.schema import annotation_at, unknown_setting
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.plugins import load_plugins
from mtdnn_ds.tasks.resolve import builtin_task
from mtdnn_ds.tasks.saved_datasets import choices_made
from mtdnn_ds.tasks.spec import CustomKind, Source, TaskSpec
from mtdnn_ds.train.preflight.checks import checked_tasks

_FILE_WIDTH = 160  # columns, where no terminal says how wide it is
_MANY_ROWS = 10_000_000  # counting stops here: the table is for orientation


def run(*, recipe: str | None, overrides: Mapping[str, str]) -> int:
    """Print the table; returns the exit code. Without a recipe only data.* may be overridden, to say where files are, and plugins."""
    problems: list[str] = []
    own_kinds = (
        load_plugins(parse_text(overrides["plugins"], list[str]))
        if recipe is None and "plugins" in overrides
        else {}
    )
    stages = checked_tasks(recipe, overrides) if recipe is not None else ()
    staged = any(stage.name for stage, _ in stages)
    specs = (
        _distinct(of_stage for _, of_stage in stages)
        if recipe is not None
        else _builtin_specs(overrides, problems)
    )
    table = Table(
        title="built-in tasks" if recipe is None else f"tasks of {recipe}", title_justify="left", box=SIMPLE
    )
    for heading in ("task", "kind", "labels", "metrics", "rows", *(("stages",) if staged else ())):
        table.add_column(heading, no_wrap=heading in ("task", "kind"), overflow="fold")
    for spec in specs:
        own = [stage.name for stage, of_stage in stages if any(_same_rows(spec, other) for other in of_stage)]
        table.add_row(
            spec.name,
            spec.kind,
            _labels(spec),
            ", ".join(spec.metrics),
            _rows(spec, problems),
            *([", ".join(own)] if staged else []),
        )
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(table)
    for line in dict.fromkeys(
        line for stage, of_stage in stages for line in choices_made(stage.recipe, of_stage)
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if own_kinds:
        console.print(_kinds_table(own_kinds))
    for problem in problems:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    return 0


def _distinct(of_stages: Iterable[Sequence[TaskSpec]]) -> list[TaskSpec]:
    """Tasks of all stages, each once; stages may differ in what the table does not show."""
    specs: list[TaskSpec] = []
    for spec in (spec for of_stage in of_stages for spec in of_stage):
        if not any(_same_rows(spec, other) for other in specs):
            specs.append(spec)
    return specs


def _same_rows(spec: TaskSpec, other: TaskSpec) -> bool:
    return (spec.name, spec.splits, spec.metrics, spec.labels) == (
        other.name,
        other.splits,
        other.metrics,
        other.labels,
    )


def _builtin_specs(overrides: Mapping[str, str], problems: list[str]) -> Sequence[TaskSpec]:
    data = _data_settings(overrides)
    specs = []
    for name in BUILTIN_TASKS:
        try:
            specs.append(builtin_task(name, data))
        except ConfigError as error:
            problems += error.problems
            specs.append(builtin_task(name, DataSettings()))
    return specs


def _data_settings(overrides: Mapping[str, str]) -> DataSettings:
    wrong = []
    values = {}
    for name, text in overrides.items():
        path = tuple(name.split("."))
        if name == "plugins":
            continue
        if path[0] != "data":
            wrong.append(
                f"--{name}: has an effect with --recipe only; without it, data.glue_dir and other data.* settings have one"
            )
        elif len(path) != 2 or annotation_at(path) is None:
            wrong.append(unknown_setting(path))
        else:
            values[path[1]] = parse_text(text, annotation_at(path))
    if wrong:
        raise ConfigError(wrong)
    return DataSettings.model_validate(values)


def _kinds_table(kinds: Mapping[str, CustomKind]) -> Table:
    table = Table(title="kinds of your own", title_justify="left", box=SIMPLE)
    for heading in ("kind", "reads", "head", "label names", "metrics"):
        table.add_column(heading, no_wrap=heading == "kind", overflow="fold")
    for name, kind in kinds.items():
        head, names = (
            "linear" if kind.head is None else "its own",
            "listed by the task" if kind.has_labels else "none",
        )
        table.add_row(name, kind.reads, head, names, ", ".join(kind.metrics))
    return table


def _labels(spec: TaskSpec) -> str:
    if spec.custom is not None and not spec.labels:
        return "as its kind reads them"
    return ", ".join(spec.labels) or ("a number" if spec.kind in ("regression", "similarity") else "-")


def _rows(spec: TaskSpec, problems: list[str]) -> str:
    remote = [split for split, source in spec.splits.items() if source.format == "hub"]
    counted = [
        f"{split} {_count(spec.name, source, problems)}"
        for split, source in spec.splits.items()
        if split not in remote
    ]
    on_hub = [f"{', '.join(remote)} on the hub ({spec.splits[remote[0]].path})"] if remote else []
    return ", ".join([*counted, *on_hub])


def _count(task: str, source: Source, problems: list[str]) -> str:
    from mtdnn_ds.data.sources.tables import iterate_rows

    try:
        rows = sum(1 for _ in islice(iterate_rows(source), _MANY_ROWS))
    except UserError as error:
        problems += [f"{task}: {problem}" for problem in error.problems]
        return "unreadable, see below"
    return f"{rows:,}{' or more' if rows == _MANY_ROWS else ''}"
