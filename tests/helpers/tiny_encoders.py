"""Tiny encoders with random weights, and changed tokenizers, as Hugging Face folders. Not a test file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def write_tiny_encoder(folder: Path, tokenizer_from: Path, **changes: object) -> Path:
    """A BERT of 2 layers of 32 hidden units with random weights and MiniLM's tokenizer, saved to `folder`."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, object] = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    BertModel(BertConfig(**{**sizes, **changes})).save_pretrained(folder)  # type: ignore[arg-type]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(tokenizer_from / name, folder / name)
    return folder


def keep_capitals(folder: Path) -> Path:
    """Make the tokenizer of an encoder folder another one: it no longer lowers capitals, and so cuts words
    otherwise.
    """
    for name, section, key in (
        ("tokenizer.json", "normalizer", "lowercase"),
        ("tokenizer_config.json", None, "do_lower_case"),
    ):
        settings = json.loads((folder / name).read_text())
        (settings if section is None else settings[section])[key] = False
        (folder / name).write_text(json.dumps(settings))
    return folder
