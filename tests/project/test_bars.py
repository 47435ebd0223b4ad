"""Runs of minutes on real data, for `pytest -m bars`: GLUE on MiniLM, and BERT-large's memory."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from helpers.processes import ROOT, lines, run_command, training_lines, write_json

pytestmark = [pytest.mark.bars, pytest.mark.timeout(3600)]


def test_glue_tasks_learn_together(real_data: Path, tmp_path: Path) -> None:
    """The recipe's own seed. docs/recipes.md has what was seen."""
    arguments = [
        "launchers/train.py",
        "--recipe",
        "recipes/glue_small.yaml",
        "--data.glue_dir",
        str(real_data / "glue"),
    ]
    ended = run_command([*arguments, "--output_dir", str(tmp_path / "run")], OMP_NUM_THREADS="2")
    assert ended.returncode == 0, ended.stderr
    (metrics,) = [line["eval"] for line in lines(tmp_path / "run") if "eval" in line]
    assert metrics["sst2"]["accuracy"] >= 0.87
    assert metrics["qnli"]["accuracy"] >= 0.80
    assert metrics["stsb"]["pearson"] >= 0.84
    assert metrics["mrpc"]["accuracy"] >= 0.80
    assert metrics["cola"]["matthews"] >= 0.20
    assert metrics["rte"]["accuracy"] >= 0.62


def test_questions_of_squad_are_learnt_from_half_of_its_development_set(
    real_data: Path, tmp_path: Path
) -> None:
    """Trained on the articles of part B, scored on those of part A."""
    for name, part in (("train", "B"), ("dev", "A")):
        (tmp_path / f"{name}-v1.1.json").symlink_to(real_data / f"SQuAD/dev-v1.1-part{part}.json")
    arguments = [
        "launchers/train.py",
        "--recipe",
        "recipes/squad.yaml",
        "--data.squad_dir",
        str(tmp_path),
        "--encoder.max_length",
        "256",
    ]
    ended = run_command([*arguments, "--output_dir", str(tmp_path / "run")], OMP_NUM_THREADS="2")
    assert ended.returncode == 0, ended.stderr
    (metrics,) = [line["eval"]["squad"] for line in lines(tmp_path / "run") if "eval" in line]
    assert metrics["token_f1"] >= 0.40
    losses = [line["loss"] for line in training_lines(tmp_path / "run")]
    assert sum(losses[-100:]) < sum(losses[-300:-200])  # still falling


def test_named_entities_of_wnut17_are_found(real_data: Path, tmp_path: Path) -> None:
    arguments = [
        "launchers/train.py",
        "--recipe",
        "recipes/ner.yaml",
        "--data.wnut_dir",
        str(real_data / "WNUT17"),
    ]
    ended = run_command([*arguments, "--output_dir", str(tmp_path / "run")], OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    (evaluation,) = [line["eval"] for line in lines(tmp_path / "run") if "eval" in line]
    assert evaluation["wnut17"]["entity_f1"] >= 0.30


def test_bert_large_trains_in_bf16_under_zero2_within_12_gb(tmp_path: Path) -> None:
    config = write_json(
        tmp_path / "zero2_bf16.json", {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
    )
    # bf16 without hardware support computes a few GFLOP/s: the task with the fewest development rows keeps
    # the test short.
    recipe = yaml.safe_load((ROOT / "recipes/bert_large_smoke.yaml").read_text())
    recipe["tasks"] = {
        "support": yaml.safe_load((ROOT / "recipes/own_task.yaml").read_text())["tasks"]["support"]
    }
    recipe["batch"] = {"examples_per_step": 8, "max_tokens_per_micro_batch": 512}
    recipe["train"] = {"steps": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [
        "launchers/train.py",
        "--recipe",
        str(tmp_path / "recipe.yaml"),
        "--deepspeed_config",
        str(config),
    ]
    arguments += ["--output_dir", str(tmp_path / "run")]
    measured = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    ended = run_command(["-c", measured, *arguments], OMP_NUM_THREADS="2")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert [line["step"] for line in training_lines(tmp_path / "run")] == [1, 2]
    peak_gigabytes = int(re.findall(r"peak (\d+)", ended.stderr)[-1]) * 1024 / 1e9
    print(f"peak {peak_gigabytes:.2f} GB", file=sys.stderr)
    assert peak_gigabytes <= 12
