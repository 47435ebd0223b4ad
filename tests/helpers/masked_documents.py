"""Documents for masked_lm: a corpus, its task and its examples. Not a test file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.data.examples.documents import DocumentExamples
from mtdnn_ds.tasks.spec import Source, TaskSpec

OPTIONS = {"masking": "whole_word", "mask_rate": 0.15, "next_sentence": False}
WORDS = [
    "unaffable",
    "gardeners",
    "photographed",
    "seventeen",
    "hummingbirds",
    "near",
    "the",
    "old",
    "lighthouse",
    "yesterday",
    "morning",
]


def spec_of(path: Path, **options: Any) -> TaskSpec:
    form = "text" if path.suffix == ".txt" else "jsonl"
    columns = () if form == "text" else ("text",)
    source = Source(
        format=form,  # type: ignore[arg-type]
        path=str(path),
        text_columns=columns,
        label_column=None,
    )
    return TaskSpec(
        name="text",
        kind="masked_lm",
        labels=(),
        metrics=("masked_accuracy",),
        splits={"train": source},
        options={**OPTIONS, **options},
    )


def examples_of(
    path: Path, minilm: Path, *, max_length: int = 32, seed: int = 0, **options: Any
) -> DocumentExamples:
    spec = spec_of(path, **options)
    split = prepare([spec], tokenizer_path=str(minilm), cache_dir=str(path.parent / "cache"))["text"]["train"]
    examples = make_examples(spec, split, max_length=max_length, seed=seed)
    assert isinstance(examples, DocumentExamples)
    return examples


def write_corpus(path: Path) -> Path:
    """40 documents of 1 to 9 sentences;
    sentence s of document d has words that name both, so that a text tells where it is from.
    """
    generator = np.random.default_rng(0)
    documents = []
    for document in range(40):
        lines = []
        for sentence in range(int(generator.integers(1, 10))):
            words = [
                WORDS[index] for index in generator.integers(0, len(WORDS), int(generator.integers(2, 20)))
            ]
            lines.append(f"{document} x {sentence} {' '.join(words)}.")
        documents.append("\n".join(lines))
    path.write_text("\n\n\n".join(documents) + "\n")
    return path
