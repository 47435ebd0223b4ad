"""A small run with a task of every kind that can be predicted, for tests: its rows and how it is trained.

Not a test file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.glue_rows import cut_glue
from helpers.processes import run_jobs, write_json, zero_config
from mtdnn_ds import MultiTaskModel
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.runs.load import LoadedRun
from mtdnn_ds.runs.setup import RunData, loader_settings, run_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.spec import TaskSpec

COLOURS, ANIMALS = ("red", "blue", "green", "black"), ("dog", "cat", "horse", "bird")
GLUE = {"cola": {}, "stsb": {}, "rte": {}, "mrpc": {"head": "san"}}
CONTEXT = "In 1905 the old harbour of Varna was closed, and the ships went to Burgas for eleven years."


def write_rows(folder: Path) -> dict[str, Any]:
    """Easy rows of tasks of the user's own, one of each kind."""
    both = [(colour, animal) for colour in COLOURS for animal in ANIMALS]
    tags = "\n\n".join(
        f"a\tO\n{colour}\tB-colour\nunbelievable\tI-colour\n{animal}\tO" for colour, animal in both
    )
    (folder / "tags.conll").write_text(tags + "\n")
    rows: dict[str, list[dict[str, Any]]] = {
        "choice": [
            {"a": "which is a colour?", "c": [animal, colour, "seven"][: 2 + n % 2], "y": 1}
            for n, (colour, animal) in enumerate(both)
        ],
        "ranking": [
            {"a": f"query {n}", "c": word, "y": int(word == colour)}
            for n, (colour, animal) in enumerate(both)
            for word in (animal, colour)
        ],
        "similar": [
            {"a": colour, "b": (animal, colour)[n % 2], "y": n % 2} for n, (colour, animal) in enumerate(both)
        ],
        "colours": [
            {"a": f"a {animal} and a {colour} hat", "y": COLOURS.index(colour)} for colour, animal in both
        ],
    }
    for name, of_task in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_task))
    questions = [
        {
            "id": str(n),
            "question": f"What closed in year {n}?",
            "answers": [{"text": "harbour", "answer_start": CONTEXT.index("harbour")}],
        }
        for n in range(8)
    ]
    squad = {
        "version": "1.1",
        "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": questions}]}],
    }
    (folder / "span.json").write_text(json.dumps(squad))

    def files(name: str) -> dict[str, str]:
        return {split: str(folder / name) for split in ("train", "dev")}

    one, two = {"text_columns": ["a"], "label_column": "y"}, {"text_columns": ["a", "b"], "label_column": "y"}
    return {
        "tags": {
            "kind": "token_classification",
            "files": files("tags.conll"),
            "labels": ["O", "B-colour", "I-colour"],
        },
        "choice": {"kind": "multiple_choice", "files": files("choice.jsonl"), **one, "choice_columns": ["c"]},
        "ranking": {
            "kind": "ranking",
            "files": files("ranking.jsonl"),
            **two,
            "text_columns": ["a", "c"],
            "labels": ["no", "yes"],
        },
        "similar": {"kind": "similarity", "files": files("similar.jsonl"), **two},
        "colours": {
            "kind": "classification",
            "files": files("colours.jsonl"),
            **one,
            "labels": list(COLOURS),
        },
        "span": {"kind": "span", "files": files("span.json"), "max_answer_tokens": 5, "null_threshold": 0.0},
        "words": {"kind": "masked_lm", "files": {"train": str(folder / "words.txt")}},
    }


def train_all_kinds(
    folder: Path, official_files: Path, encoder: Path, *, steps: int = 12, **changes: Any
) -> Path:
    """A run of GLUE tasks and of every other kind, on one rank; returns its folder."""
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=40, dev_rows=32)
    (folder / "words.txt").write_text("The harbour was closed.\n\nThe ships went on for many years.\n")
    recipe = {
        "encoder": {"path": str(encoder), "max_length": 48},
        "tasks": {**GLUE, **write_rows(folder)},
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 33, "max_tokens_per_micro_batch": 1024},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "train": {"steps": steps, "eval_every": steps, "save_every": steps, "seed": 3},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    job = {
        "recipe": str(folder / "recipe.yaml"),
        "deepspeed_config": str(write_json(folder / "zero1.json", zero_config(1))),
        "output_dir": str(folder / "run"),
    }
    run_jobs([job], folder, 1)
    return folder / "run"


def drawn_apart(recipe: Recipe, specs: Sequence[TaskSpec], *, by: float) -> MultiTaskModel:
    """The recipe's untrained model, every weight moved by normal noise of that deviation: no two heads or
    copies are alike.
    """
    device, layout = torch.device("cpu"), head_layout(specs)
    net = run_model(
        recipe,
        RunData(specs=tuple(specs), layout=layout, examples={}),
        device=device,
        compute_dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    settings = loader_settings(
        recipe, hidden_size=net.encoder.hidden_size, rank=0, world_size=1, device=device
    )
    return MultiTaskModel(
        LoadedRun(
            recipe=recipe, specs=tuple(specs), layout=layout, model=net, settings=settings, device=device
        )
    )


def close(ours: Any, theirs: Any) -> None:
    """Asserts that two answers are the same but for float32's rounding."""
    if isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=2e-5)
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for name in ours:
            close(ours[name], theirs[name])
    elif isinstance(ours, list):
        for each, other in zip(ours, theirs, strict=True):
            close(each, other)
    else:
        assert ours == theirs
