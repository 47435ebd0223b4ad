"""Gradient norms of tasks: equal to the step's own norm where the step has one task, and no part of training.

Against a hand-written loop of eleven tasks: test_mixture.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from helpers.fake_gpu_tasks import write_tasks
from helpers.processes import ROOT, run_jobs, training_lines, write_json, zero_config

STEPS = 3
TASKS = ("colours", "score", "tags")
SPEED_AND_TIME = ("seconds", "tokens_per_second", "wait_fraction", "task_grad_norm")


@dataclass(frozen=True)
class Setting:
    """A run with dropout from the step's generator, so that a draw too much would change every later one."""

    name: str
    world_size: int
    stage: int
    precision: str = "fp32"
    max_tokens: int = 2048
    changes: tuple[tuple[str, str], ...] = ()


# Every stage on one rank and on two, each task against plain autograd: test_mixture.py.
QUICK = [
    Setting("ranks1_zero0_autocast", 1, 0, precision="autocast"),
    Setting("ranks2_zero2_bf16_tokens96", 2, 2, precision="bf16", max_tokens=96),
]
SLOW = [
    Setting("checkpointing", 1, 1, max_tokens=96, changes=(("encoder.gradient_checkpointing", "true"),)),
    Setting("counter", 2, 2, max_tokens=96, changes=(("train.dropout", "counter"),)),
    Setting("soft", 2, 1, max_tokens=96, changes=(("sharing.mode", "soft"),)),
    Setting("low_rank", 1, 2, max_tokens=96, changes=(("sharing.mode", "low_rank"),)),
    Setting("alone", 2, 2, max_tokens=96, changes=(("mixture.mixing", "per_micro_batch"),)),
]
WAYS = [*QUICK, *(pytest.param(setting, marks=pytest.mark.slow) for setting in SLOW)]
ROUNDING = {"fp32": 1e-4, "bf16": 2e-2, "autocast": 1e-4}
ONE_TASK_A_STEP = {"mixture.mixing": "per_step", "train.freeze": "pooler,heads"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task_gradients")
    tasks = write_tasks(folder)
    recipe = {
        "encoder": {"path": str(ROOT / "recipes/encoders/tiny"), "random_init": True, "max_length": 32},
        "tasks": {name: tasks[name] for name in TASKS},
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 12},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"warmup": 0},
        "train": {"steps": STEPS, "seed": 3, "save_every": STEPS},
        "data": {"cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def quick_runs(files: Path) -> Path:
    return train(files, QUICK)


@pytest.fixture(scope="module")
def slow_runs(files: Path) -> Path:
    return train(files, SLOW)


def train(folder: Path, settings: Sequence[Setting]) -> Path:
    """Each setting measured in every second step, not measured, and measured with one task a step."""
    for world_size in (1, 2):
        jobs = []
        for setting in settings:
            if setting.world_size != world_size:
                continue
            config = zero_config(setting.stage, setting.precision)
            given = {"batch.max_tokens_per_micro_batch": str(setting.max_tokens), **dict(setting.changes)}
            for name, changes in {
                "on": {"train.gradient_norms_every": "2"},
                "off": {},
                "single": {"train.gradient_norms_every": "1", **ONE_TASK_A_STEP},
            }.items():
                jobs.append(
                    {
                        "recipe": str(folder / "recipe.yaml"),
                        "deepspeed_config": str(write_json(folder / f"{setting.name}.json", config)),
                        "output_dir": str(folder / f"{setting.name}_{name}"),
                        "overrides": {**given, **changes},
                    }
                )
        run_jobs(jobs, folder, world_size)
    return folder


def runs_of(request: pytest.FixtureRequest, setting: Setting) -> Path:
    """The folder with them."""
    folder: Path = request.getfixturevalue("quick_runs" if setting in QUICK else "slow_runs")
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("setting", WAYS, ids=lambda setting: setting.name)
def test_a_run_that_measures_is_bit_for_bit_the_run_that_does_not(
    request: pytest.FixtureRequest, setting: Setting
) -> None:
    trained_runs = runs_of(request, setting)
    on, off = (training_lines(trained_runs / f"{setting.name}_{name}") for name in ("on", "off"))
    assert ["task_grad_norm" in line for line in on] == [False, True, False]
    assert not any("task_grad_norm" in line for line in off)
    for mine, theirs in zip(on, off, strict=True):
        assert {name: value for name, value in mine.items() if name not in SPEED_AND_TIME} == {
            name: value for name, value in theirs.items() if name not in SPEED_AND_TIME
        }

    ours, others = (weights(trained_runs / f"{setting.name}_{name}") for name in ("on", "off"))
    assert ours.keys() == others.keys() and len(ours) > 20
    assert all(torch.equal(ours[name], others[name]) for name in ours)


@pytest.mark.distributed
@pytest.mark.parametrize("setting", WAYS, ids=lambda setting: setting.name)
def test_the_only_task_of_a_step_has_the_steps_own_norm(
    request: pytest.FixtureRequest, setting: Setting
) -> None:
    """Pooler and heads are frozen, so the step's gradient is the encoder's: same masks, same examples."""
    lines = training_lines(runs_of(request, setting) / f"{setting.name}_single")
    assert len({task for line in lines for task in line["task_grad_norm"]}) > 1
    for line in lines:
        assert list(line["task_grad_norm"]) == list(line["task_examples"])
        (norm,) = line["task_grad_norm"].values()
        assert norm == pytest.approx(line["grad_norm"], rel=ROUNDING[setting.precision]), line["step"]


@pytest.mark.distributed
def test_fp16_norms_are_those_of_unscaled_gradients(files: Path) -> None:
    """Measured at the present loss scale and divided by it: null where that overflows, as the step does
    at first.
    """
    scaling = {"enabled": True, "initial_scale_power": 24, "hysteresis": 1, "loss_scale_window": 1000}
    config = {"zero_optimization": {"stage": 2}, "fp16": scaling}
    job = {
        "recipe": str(files / "recipe.yaml"),
        "deepspeed_config": str(write_json(files / "fp16.json", config)),
        "output_dir": str(files / "fp16"),
        "overrides": {"train.gradient_norms_every": "1", **ONE_TASK_A_STEP},
    }
    run_jobs([job], files, 1, worker="fp16_on_cpu.py")
    lines = training_lines(files / "fp16")
    assert [line["skipped"] > 0 for line in lines] == [True, False, False]
    for line in lines:
        (norm,) = line["task_grad_norm"].values()
        assert norm == (None if line["skipped"] else pytest.approx(line["grad_norm"], rel=2e-2))


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights at the run's end."""
    files = sorted((run / "checkpoints" / f"step_{STEPS}").rglob("*model_states.pt"))
    assert files
    return torch.load(files[0], weights_only=False, map_location="cpu")["module"]
