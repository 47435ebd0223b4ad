"""Small files for a mixture of every kind of task, and the tasks that read them. Not a test file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.glue_rows import cut_glue


def write_mixture(data: Path, folder: Path) -> dict[str, Any]:
    """Cuts of the official files in `data`, written to `folder`; returns the tasks that read them."""
    glue = cut_glue(data / "glue", folder / "glue", train_rows=60, dev_rows=8)
    sentences = (data / "WNUT17" / "train.conll").read_text(encoding="utf-8").strip().split("\n\n")
    squad = json.loads((data / "SQuAD" / "dev-v1.1-partB.json").read_text(encoding="utf-8"))
    squad["data"] = [{**article, "paragraphs": article["paragraphs"][:2]} for article in squad["data"][:2]]
    article = json.loads((data / "wiki" / "articles.jsonl").read_text(encoding="utf-8").splitlines()[0])[
        "text"
    ]
    pairs = [
        line.split("\t")
        for line in (glue / "STS-B" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:41]
    ]
    choices = [
        {
            "context": pair[7],
            "choices": [pair[8], pairs[(n + 7) % 40][8], pairs[(n + 3) % 40][8]][: 2 + n % 2],
            "right": n % 2,
        }
        for n, pair in enumerate(pairs)
    ]
    for split, part in (("train", sentences[:40]), ("dev", sentences[40:50])):
        (folder / f"{split}.conll").write_text("\n\n".join(part) + "\n", encoding="utf-8")
    (folder / "squad.json").write_text(json.dumps(squad), encoding="utf-8")
    documents = article.split("\n\n")
    (folder / "text.jsonl").write_text(
        "".join(
            json.dumps({"text": text}) + "\n"
            for text in ("\n".join(documents[:9]), "\n".join(documents[9:18]))
        )
    )
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps({"a": p[7], "b": p[8], "score": float(p[9])}) + "\n" for p in pairs)
    )
    candidates = [  # one right and two or three wrong ones a query
        {"query": pair[7], "candidate": pairs[(n + step) % 40][8], "fits": "yes" if step == 0 else "no"}
        for n, pair in enumerate(pairs)
        for step in range(3 + n % 2)
    ]
    (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in candidates))
    ranking = {
        "kind": "ranking",
        "files": {split: str(folder / "candidates.jsonl") for split in ("train", "dev")},
        "text_columns": ["query", "candidate"],
        "label_column": "fits",
        "labels": ["no", "yes"],
    }
    labels = sorted(
        {line.split()[-1] for sentence in sentences for line in sentence.splitlines() if line.strip()} - {"O"}
    )
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
            "labels": ["O", *labels],
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
