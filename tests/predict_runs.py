"""A small run with a task of every kind that can be predicted, for tests: its rows and how it is trained. Not a test file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from glue_rows import cut_glue
from processes import run_jobs, write_json, zero_config

COLOURS, ANIMALS = ("red", "blue", "green", "black"), ("dog", "cat", "horse", "bird")
GLUE = {"cola": {}, "stsb": {}, "rte": {}, "mrpc": {"head": "san"}}
CONTEXT = "In 1905 the old harbour of Varna was closed, and the ships went to Burgas for eleven years."


def write_rows(folder: Path) -> dict[str, Any]:
    """Easy rows of tasks of the user's own, one of each kind."""
    both = [(colour, animal) for colour in COLOURS for animal in ANIMALS]
    tags = "\n\n".join(f"a\tO\n{colour}\tB-colour\nunbelievable\tI-colour\n{animal}\tO" for colour, animal in both)
    (folder / "tags.conll").write_text(tags + "\n")
    rows: dict[str, list[dict[str, Any]]] = {
        "choice": [
            {"a": "which is a colour?", "c": [animal, colour, "seven"][: 2 + n % 2], "y": 1} for n, (colour, animal) in enumerate(both)
        ],
        "ranking": [
            {"a": f"query {n}", "c": word, "y": int(word == colour)} for n, (colour, animal) in enumerate(both) for word in (animal, colour)
        ],
        "similar": [{"a": colour, "b": (animal, colour)[n % 2], "y": n % 2} for n, (colour, animal) in enumerate(both)],
        "colours": [{"a": f"a {animal} and a {colour} hat", "y": COLOURS.index(colour)} for colour, animal in both],
    }
    for name, of_task in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_task))
    questions = [
        {"id": str(n), "question": f"What closed in year {n}?", "answers": [{"text": "harbour", "answer_start": CONTEXT.index("harbour")}]}
        for n in range(8)
    ]
    squad = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}
    (folder / "span.json").write_text(json.dumps(squad))

    def files(name: str) -> dict[str, str]:
        return {split: str(folder / name) for split in ("train", "dev")}

    one, two = {"text_columns": ["a"], "label_column": "y"}, {"text_columns": ["a", "b"], "label_column": "y"}
    return {
        "tags": {"kind": "token_classification", "files": files("tags.conll"), "labels": ["O", "B-colour", "I-colour"]},
        "choice": {"kind": "multiple_choice", "files": files("choice.jsonl"), **one, "choice_columns": ["c"]},
        "ranking": {"kind": "ranking", "files": files("ranking.jsonl"), **two, "text_columns": ["a", "c"], "labels": ["no", "yes"]},
        "similar": {"kind": "similarity", "files": files("similar.jsonl"), **two},
        "colours": {"kind": "classification", "files": files("colours.jsonl"), **one, "labels": list(COLOURS)},
        "span": {"kind": "span", "files": files("span.json"), "max_answer_tokens": 5, "null_threshold": 0.0},
        "words": {"kind": "masked_lm", "files": {"train": str(folder / "words.txt")}},
    }


def train_all_kinds(folder: Path, shared_data: Path, encoder: Path, *, steps: int = 12, **changes: Any) -> Path:
    """A run of GLUE tasks and of every other kind, on one rank; returns its folder."""
    glue = cut_glue(shared_data / "glue", folder / "glue", train_rows=40, dev_rows=32)
    (folder / "words.txt").write_text("The harbour was closed.\n\nThe ships went on for many years.\n")
    recipe = {
        "encoder": {"path": str(encoder), "max_length": 48},
        "tasks": {**GLUE, **write_rows(folder)},
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 33, "max_tokens_per_micro_batch": 1024},
        "optimizer": {"name": "torch_adamw", "lr": 3e-3},
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
