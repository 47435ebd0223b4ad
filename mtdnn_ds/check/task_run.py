"""The run that check_task checks: the task, on the rows that it is given, beside a small classification.

Runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mtdnn_ds.check.tiny_encoder import write_tiny_encoder
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.messages import plain_problems
from mtdnn_ds.config.recipe import Recipe, TaskSettings
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import CustomKind, Format, Source, TaskSpec

TASK, NEIGHBOUR = "task", "neighbour"
FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}


def run_of_task(
    task: TaskSpec | Mapping[str, Any], rows_file: Path, folder: Path, encoder: str | Path | None
) -> tuple[Recipe, tuple[TaskSpec, ...]]:
    """A recipe of a small classification and the task, and their specs.

    Raises ConfigError if the task's settings are wrong.
    """
    text = rows_file.read_text(encoding="utf-8")
    values = {
        "encoder": _encoder_settings(encoder, folder, text),
        "tasks": {NEIGHBOUR: _neighbour_settings(folder, text)},
        "train": {"steps": 1, "dropout": "none"},
        "data": {"cache_dir": str(folder / "cache")},
    }
    if isinstance(task, TaskSpec):
        recipe = _validated(values)
        source = _source(task, rows_file)
        spec = replace(task, splits={"train": source, "dev": source})
        tasks = {**recipe.tasks, task.name: TaskSettings.model_validate({})}
        return recipe.model_copy(update={"tasks": tasks}), (*resolve_tasks(recipe), spec)

    settings: dict[str, Any] = {**task, "files": {"train": str(rows_file), "dev": str(rows_file)}}
    own_kinds: dict[str, CustomKind] = {}
    kind = settings.get("kind")
    if isinstance(kind, CustomKind):
        own_kinds[kind.name] = kind
        settings["kind"] = kind.name

    values["tasks"][TASK] = settings
    recipe = _validated(values)
    return recipe, resolve_tasks(recipe, own_kinds=own_kinds)


def _encoder_settings(encoder: str | Path | None, folder: Path, text: str) -> dict[str, Any]:
    """The given encoder, or a tiny random one that knows the words of `text`."""
    if encoder is not None:
        return {"path": str(encoder)}
    return {"path": str(write_tiny_encoder(folder / "encoder", [text])), "random_init": True}


def _neighbour_settings(folder: Path, text: str) -> dict[str, Any]:
    """A classification of one to three words of `text`, so that the task is not alone."""
    words = [word for word in text.split() if word.isalnum()][:3] or ["word"]
    lines = [json.dumps({"text": word, "label": f"l{index % 2}"}) for index, word in enumerate(words)]
    file = folder / "neighbour.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "kind": "classification",
        "files": {"train": str(file), "dev": str(file)},
        "text_columns": ["text"],
        "label_column": "label",
        "labels": ["l0", "l1"],
    }


def _validated(values: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(plain_problems(error, source="check_task", flags={})) from error


def _source(spec: TaskSpec, rows_file: Path) -> Source:
    """The rows, with the columns that the spec's own labelled rows have."""
    labelled = [
        source
        for source in spec.splits.values()
        if source.label_column is not None or not source.text_columns
    ]
    if not labelled:
        raise ConfigError(
            f"check_task: task {spec.name} has no split that says which columns its rows have; "
            "give settings instead"
        )

    form = FORMATS.get(rows_file.suffix, labelled[0].format)
    return replace(
        labelled[0],
        format=form,
        path=str(rows_file),
        config=None,
        split=None,
        header=True,
        quoted=form == "csv",
    )
