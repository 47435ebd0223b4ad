"""What is computed on: lengths like GLUE's, texts of such lengths, a BERT of any size as a folder, a recipe.

Everything is drawn from seeds; nothing is downloaded. Computes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mtdnn_ds.batch import PackedBatch
from mtdnn_ds.check.tiny_runs import OPTIMIZER
from mtdnn_ds.model.probe import batch_of_lengths

MEAN_TOKENS, MOST_TOKENS, FEWEST_TOKENS = 38, 128, 6
"""Of an example: about what GLUE's have at max_length 128."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Of a BERT."""

    vocabulary: int
    layers: int
    hidden: int
    heads: int
    intermediate: int


BERT_LARGE = Size(vocabulary=30_522, layers=24, hidden=1024, heads=16, intermediate=4096)
BERT_BASE = Size(vocabulary=30_522, layers=12, hidden=768, heads=12, intermediate=3072)
TINY = Size(vocabulary=300, layers=2, hidden=32, heads=4, intermediate=64)


def draw_lengths(number: int, seed: int) -> np.ndarray:
    """(number,) int64 lengths of examples in tokens: log-normal, within FEWEST_TOKENS and MOST_TOKENS.

    A median of 31.6 and a spread of 0.62 give a mean of MEAN_TOKENS after the cut.
    """
    drawn = np.random.default_rng(seed).lognormal(mean=np.log(31.6), sigma=0.62, size=number)
    return drawn.round().astype(np.int64).clip(FEWEST_TOKENS, MOST_TOKENS)


def lengths_of_tokens(num_tokens: int, seed: int) -> np.ndarray:
    """Ascending lengths of some `num_tokens` tokens together."""
    return np.sort(draw_lengths(max(1, num_tokens // MEAN_TOKENS), seed))


def glue_like_batch(num_tokens: int, seed: int) -> PackedBatch:
    """A micro-batch of such lengths; nothing is supervised."""
    return batch_of_lengths(lengths_of_tokens(num_tokens, seed))


def write_bert(folder: Path, size: Size) -> Path:
    """Config and tokenizer of a BERT without weights; every word of `words` is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, PreTrainedTokenizerFast

    names = (*SPECIAL, *words(size.vocabulary - len(SPECIAL)))
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    named = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)

    BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=512,
        pad_token_id=0,
    ).save_pretrained(folder)
    return folder


def words(number: int) -> list[str]:
    """Different words that no tokenizer's rules cut up."""
    return [f"w{index}" for index in range(number)]


def write_texts(path: Path, size: Size, number: int, seed: int, *, is_pair: bool, num_labels: int) -> Path:
    """Rows of one text or a pair, of GLUE-like lengths, with labels that mean nothing."""
    lengths = draw_lengths(number, seed)
    random = np.random.default_rng([seed, 1])
    names = np.array(words(size.vocabulary - len(SPECIAL)))
    rows = []
    for length in lengths.tolist():
        drawn = names[random.integers(0, len(names), size=length)].tolist()
        row: dict[str, Any] = {"a": " ".join(drawn[2:])}  # two tokens are special ones
        if is_pair:
            half = max(1, (length - 3) // 2)
            row = {"a": " ".join(drawn[3:][:half]), "b": " ".join(drawn[3:][half:] or drawn[:1])}
        rows.append({**row, "y": int(random.integers(num_labels))})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tasks(folder: Path, size: Size, rows: int) -> dict[str, Any]:
    """Files of three classifications, of a text and of pairs, and a regression; returns their settings."""
    kinds: dict[str, tuple[bool, int]] = {"single": (False, 2), "pairs": (True, 2), "three": (True, 3)}
    tasks: dict[str, Any] = {}
    for seed, (name, (is_pair, num_labels)) in enumerate(kinds.items()):
        path = folder / f"{name}.jsonl"
        write_texts(path, size, rows, seed, is_pair=is_pair, num_labels=num_labels)
        tasks[name] = {
            "kind": "classification",
            "files": {"train": str(path)},
            "text_columns": ["a", "b"] if is_pair else ["a"],
            "label_column": "y",
            "labels": [f"l{label}" for label in range(num_labels)],
        }
    scores = {"kind": "regression", "text_columns": ["a", "b"], "label_column": "y"}
    return {**tasks, "scores": {**scores, "files": tasks["three"]["files"]}}


def write_recipe(folder: Path, size: Size, *, rows: int, **sections: Any) -> Path:
    """A recipe of those tasks on such a BERT with random weights; `sections` are put over its own."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe: dict[str, Any] = {
        "encoder": {"path": str(write_bert(folder / "encoder", size)), "random_init": True},
        "tasks": write_tasks(folder, size, rows),
        "mixture": {"rates": "uniform"},
        "optimizer": {"name": OPTIMIZER, "lr": 1e-5},
        "train": {"steps": 1000},
        "data": {"cache_dir": str(folder / "cache")},
    }
    for name, values in sections.items():
        recipe[name] = {**recipe.get(name, {}), **values}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
