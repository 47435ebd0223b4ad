"""data.drop_leaked_rows in a run: training rows that are left out said, a task that keeps none refused.

How they are found is in data/cache/leaked_rows.py; data/examples/table.py leaves them out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.data.cache.leaked_rows import LeakedRows, leaked_rows
from mtdnn_ds.data.cache.prepared_split import PreparedSplit
from mtdnn_ds.faults.heartbeat import announce

SETTING = "data.drop_leaked_rows"

log = logging.getLogger(__name__)


def find_leaks(prepared: Mapping[str, Mapping[str, PreparedSplit]]) -> dict[str, LeakedRows]:
    """The rows to be left out of {task: {split: rows}}, said. Raises ConfigError if a task keeps none."""
    announce("looking for training rows in development and test splits")
    leaks = leaked_rows(prepared)
    for line in leak_lines(leaks) or [f"{SETTING}: no training row stands in a development or test split"]:
        log.info(line)
    _refuse_empty_tasks(leaks)
    return leaks


def leak_lines(leaks: Mapping[str, LeakedRows]) -> list[str]:
    """A sentence for each task that rows are left out of."""
    return [
        f"{task}: {len(found.rows):,} of {found.num_rows:,} training rows left out: "
        f"they stand in {_places(found)} ({SETTING})"
        for task, found in leaks.items()
    ]


def _refuse_empty_tasks(leaks: Mapping[str, LeakedRows]) -> None:
    """Raise ConfigError naming the tasks whose training rows are all left out."""
    problems = [
        f"tasks.{task}: all {found.num_rows:,} training rows stand in {_places(found)}, and {SETTING} leaves "
        "them out; give it other rows, or take the task out of 'tasks'"
        for task, found in leaks.items()
        if len(found.rows) == found.num_rows
    ]
    if problems:
        raise ConfigError(problems)


def no_examples(task: str) -> ConfigError:
    """Of a task whose rows that are left make no example."""
    return ConfigError(
        f"tasks.{task}: the training rows that {SETTING} leaves make no example; give it other rows, or take "
        "the task out of 'tasks'"
    )


def _places(found: LeakedRows) -> str:
    """stsb/dev; with counts where there are several: a row may stand in more than one."""
    if len(found.places) == 1:
        return next(iter(found.places))
    return ", ".join(f"{name} ({count:,})" for name, count in found.places.items())
