"""`tasks`: a table of the built-in tasks, or of a recipe's, with the rows that are there. Reads no text and writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import islice

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mtdnn_ds.config.errors import ConfigError, UserError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.overrides import parse_text
from mtdnn_ds.config.recipe import DataSettings
from mtdnn_ds.config.schema import annotation_at, unknown_setting
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.resolve import builtin_task, resolve_tasks
from mtdnn_ds.tasks.spec import Source, TaskSpec

_FILE_WIDTH = 140  # columns, where no terminal says how wide it is
_MANY_ROWS = 10_000_000  # counting stops here: the table is for orientation


def run(*, recipe: str | None, overrides: Mapping[str, str]) -> int:
    """Print the table; returns the exit code. Without a recipe only data.* may be overridden, to say where files are."""
    problems: list[str] = []
    specs = resolve_tasks(load_recipe(recipe, overrides)) if recipe is not None else _builtin_specs(overrides, problems)
    table = Table(title="built-in tasks" if recipe is None else f"tasks of {recipe}", title_justify="left", box=SIMPLE)
    for heading in ("task", "kind", "labels", "metrics", "rows"):
        table.add_column(heading, no_wrap=heading in ("task", "kind"), overflow="fold")
    for spec in specs:
        table.add_row(spec.name, spec.kind, _labels(spec), ", ".join(spec.metrics), _rows(spec, problems))
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(table)
    for problem in problems:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    return 0


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
        if path[0] != "data":
            wrong.append(f"--{name}: has an effect with --recipe only; without it, data.glue_dir and other data.* settings have one")
        elif len(path) != 2 or annotation_at(path) is None:
            wrong.append(unknown_setting(path))
        else:
            values[path[1]] = parse_text(text, annotation_at(path))
    if wrong:
        raise ConfigError(wrong)
    return DataSettings.model_validate(values)


def _labels(spec: TaskSpec) -> str:
    return ", ".join(spec.labels) if spec.labels else "a number"


def _rows(spec: TaskSpec, problems: list[str]) -> str:
    remote = [split for split, source in spec.splits.items() if source.format == "hub"]
    counted = [f"{split} {_count(spec.name, source, problems)}" for split, source in spec.splits.items() if split not in remote]
    on_hub = [f"{', '.join(remote)} on the hub ({spec.splits[remote[0]].path})"] if remote else []
    return ", ".join([*counted, *on_hub])


def _count(task: str, source: Source, problems: list[str]) -> str:
    from mtdnn_ds.data.sources import iterate_rows

    try:
        rows = sum(1 for _ in islice(iterate_rows(source), _MANY_ROWS))
    except UserError as error:
        problems += [f"{task}: {problem}" for problem in error.problems]
        return "unreadable, see below"
    return f"{rows:,}{' or more' if rows == _MANY_ROWS else ''}"
