"""One small task of every kind, head and objective, for the runs on a fake GPU. Not a test file.

Rows of the kinds that predict_runs.py has come from there; here are their other heads and objectives, and the
kinds that it leaves out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.predict_runs import ANIMALS, COLOURS, CONTEXT, write_rows

OWN_KINDS = '''
"""Two kinds of a user's own: a bank's columns for each sequence, and a head of its own for each word."""

import numpy as np
from torch import nn

from mtdnn_ds import CustomKind


def loss(outputs, labels):
    return (outputs[:, 0] - labels) ** 2


def kind(name, **settings):
    return CustomKind(
        name=name,
        num_outputs=lambda spec: 1,
        parse_label=lambda cell, spec: float(cell),
        loss=loss,
        predict=lambda outputs: outputs[:, 0],
        metrics={"error": lambda predictions, labels: -float(np.abs(predictions - labels).mean())},
        **settings,
    )


KINDS = [kind("stars"), kind("lengths", reads="token", head=nn.Linear)]
'''


def write_tasks(folder: Path) -> dict[str, Any]:
    """Files in `folder`, and section `tasks` of a recipe that reads them; `own_kinds` is its plug-in."""
    (folder / "own_kinds.py").write_text(OWN_KINDS)
    (folder / "words.txt").write_text("The harbour was closed.\n\nThe ships went on for many years.\n")
    tasks = write_rows(folder)

    pairs = [(f"a {colour}", f"the {animal} is {colour}") for colour in COLOURS for animal in ANIMALS]
    rows = [{"a": a, "b": b, "y": number % 2} for number, (a, b) in enumerate(pairs)]
    words = [{"a": b.split(), "y": [len(word) for word in b.split()]} for _, b in pairs]
    _write_lines(folder / "pairs.jsonl", rows)
    _write_lines(folder / "lengths.jsonl", words)
    (folder / "documents.txt").write_text(
        "The harbour was closed.\nThe ships went on.\n\nThe hat was red.\nThe dog was not.\n"
    )
    (folder / "talk.json").write_text(json.dumps({"data": [_conversation(number) for number in range(4)]}))

    def files(name: str) -> dict[str, str]:
        return {split: str(folder / name) for split in ("train", "dev")}

    two = {"text_columns": ["a", "b"], "label_column": "y", "files": files("pairs.jsonl")}
    return {
        **tasks,
        "nli": {"kind": "classification", **two, "labels": ["no", "yes"], "head": "san"},
        "score": {"kind": "regression", **two},
        "pairwise": {**tasks["ranking"], "objective": "pairwise"},
        "contrastive": {**tasks["similar"], "objective": "contrastive"},
        "talk": {"kind": "conversational_span", "files": files("talk.json"), "max_answer_tokens": 5},
        "documents": {
            "kind": "masked_lm",
            "files": files("documents.txt"),
            "next_sentence": True,
        },
        "stars": {"kind": "stars", **two},
        "lengths": {
            "kind": "lengths",
            "files": files("lengths.jsonl"),
            "text_columns": ["a"],
            "label_column": "y",
        },
    }


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _conversation(number: int) -> dict[str, Any]:
    """Two turns in CoQA's layout: an answer in the text, and yes or no."""
    start = CONTEXT.index("harbour")
    span = {"span_start": start, "span_end": start + len("harbour"), "span_text": "harbour"}
    return {
        "id": str(number),
        "story": CONTEXT,
        "questions": [{"input_text": "What closed?"}, {"input_text": "Was it old?"}],
        "answers": [{**span, "input_text": "harbour"}, {**span, "input_text": ("yes", "no")[number % 2]}],
    }
