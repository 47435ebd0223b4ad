"""Small files for a mixture of every kind of task, and the tasks that read them. Not a test file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from helpers.glue_rows import cut_glue


def write_mixture(data: Path, folder: Path) -> dict[str, Any]:
    """Cuts of the official files in `data`, written to `folder`; returns the tasks that read them."""
    glue = cut_glue(data / "glue", folder / "glue", train_rows=60, dev_rows=8)
    labels = write_entities(data, folder)
    write_questions(data, folder)
    write_text(data, folder)

    rows = (glue / "STS-B" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:41]
    write_pairs([row.split("\t") for row in rows], folder)
    return tasks_of(folder, labels)


def write_entities(data: Path, folder: Path) -> list[str]:
    """Train and dev sentences; returns all labels of the official file, O first."""
    text = (data / "WNUT17" / "train.conll").read_text(encoding="utf-8")
    sentences = text.strip().split("\n\n")
    for split, part in (("train", sentences[:40]), ("dev", sentences[40:50])):
        (folder / f"{split}.conll").write_text("\n\n".join(part) + "\n", encoding="utf-8")

    labels = {line.split()[-1] for line in text.splitlines() if line.strip()}
    return ["O", *sorted(labels - {"O"})]


def write_questions(data: Path, folder: Path) -> None:
    squad = json.loads((data / "SQuAD" / "dev-v1.1-partB.json").read_text(encoding="utf-8"))
    squad["data"] = [{**article, "paragraphs": article["paragraphs"][:2]} for article in squad["data"][:2]]
    (folder / "squad.json").write_text(json.dumps(squad), encoding="utf-8")


def write_text(data: Path, folder: Path) -> None:
    """Two documents of nine paragraphs."""
    article = (data / "wiki" / "articles.jsonl").read_text(encoding="utf-8").splitlines()[0]
    paragraphs = json.loads(article)["text"].split("\n\n")
    documents = ("\n".join(paragraphs[:9]), "\n".join(paragraphs[9:18]))
    write_rows(folder / "text.jsonl", ({"text": document} for document in documents))


def write_pairs(pairs: list[list[str]], folder: Path) -> None:
    """Choices of two or three, scored pairs, and candidates: one right and two or three wrong a query."""

    def second(number: int) -> str:
        return pairs[number % 40][8]

    choices = []
    candidates = []
    for n, pair in enumerate(pairs):
        choice = {"context": pair[7], "choices": [pair[8], second(n + 7), second(n + 3)][: 2 + n % 2]}
        choices.append({**choice, "right": n % 2})
        for step in range(3 + n % 2):
            fits = "yes" if step == 0 else "no"
            candidates.append({"query": pair[7], "candidate": second(n + step), "fits": fits})

    write_rows(folder / "choices.jsonl", choices)
    write_rows(folder / "candidates.jsonl", candidates)
    scored = ({"a": pair[7], "b": pair[8], "score": float(pair[9])} for pair in pairs)
    write_rows(folder / "pairs.jsonl", scored)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tasks_of(folder: Path, labels: list[str]) -> dict[str, Any]:
    """Settings of all tasks; `labels` are those of the entities."""
    ranking = {
        "kind": "ranking",
        "files": {split: str(folder / "candidates.jsonl") for split in ("train", "dev")},
        "text_columns": ["query", "candidate"],
        "label_column": "fits",
        "labels": ["no", "yes"],
    }
    return {
        "cola": {},
        "stsb": {},
        "mnli": {"head": "san"},
        "rte": {"head": "san"},
        "ranked": ranking,
        "ordered": {**ranking, "objective": "pairwise"},
        "ner": {
            "kind": "token_classification",
            "files": {split: str(folder / f"{split}.conll") for split in ("train", "dev")},
            "labels": labels,
        },
        "questions": {
            "kind": "span",
            "files": {split: str(folder / "squad.json") for split in ("train", "dev")},
            "stride": 16,
        },
        "text": {
            "kind": "masked_lm",
            "files": {"train": str(folder / "text.jsonl")},
            "text_columns": ["text"],
            "next_sentence": True,
        },
        "choices": {
            "kind": "multiple_choice",
            "files": {split: str(folder / "choices.jsonl") for split in ("train", "dev")},
            "text_columns": ["context"],
            "choice_columns": ["choices"],
            "label_column": "right",
        },
        "embedded": {
            "kind": "similarity",
            "files": {split: str(folder / "pairs.jsonl") for split in ("train", "dev")},
            "text_columns": ["a", "b"],
            "label_column": "score",
            "score_range": [0, 5],
        },
    }
