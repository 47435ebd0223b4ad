"""Every optimizer that runs without CUDA trains alike with and without ZeRO and offload; runs without dev
splits; DeepSpeed's own monitor; kernels that cannot be compiled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException
from helpers.glue_rows import cut_glue
from helpers.processes import lines, run_jobs, training_lines, write_json, zero_config
from torch import Tensor, nn

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.train.optimizer import build_optimizer, compiled_op


def offload(stage: int) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
    return {"zero_optimization": {**zero, "offload_param": {"device": "cpu"}} if stage == 3 else zero}


# name -> (optimizer, DeepSpeed JSON, name of the run it must equal)
RUNS: dict[str, tuple[str, dict[str, Any], str]] = {
    "adamw_zero0": ("adamw", zero_config(0), "adamw_zero0"),
    "adamw_zero2_offload": ("adamw", offload(2), "adamw_zero0"),
    "adamw_zero3_offload": ("adamw", offload(3), "adamw_zero0"),
    "adamax_zero0": ("adamax", zero_config(0), "adamax_zero0"),
    "adamax_zero1": ("adamax", zero_config(1), "adamax_zero0"),
    "adamax_zero2": ("adamax", zero_config(2), "adamax_zero0"),
    "adamax_zero3": ("adamax", zero_config(3), "adamax_zero0"),
    "adamax_zero2_offload": ("adamax", offload(2), "adamax_zero0"),
}
# One that takes 1 % of the weights in each step, so that a stage that decayed otherwise would show.
ADAMAX_DECAY = "10.0"


def job_of(folder: Path, name: str, optimizer: str, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "recipe": str(folder / "recipe.yaml"),
        "deepspeed_config": str(write_json(folder / f"{name}.json", config)),
        "output_dir": str(folder / name),
        "overrides": {
            "optimizer.name": optimizer,
            "optimizer.weight_decay": ADAMAX_DECAY if optimizer == "adamax" else "0.01",
        },
    }


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("optimizers")
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=60, dev_rows=8)
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 48},
        "tasks": ["stsb", "rte"],
        "batch": {"examples_per_step": 16, "max_tokens_per_micro_batch": 400},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 5, "dropout": "none"},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for file in glue.glob("*/dev.tsv"):
        (folder / "no_dev" / file.parent.name).mkdir(parents=True)
        (folder / "no_dev" / file.parent.name / "train.tsv").write_bytes(
            (file.parent / "train.tsv").read_bytes()
        )

    jobs = [job_of(folder, name, optimizer, config) for name, (optimizer, config, _) in RUNS.items()]
    csv = {
        **zero_config(1),
        "csv_monitor": {"enabled": True, "output_path": str(folder / "csv"), "job_name": "monitored"},
    }
    jobs.append(job_of(folder, "monitored", "adamw", csv))
    train_only = job_of(folder, "train_only", "adamw", zero_config(0))
    train_only["overrides"]["data.glue_dir"] = str(folder / "no_dev")
    jobs.append(train_only)
    (folder / "said.json").write_text(json.dumps(run_jobs(jobs, folder, 1)))
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("name", RUNS)
def test_every_optimizer_trains_as_pytorchs_own_without_zero(trained_runs: Path, name: str) -> None:
    check_equal(trained_runs / name, trained_runs / RUNS[name][2])


@pytest.mark.slow  # DeepSpeed builds it first, for a minute or two
@pytest.mark.distributed
def test_deepspeeds_adam_trains_as_pytorchs_own(trained_runs: Path) -> None:
    run_jobs(
        [job_of(trained_runs, "deepspeed_adamw_zero2", "deepspeed_adamw", zero_config(2))], trained_runs, 1
    )
    check_equal(trained_runs / "deepspeed_adamw_zero2", trained_runs / "adamw_zero0")


def check_equal(run: Path, reference: Path) -> None:
    ours, theirs = training_lines(run), training_lines(reference)
    assert len(ours) == 5
    for field in ("loss", "grad_norm"):
        expected = [line[field] for line in theirs]
        assert [line[field] for line in ours] == pytest.approx(expected, rel=1e-4), field


@pytest.mark.distributed
def test_optimizers_differ(trained_runs: Path) -> None:
    ours, theirs = (
        training_lines(trained_runs / name)[-1]["grad_norm"] for name in ("adamax_zero0", "adamw_zero0")
    )
    assert ours != pytest.approx(theirs, rel=1e-3)


@pytest.mark.distributed
def test_a_run_without_dev_splits_ends_well_and_says_so(trained_runs: Path) -> None:
    assert [line["step"] for line in lines(trained_runs / "train_only")] == [1, 2, 3, 4, 5]
    assert (
        "no task has a dev split: nothing is evaluated"
        in json.loads((trained_runs / "said.json").read_text())["train_only"]
    )
    assert (trained_runs / "train_only" / "checkpoints" / "step_5" / "manifest.json").is_file()


@pytest.mark.distributed
def test_deepspeeds_own_monitor_gets_every_scalar(trained_runs: Path) -> None:
    files = {path.name for path in (trained_runs / "csv" / "monitored").glob("*.csv")}
    assert {"loss.csv", "loss_rte.csv", "loss_stsb.csv", "grad_norm.csv", "eval_average.csv"} <= files
    written = [
        float(row.split(",")[1])
        for row in (trained_runs / "csv" / "monitored" / "loss.csv").read_text().splitlines()[1:]
    ]
    assert written == pytest.approx([line["loss"] for line in training_lines(trained_runs / "monitored")])


def adamax_reference(
    weights: np.ndarray, gradients: Sequence[np.ndarray], lrs: Sequence[float], decay: float
) -> np.ndarray:
    """Kingma and Ba 2015, algorithm 2, with w <- (1 - lr decay) w before each step."""
    mean, largest = np.zeros_like(weights), np.zeros_like(weights)
    for step, (gradient, lr) in enumerate(zip(gradients, lrs, strict=True), start=1):
        mean = 0.9 * mean + 0.1 * gradient
        largest = np.maximum(0.999 * largest, np.abs(gradient) + 1e-8)
        weights = weights * (1 - lr * decay) - lr / (1 - 0.9**step) * mean / largest
    return weights


def stepped_adamax(groups: list[dict[str, Any]], gradients: list[list[Tensor]], lrs: list[float]) -> None:
    """`gradients`: for each step, one for each parameter of the groups."""
    optimizer = build_optimizer("adamax", groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8, offloaded=False)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for of_step, lr in zip(gradients, lrs, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()


def test_adamax_decays_beside_the_gradient() -> None:
    draws = np.random.default_rng(3)
    weights, bias = draws.normal(size=(5, 4)), draws.normal(size=7)
    gradients = [(draws.normal(size=(5, 4)) * 1e-4, draws.normal(size=7) * 1e-4) for _ in range(6)]
    lrs = [0.01 * step for step in range(1, 7)]

    ours, plain = (nn.Parameter(torch.tensor(values)) for values in (weights, bias))
    groups = [{"params": [ours], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}]
    stepped_adamax(groups, [[torch.tensor(part) for part in of_step] for of_step in gradients], lrs)
    expected = adamax_reference(weights, [own for own, _ in gradients], lrs, 0.1)
    np.testing.assert_allclose(ours.detach(), expected, rtol=1e-12)
    np.testing.assert_allclose(
        plain.detach(), adamax_reference(bias, [own for _, own in gradients], lrs, 0.0), rtol=1e-12
    )


def test_adamax_without_gradients_only_decays() -> None:
    """torch's own Adamax takes steps as large as lr: 0.812 of the norm would be left."""
    lrs = [5e-5 * (1 - step / 300) for step in range(300)]
    weights = nn.Parameter(torch.full((100, 100), 0.04))
    before = float(weights.detach().double().norm())
    groups = [{"params": [weights], "weight_decay": 0.01}]
    stepped_adamax(groups, [[torch.zeros(100, 100)]] * 300, lrs)
    kept = math.prod(1 - lr * 0.01 for lr in lrs)
    assert kept == pytest.approx(0.999925, abs=1e-6)
    assert float(weights.detach().double().norm()) / before == pytest.approx(kept, abs=2e-6)


@pytest.mark.parametrize("error", [MissingCUDAException("CUDA_HOME"), CUDAMismatchException("12 and 13")])
def test_a_compiler_for_another_cuda_is_refused_with_what_to_do(error: Exception) -> None:
    def build() -> torch.optim.Optimizer:
        raise error

    with pytest.raises(ConfigError) as refused:
        compiled_op("deepspeed_adamw", build)
    assert refused.value.problems == (
        f"optimizer.name=deepspeed_adamw: DeepSpeed cannot compile its kernels here ({error}); "
        "set optimizer.name to adamw",
    )
