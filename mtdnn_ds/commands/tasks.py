"""`tasks`: a table of the built-in tasks, or of a recipe's, with the rows that are there. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from mtdnn_ds.check.task_listing import ListedTask
    from mtdnn_ds.tasks.spec import CustomKind


def run(*, recipe: str | None, overrides: Mapping[str, str]) -> int:
    """Print the table; returns the exit code.

    Without a recipe only data.* may be overridden, to say where files are, and plugins.
    """
    from mtdnn_ds.check.task_listing import list_recipe_tasks
    from mtdnn_ds.monitor.console import print_table
    from mtdnn_ds.tasks.saved_datasets import choices_made
    from mtdnn_ds.train.preflight.checks import checked_tasks

    if recipe is None:
        return _show_builtin(overrides)

    problems: list[str] = []
    stages = checked_tasks(recipe, overrides)
    listed = list_recipe_tasks(stages, problems)
    is_staged = any(stage.name for stage, _ in stages)
    print_table(_tasks_table(f"tasks of {recipe}", listed, is_staged=is_staged))

    choices = [line for stage, specs in stages for line in choices_made(stage.recipe, specs)]
    for line in (*dict.fromkeys(choices), *problems):
        print(line)
    return 0


def _show_builtin(overrides: Mapping[str, str]) -> int:
    from mtdnn_ds.check.task_listing import list_builtin_tasks
    from mtdnn_ds.config.overrides import parse_text
    from mtdnn_ds.monitor.console import print_table
    from mtdnn_ds.tasks.plugins import load_plugins

    kinds: Mapping[str, CustomKind] = {}
    if "plugins" in overrides:
        kinds = load_plugins(parse_text(overrides["plugins"], list[str]))
    settings = {name: text for name, text in overrides.items() if name != "plugins"}

    problems: list[str] = []
    print_table(_tasks_table("built-in tasks", list_builtin_tasks(settings, problems), is_staged=False))
    if kinds:
        print_table(_kinds_table(kinds))
    for problem in problems:
        print(problem)
    return 0


def _tasks_table(title: str, tasks: Sequence[ListedTask], *, is_staged: bool) -> Table:
    headings = ["task", "kind", "labels", "metrics", "rows"]
    if is_staged:
        headings.append("stages")
    table = _new_table(title, headings, whole=("task", "kind"))

    for task in tasks:
        cells = [task.name, task.kind, task.labels, task.metrics, task.rows]
        if is_staged:
            cells.append(", ".join(task.stages))
        table.add_row(*cells)
    return table


def _kinds_table(kinds: Mapping[str, CustomKind]) -> Table:
    headings = ["kind", "reads", "head", "label names", "metrics"]
    table = _new_table("kinds of your own", headings, whole=("kind",))
    for name, kind in kinds.items():
        head = "linear" if kind.head is None else "its own"
        names = "listed by the task" if kind.has_labels else "none"
        table.add_row(name, kind.reads, head, names, ", ".join(kind.metrics))
    return table


def _new_table(title: str, headings: Sequence[str], *, whole: Sequence[str]) -> Table:
    """An empty table; words of the columns `whole` are never cut."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in whole, overflow="fold")
    return table
