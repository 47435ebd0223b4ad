"""Soft and low-rank sharing in real runs: steps, resuming and evaluation are exact over ranks, token budgets and ZeRO stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from glue_rows import cut_glue, read_example
from processes import lines, run_jobs, training_lines, write_json, zero_config
from reference_loop import Example
from reference_sharing import Settings, Start, shared_training

STEPS = 4
TOLERANCE = 1e-4  # relative, fp32
EPS = 1e-4  # far above the rounding errors of small gradients, which Adam would turn into steps, and the penalty counts those
GROUPS = {"single": ["cola"], "pairs": ["mrpc", "rte"], "scores": ["stsb"]}
SHARING: dict[str, dict[str, Any]] = {
    "separate": {"mode": "soft", "penalty": 0.0, "groups": GROUPS},
    "soft": {"mode": "soft", "penalty": 200.0, "groups": GROUPS},
    "low_rank": {"mode": "low_rank", "penalty": 200.0, "rank": 4, "groups": GROUPS},
}
CLIP = {"separate": 0.0, "soft": 1.0, "low_rank": 1.0}


@dataclass(frozen=True)
class Setting:
    sharing: str
    world_size: int
    stage: int
    max_tokens: int = 2048

    @property
    def name(self) -> str:
        return f"{self.sharing}_ranks{self.world_size}_zero{self.stage}_tokens{self.max_tokens}"


SETTINGS = [
    Setting("separate", 1, 2),
    Setting("separate", 2, 3, max_tokens=128),
    *(Setting("soft", 1, stage) for stage in (0, 2, 3)),
    *(Setting("soft", 2, stage, max_tokens=2048 if stage % 2 else 128) for stage in range(4)),
    Setting("soft", 2, 3, max_tokens=128),
    Setting("low_rank", 1, 0),
    *(Setting("low_rank", 2, stage, max_tokens=128 if stage % 2 else 2048) for stage in range(4)),
]


@dataclass(frozen=True)
class Runs:
    folder: Path
    references: dict[str, list[tuple[float, float, float]]]


def all_partitioned(stage: int) -> dict[str, Any]:
    """ZeRO 3 with every parameter partitioned, also the small ones."""
    config = zero_config(stage)
    if stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shared_data: Path, tiny_encoder: Path) -> Runs:
    folder = tmp_path_factory.mktemp("sharing")
    glue = cut_glue(shared_data / "glue", folder / "glue", train_rows=100, dev_rows=8)
    for stage in range(4):
        write_json(folder / f"zero{stage}.json", all_partitioned(stage))
    for name, sharing in SHARING.items():
        recipe = {
            "encoder": {"path": str(tiny_encoder), "max_length": 64},
            "tasks": [task for tasks in GROUPS.values() for task in tasks],
            "sharing": sharing,
            "batch": {"examples_per_step": 16},
            "optimizer": {"name": "torch_adamw", "lr": 1e-3, "eps": EPS, "weight_decay": 0.05, "gradient_clipping": CLIP[name]},
            "schedule": {"name": "constant", "warmup": 0},
            "train": {"steps": STEPS, "dropout": "none", "seed": 5},
            "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    for world_size in (1, 2):
        jobs = [
            {
                "recipe": str(folder / f"{setting.sharing}.yaml"),
                "deepspeed_config": str(folder / f"zero{setting.stage}.json"),
                "output_dir": str(folder / setting.name),
                "overrides": {"batch.max_tokens_per_micro_batch": str(setting.max_tokens)},
            }
            for setting in SETTINGS
            if setting.world_size == world_size
        ]
        run_jobs(jobs, folder, world_size)
    return Runs(folder, {name: reference(folder, name, glue, tiny_encoder) for name in SHARING})


def reference(folder: Path, name: str, glue: Path, encoder: Path) -> list[tuple[float, float, float]]:
    """The plan says which rows make up each step, the model what heads and low-rank factors start from; the rest is in reference_sharing."""
    from mtdnn_ds.config.load import load_recipe
    from mtdnn_ds.tasks.resolve import resolve_tasks
    from mtdnn_ds.train.setup import build_plan, prepare_run_data, run_model

    recipe = load_recipe(str(folder / f"{name}.yaml"), {})
    data = prepare_run_data(recipe, resolve_tasks(recipe), lambda text: None)
    plan, names = build_plan(recipe, data), data.layout.task_names
    rows = [examples.split.source_rows for examples in data.train_sets]
    steps: list[list[Example]] = []
    for number in range(1, STEPS + 1):
        drawn = plan.step(number)
        steps.append([read_example(glue, names[task], int(rows[task][row])) for task, row in zip(drawn.task_ids, drawn.rows, strict=True)])
    model = run_model(recipe, data, device=torch.device("cpu"), compute_dtype=torch.float32)
    bank, factors = model.heads["sequence"], {}
    for parameter_name, values in model.named_parameters():
        if parameter_name.endswith(".delta.a"):
            linear = parameter_name.removeprefix("encoder.model.").removesuffix(".delta.a")
            factors[linear] = list(values.detach().split(SHARING[name]["rank"]))
    columns = [slice(term.first_column, term.first_column + term.num_outputs) for term in data.layout.terms]
    heads = {task: (bank.weight[own].detach(), bank.bias[own].detach()) for task, own in zip(names, columns, strict=True)}
    settings = Settings(
        groups=GROUPS, penalty=SHARING[name]["penalty"], lr=1e-3, eps=EPS, weight_decay=0.05, clip=CLIP[name], max_length=64
    )
    return shared_training(encoder, steps, Start(heads, factors), settings)


@pytest.mark.distributed
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_steps_equal_the_hand_written_loop(runs: Runs, setting: Setting) -> None:
    ours = training_lines(runs.folder / setting.name)
    theirs = runs.references[setting.sharing]
    assert [line["loss"] for line in ours] == pytest.approx([loss for loss, _, _ in theirs], rel=TOLERANCE)
    assert [line["penalty"] for line in ours] == pytest.approx([penalty for _, penalty, _ in theirs], rel=TOLERANCE, abs=1e-9)
    assert [line["grad_norm"] for line in ours] == pytest.approx([norm for _, _, norm in theirs], rel=TOLERANCE)
    assert len(ours) == STEPS and (setting.sharing == "separate" or ours[-1]["penalty"] > 1e-5)
