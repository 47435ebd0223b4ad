"""SAN, a kind with a head of the user's own and one that labels words, in real runs beside linear heads:
ranks and ZeRO stages agree.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.glue_rows import cut_glue
from helpers.processes import ROOT, lines, run_command, run_jobs, training_lines, write_json, zero_config

ORDINAL = "recipes/own_kind/ordinal.py"
WORD_LENGTHS = """
from mtdnn_ds import CustomKind

KIND = CustomKind(
    name="lengths",
    reads="token",
    num_outputs=lambda spec: 1,
    parse_label=lambda cell, spec: float(cell),
    loss=lambda outputs, labels: (outputs[:, 0] - labels) ** 2,
    predict=lambda outputs: outputs[:, 0],
    metrics={"closeness": lambda predictions, labels: -abs(predictions - labels).mean()},
)
"""


@dataclass(frozen=True)
class Runs:
    folder: Path
    plugins: list[str]


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Runs:
    """One rank without ZeRO; two ranks under ZeRO 3 in small micro-batches; two ranks, ZeRO 3, bf16, with
    dropout.
    """
    folder = tmp_path_factory.mktemp("head_runs")
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=40, dev_rows=12)
    (folder / "lengths.py").write_text(WORD_LENGTHS)
    sentences = [
        line.split(",")[0].split()
        for line in (ROOT / "recipes/own_kind/train.csv").read_text().splitlines()[1:]
    ]
    rows = [{"words": words, "sizes": [len(word) for word in words]} for words in sentences]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {"kind": "lengths", "text_columns": ["words"], "label_column": "sizes"}
    plugins = [ORDINAL, str(folder / "lengths.py")]
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 64},
        "plugins": plugins,
        "tasks": {
            "mnli": {"head": "san"},
            "rte": {"head": "san"},
            "cola": {},
            "reviews": yaml.safe_load((ROOT / "recipes/own_kind.yaml").read_text())["tasks"]["reviews"],
            "sizes": {**words, "files": dict.fromkeys(("train", "dev"), str(folder / "words.jsonl"))},
        },
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 16, "max_tokens_per_micro_batch": 4096},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 4, "dropout": "none"},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))

    def job(name: str, stage: int, precision: str = "fp32", **overrides: str) -> dict[str, Any]:
        config = write_json(folder / f"{name}.json", zero_config(stage, precision))
        common = {
            "recipe": str(folder / "recipe.yaml"),
            "deepspeed_config": str(config),
            "output_dir": str(folder / name),
        }
        return {**common, "overrides": overrides}

    run_jobs([job("one", 0)], folder, 1)
    small = {"batch.max_tokens_per_micro_batch": "128"}
    with_dropout = {"train.dropout": "model", "tasks": "rte,reviews", "train.steps": "2"}
    run_jobs([job("sharded", 3, **small), job("half", 3, "bf16", **with_dropout)], folder, 2)
    return Runs(folder, plugins)


@pytest.mark.distributed
def test_losses_and_gradients_are_those_of_one_rank(trained_runs: Runs) -> None:
    one, sharded = (training_lines(trained_runs.folder / name) for name in ("one", "sharded"))
    assert {line["micro_batches"] for line in one} == {1} and max(
        line["micro_batches"] for line in sharded
    ) > 1
    for ours, theirs in zip(sharded, one, strict=True):
        assert [ours["loss"], ours["grad_norm"]] == pytest.approx(
            [theirs["loss"], theirs["grad_norm"]], rel=1e-4
        )
        assert ours["task_loss"] == pytest.approx(theirs["task_loss"], rel=1e-4)


@pytest.mark.distributed
def test_bf16_with_dropout_trains(trained_runs: Runs) -> None:
    assert all(
        math.isfinite(line["loss"]) and line["grad_norm"] > 0
        for line in training_lines(trained_runs.folder / "half")
    )


@pytest.mark.distributed
def test_a_run_is_evaluated_from_its_folder(trained_runs: Runs) -> None:
    evaluation = next(line["eval"] for line in lines(trained_runs.folder / "sharded") if "eval" in line)
    assert {task: list(metrics) for task, metrics in evaluation.items()} == {
        "mnli": ["accuracy", "accuracy_mm"],
        "rte": ["accuracy"],
        "cola": ["matthews"],
        "reviews": ["accuracy", "within_one"],
        "sizes": ["closeness"],
    }
    kept = yaml.safe_load((trained_runs.folder / "sharded" / "recipe.yaml").read_text())["plugins"]
    assert kept == trained_runs.plugins, "as they were given"
    again = run_command(["-m", "mtdnn_ds", "evaluate", str(trained_runs.folder / "sharded")])
    assert again.returncode == 0, again.stderr
    for value in np.concatenate([list(metrics.values()) for metrics in evaluation.values()]):
        assert f"{value:.4f}" in again.stdout
