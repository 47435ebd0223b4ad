"""What happens in a step that goes wrong: fp16 overflow, a loss that is not finite; and ranks that hold
different tasks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.glue_rows import cut_glue
from helpers.processes import (
    ROOT,
    kill,
    run_command,
    run_jobs,
    run_ranks,
    start_ranks,
    training_lines,
    write_json,
    zero_config,
)
from helpers.warm import wait_for
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=60, dev_rows=8)
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 48},
        "tasks": ["cola", "mrpc"],
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 16, "max_tokens_per_micro_batch": 512},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 6, "dropout": "none"},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def job_of(run_files: Path, name: str, config: dict[str, Any], **overrides: str) -> dict[str, Any]:
    file = write_json(run_files / f"{name}.json", config)
    return {
        "recipe": str(run_files / "recipe.yaml"),
        "deepspeed_config": str(file),
        "output_dir": str(run_files / name),
        "overrides": overrides,
    }


@pytest.mark.distributed
def test_an_fp16_overflow_repeats_the_step_and_loses_nothing(run_files: Path) -> None:
    # 2^24 as the first scale overflows fp16 gradients for several attempts; hysteresis 1 halves the scale at
    # each of them.
    fp16 = {
        "zero_optimization": {"stage": 2},
        "fp16": {"enabled": True, "initial_scale_power": 24, "hysteresis": 1, "loss_scale_window": 1000},
    }
    write_json(run_files / "fp16_jobs.json", [job_of(run_files, "fp16", fp16)])  # type: ignore[arg-type]
    output = run_ranks([str(ROOT / "tests/workers/fp16_on_cpu.py"), str(run_files / "fp16_jobs.json")], 1)
    run_jobs([job_of(run_files, "fp32", zero_config(2))], run_files, 1)
    ours, fp32 = training_lines(run_files / "fp16"), training_lines(run_files / "fp32")
    skipped = [line["skipped"] for line in ours]
    assert skipped[0] >= 2
    assert sum(skipped) == output.count("gradients overflowed in fp16")
    assert (
        "step 1: gradients overflowed in fp16 at loss scale 1.67772e+07; repeating its examples at "
        "8.38861e+06" in output
    )
    assert ours[0]["loss_scale"] == 2.0 ** (24 - skipped[0])
    for field in ("step", "lr", "task_examples", "tokens"):
        assert [line[field] for line in ours] == [line[field] for line in fp32]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in fp32], rel=5e-3)
    assert [line["grad_norm"] for line in ours] == pytest.approx(
        [line["grad_norm"] for line in fp32], rel=5e-2
    )


@pytest.mark.distributed
def test_a_loss_that_is_not_finite_stops_with_step_task_and_examples(run_files: Path) -> None:
    job = job_of(run_files, "nan", zero_config(2))
    arguments = [
        "-m",
        "mtdnn_ds",
        "train",
        "--recipe",
        job["recipe"],
        "--deepspeed_config",
        job["deepspeed_config"],
        "--output_dir",
        job["output_dir"],
    ]
    ended = run_command([*arguments, "--optimizer.lr", "1e30", "--schedule.warmup", "0"])
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "error: step 2: the loss of cola, mrpc is not finite; examples: cola " in ended.stderr
    assert (
        "CoLA/train.tsv row " in ended.stderr
        and "and 8 more; the weights are unchanged by this step; lower optimizer.lr" in ended.stderr
    )
    assert [line["step"] for line in training_lines(Path(job["output_dir"]))] == [1]


STAGES = (1, 2, 3)


@pytest.fixture(scope="module")
def split_tasks(run_files: Path) -> Path:
    """One micro-batch of each task: on two ranks, each rank then holds one task alone.

    The same steps on one rank, all tasks together.
    """
    apart = {"mixture.mixing": "per_micro_batch", "batch.max_tokens_per_micro_batch": "4096"}
    run_jobs(
        [job_of(run_files, f"apart{stage}", zero_config(stage), **apart) for stage in STAGES], run_files, 2
    )
    run_jobs(
        [job_of(run_files, "together", zero_config(0), **{"batch.max_tokens_per_micro_batch": "4096"})],
        run_files,
        1,
    )
    return run_files


def test_each_rank_holds_one_task_alone(split_tasks: Path) -> None:
    from mtdnn_ds.config.load import load_recipe
    from mtdnn_ds.data.batches.loader import example_lengths
    from mtdnn_ds.data.batches.packing import pack
    from mtdnn_ds.runs.setup import build_plan, prepare_run_data
    from mtdnn_ds.tasks.resolve import resolve_tasks

    recipe = load_recipe(str(split_tasks / "recipe.yaml"), {})
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    plan = build_plan(recipe, data)
    lengths = [examples.lengths for examples in data.train_sets]
    for step in range(1, 7):
        examples = plan.step(step)
        packing = pack(
            example_lengths(examples.task_ids, examples.rows, lengths),
            examples.task_ids,
            world_size=2,
            max_tokens=4096,
            hidden_size=32,
            one_task_per_micro_batch=True,
        )
        held = [
            set(np.concatenate([examples.task_ids[members] for members in rank]).tolist())
            for rank in packing.micro_batches
        ]
        assert sorted(map(sorted, held)) == [[0], [1]]


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
def test_ranks_with_different_tasks_train_as_one_process(split_tasks: Path, stage: int) -> None:
    ours, theirs = split_tasks / f"apart{stage}", split_tasks / "together"
    for field in ("loss", "grad_norm"):
        assert [line[field] for line in training_lines(ours)] == pytest.approx(
            [line[field] for line in training_lines(theirs)], rel=1e-5
        )
    our_weights, their_weights = (load_file(run / "best/average/model.safetensors") for run in (ours, theirs))
    assert our_weights.keys() == their_weights.keys()
    for name, weight in their_weights.items():
        # AdamW divides by the root of tiny second moments, which blows rounding up to a fraction of the
        # learning rate (1e-3).
        torch.testing.assert_close(
            our_weights[name], weight, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.distributed
def test_the_environment_is_recorded(split_tasks: Path) -> None:
    environment = json.loads((split_tasks / "together" / "environment.json").read_text())
    assert environment["topology"] == {"world_size": 1, "zero_stage": 0, "precision": "fp32"}
    assert environment["packages"]["deepspeed"] == "0.19.8"


@pytest.mark.distributed
def test_bad_data_ends_every_rank_with_one_message(run_files: Path) -> None:
    (run_files / "rows.jsonl").write_text(
        '{"text": "good", "label": "yes"}\n{"text": "bad", "label": "yess"}\n'
    )
    task = {
        "kind": "classification",
        "files": {"train": str(run_files / "rows.jsonl")},
        "text_columns": ["text"],
        "label_column": "label",
        "labels": ["no", "yes"],
    }
    recipe = {**yaml.safe_load((run_files / "recipe.yaml").read_text()), "tasks": {"mine": task}}
    (run_files / "bad.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [
        "launchers/train.py",
        "--recipe",
        str(run_files / "bad.yaml"),
        "--output_dir",
        str(run_files / "bad"),
        "--deepspeed_config",
        "ds_configs/zero2_fp32.json",
    ]
    ranks = start_ranks(arguments, 2)
    try:
        wait_for([rank.process for rank in ranks])
        codes = [rank.process.poll() for rank in ranks]
        said = [rank.said() for rank in ranks]
    finally:
        kill(ranks)
    assert codes == [2, 2], said
    assert "rows.jsonl" in said[0] and "line 2" in said[0] and "did you mean 'yes'?" in said[0]
    assert "error" not in said[1]
    assert not (run_files / "bad").exists()
