"""Tasks of questions, files in SQuAD's layout, and the examples made of them. Not a test file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec

CONTEXT = "Ada wrote the first program in 1843."


def task(settings: Mapping[str, Any], data: Mapping[str, Any] | None = None, name: str = "mine") -> TaskSpec:
    recipe = {
        "encoder": {"path": "x"},
        "train": {"steps": 1},
        "tasks": {name: dict(settings)},
        "data": dict(data or {}),
    }
    return resolve_tasks(Recipe.model_validate(recipe))[0]


def span_task(path: Path, **settings: Any) -> TaskSpec:
    return task({"kind": "span", "files": {"train": str(path)}, **settings})


def talk_task(path: Path, **settings: Any) -> TaskSpec:
    return task({"kind": "conversational_span", "files": {"train": str(path)}, **settings})


def made(spec: Any, encoder: Path, cache: Path, max_length: int, split: str = "train") -> Any:
    prepared = prepare([spec], tokenizer_path=str(encoder), cache_dir=str(cache), splits=[split])
    return make_examples(spec, prepared[spec.name][split], max_length=max_length)


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def squad(*questions: Any, context: Any = CONTEXT) -> dict[str, Any]:
    return {
        "version": "x",
        "data": [{"title": "Ada", "paragraphs": [{"context": context, "qas": list(questions)}]}],
    }
