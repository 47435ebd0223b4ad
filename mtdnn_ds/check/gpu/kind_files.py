"""A few easy rows of tasks of every kind, written to a folder, for part kinds. Trains nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mtdnn_ds.config.shipped import shipped_file

COLOURS, ANIMALS = ("red", "blue", "green", "black"), ("dog", "cat", "horse", "bird")
GRADES = ("poor", "fair", "good", "excellent")
CONTEXT = "In 1905 the old harbour of Varna was closed, and the ships went to Burgas for eleven years."
OWN_KIND = "recipes/own_kind/ordinal.py"

_BOTH = tuple((colour, animal) for colour in COLOURS for animal in ANIMALS)


def write_kinds(folder: Path) -> dict[str, Any]:
    """Settings of the tasks, and a recipe's `plugins`; their files are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = _tables()
    for name, rows in tables.items():
        write_lines(folder / f"{name}.jsonl", rows)
    (folder / "tags.conll").write_text(_tags())
    (folder / "text.txt").write_text("The harbour was closed.\n\nThe ships went on for many years.\n" * 8)
    (folder / "squad.json").write_text(json.dumps(_squad()))
    (folder / "coqa.json").write_text(json.dumps(_coqa()))
    return {"tasks": _tasks(folder), "plugins": [shipped_file(OWN_KIND)]}


def texts_of(folder: Path) -> list[str]:
    """All that the files say, for a tokenizer to be made of."""
    return [path.read_text() for path in sorted(folder.iterdir()) if path.is_file()]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _tables() -> dict[str, list[dict[str, Any]]]:
    pairs = [
        {"a": f"a {colour}", "b": f"the {animal} is {colour}", "y": number % 2}
        for number, (colour, animal) in enumerate(_BOTH)
    ]
    choices = [
        {"a": "which is a colour?", "c": [animal, colour, "seven"][: 2 + number % 2], "y": 1}
        for number, (colour, animal) in enumerate(_BOTH)
    ]
    candidates = [
        {"a": f"query {number}", "b": word, "y": int(word == colour)}
        for number, (colour, animal) in enumerate(_BOTH)
        for word in (animal, colour, f"{animal} and {animal}")
    ]
    grades = [
        {"a": f"a {animal} and a {colour} hat", "y": GRADES[COLOURS.index(colour)]}
        for colour, animal in _BOTH
    ]
    return {"pairs": pairs, "choices": choices, "candidates": candidates, "grades": grades}


def _tags() -> str:
    sentences = (f"a\tO\n{colour}\tB-colour\nunbelievable\tI-colour\n{animal}\tO" for colour, animal in _BOTH)
    return "\n\n".join(sentences) + "\n"


def _squad() -> dict[str, Any]:
    answer = {"text": "harbour", "answer_start": CONTEXT.index("harbour")}
    questions = [
        {"id": str(number), "question": f"What closed in year {number}?", "answers": [answer]}
        for number in range(8)
    ]
    paragraphs = [{"context": CONTEXT, "qas": questions}]
    return {"version": "1.1", "data": [{"title": "Varna", "paragraphs": paragraphs}]}


def _coqa() -> dict[str, Any]:
    start = CONTEXT.index("harbour")
    answer = {
        "span_start": start,
        "span_end": start + len("harbour"),
        "span_text": "harbour",
        "input_text": "harbour",
    }
    turns = range(1, 5)
    story = {
        "source": "mctest",
        "id": "varna",
        "filename": "varna",
        "story": CONTEXT,
        "questions": [{"input_text": f"What closed, {turn}?", "turn_id": turn} for turn in turns],
        "answers": [{**answer, "turn_id": turn} for turn in turns],
        "name": "varna",
    }
    return {"version": "1.0", "data": [story]}


def _tasks(folder: Path) -> dict[str, Any]:
    def of_file(kind: str, name: str, **settings: Any) -> dict[str, Any]:
        return {"kind": kind, "files": {"train": str(folder / name)}, **settings}

    one = {"text_columns": ["a"], "label_column": "y"}
    two = {"text_columns": ["a", "b"], "label_column": "y"}
    yes_no = {"labels": ["no", "yes"]}
    ranking = {**two, **yes_no}
    return {
        "classes": of_file("classification", "pairs.jsonl", **two, **yes_no),
        "answer_network": of_file("classification", "pairs.jsonl", **two, **yes_no, head="san"),
        "scores": of_file("regression", "pairs.jsonl", **two),
        "choices": of_file("multiple_choice", "choices.jsonl", **one, choice_columns=["c"]),
        "ranking": of_file("ranking", "candidates.jsonl", **ranking),
        "ordered": of_file("ranking", "candidates.jsonl", **ranking, objective="pairwise"),
        "tags": of_file("token_classification", "tags.conll", labels=["O", "B-colour", "I-colour"]),
        "span": of_file("span", "squad.json", max_answer_tokens=5),
        "talk": of_file("conversational_span", "coqa.json", max_answer_tokens=5),
        "words": of_file("masked_lm", "text.txt", next_sentence=True),
        "cosine": of_file("similarity", "pairs.jsonl", **two),
        "contrastive": of_file("similarity", "pairs.jsonl", **two, objective="contrastive"),
        "own": of_file("ordinal", "grades.jsonl", **one, labels=list(GRADES)),
    }
