"""Promises 1 and 2: a step's loss and gradient do not depend on ranks, micro-batches, ZeRO stage or which
rank holds which task.

Ten fp32 steps without dropout on the GLUE mixture, generated and real, against a hand-written single-process
float64 loop on padded BertModel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from helpers.glue_rows import COLUMNS, cut_glue, read_example
from helpers.processes import lines, run_jobs, training_lines, write_json, zero_config
from helpers.reference_loop import reference_training

STEPS = 10
TOLERANCE = 1e-4  # relative, fp32
RECIPE = {
    "tasks": list(COLUMNS),
    "mixture": {"rates": "temperature"},
    "batch": {"examples_per_step": 32, "max_tokens_per_micro_batch": 4096},
    "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "gradient_clipping": 1.0},
    "schedule": {"warmup": 3},
    "train": {"steps": STEPS, "dropout": "none", "seed": 5},
}


@dataclass(frozen=True)
class Setting:
    name: str
    world_size: int
    stage: int
    max_tokens: int = 4096
    mixing: str = "per_example"
    pad_tokens_to: int = 1


# On generated rows: each stage, one rank and two, each way of cutting a step. The real rows see SETTINGS.
QUICK = [
    Setting("ranks1_zero0", 1, 0),
    Setting("ranks1_zero2", 1, 2),
    Setting("ranks2_zero1", 2, 1),
    Setting("ranks2_zero3_tokens256", 2, 3, max_tokens=256),
    Setting("ranks1_zero2_tokens128", 1, 2, max_tokens=128),
    Setting("ranks2_zero3_one_task_per_micro_batch", 2, 3, max_tokens=512, mixing="per_micro_batch"),
    Setting("ranks2_zero2_filled_up_to_64", 2, 2, max_tokens=256, pad_tokens_to=64),
]
SETTINGS = [
    *QUICK,
    *(Setting(f"ranks1_zero{stage}", 1, stage) for stage in (1, 3)),
    *(Setting(f"ranks2_zero{stage}", 2, stage) for stage in (0, 2, 3)),
    *(Setting(f"ranks2_zero{stage}_tokens256", 2, stage, max_tokens=256) for stage in (0, 1, 2)),
    Setting("ranks1_zero2_tokens700", 1, 2, max_tokens=700),
]
EACH_SETTING = pytest.mark.parametrize(
    ("source", "setting"),
    [
        *(pytest.param("generated", setting, id=f"generated-{setting.name}") for setting in QUICK),
        *(
            pytest.param("real", setting, id=f"real-{setting.name}", marks=pytest.mark.data)
            for setting in SETTINGS
        ),
    ],
    indirect=["source"],
    scope="module",
)
EACH_SOURCE = pytest.mark.parametrize(
    "source", ["generated", pytest.param("real", marks=pytest.mark.data)], indirect=True, scope="module"
)


@dataclass(frozen=True)
class Runs:
    folder: Path
    reference: list[tuple[float, float]]


@dataclass(frozen=True)
class Source:
    glue: Path
    settings: list[Setting]


@pytest.fixture(scope="module")
def source(request: pytest.FixtureRequest) -> Source:
    """GLUE files, and what is trained on them."""
    is_real = request.param == "real"
    folder = request.getfixturevalue("real_data" if is_real else "official_files")
    return Source(folder / "glue", SETTINGS if is_real else QUICK)


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, source: Source, tiny_encoder: Path) -> Runs:
    folder = tmp_path_factory.mktemp("exactness")
    glue = cut_glue(source.glue, folder / "glue", train_rows=300, dev_rows=8)
    recipe = {
        **RECIPE,
        "encoder": {"path": str(tiny_encoder), "max_length": 96},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for stage in range(4):
        write_json(folder / f"zero{stage}.json", zero_config(stage))
    for world_size in (1, 2):
        jobs = [
            {
                "recipe": str(folder / "recipe.yaml"),
                "deepspeed_config": str(folder / f"zero{setting.stage}.json"),
                "output_dir": str(folder / setting.name),
                "overrides": {
                    "batch.max_tokens_per_micro_batch": str(setting.max_tokens),
                    "mixture.mixing": setting.mixing,
                    "batch.pad_tokens_to": str(setting.pad_tokens_to),
                },
            }
            for setting in source.settings
            if setting.world_size == world_size
        ]
        run_jobs(jobs, folder, world_size)
    return Runs(folder, _reference(folder, glue, tiny_encoder))


def _reference(folder: Path, glue: Path, encoder: Path) -> list[tuple[float, float]]:
    """The plan says which rows make up each step, the model what the heads start from; the rest is written
    out in reference_loop.
    """
    from mtdnn_ds.config.load import load_recipe
    from mtdnn_ds.runs.setup import build_plan, prepare_run_data, run_model
    from mtdnn_ds.tasks.resolve import resolve_tasks

    recipe = load_recipe(str(folder / "recipe.yaml"), {})
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    plan, names = build_plan(recipe, data), data.layout.task_names
    rows = [examples.split.source_rows for examples in data.train_sets]
    steps = []
    for number in range(1, STEPS + 1):
        examples = plan.step(number)
        steps.append(
            [
                read_example(glue, names[task], int(rows[task][row]))
                for task, row in zip(examples.task_ids, examples.rows, strict=True)
            ]
        )
    model = run_model(recipe, data, device=torch.device("cpu"), compute_dtype=torch.float32)
    bank = model.heads["sequence"]
    columns = [slice(term.first_column, term.first_column + term.num_outputs) for term in data.layout.terms]
    heads = {
        name: (bank.weight.detach()[own], bank.bias.detach()[own])
        for name, own in zip(names, columns, strict=True)
    }
    return reference_training(
        encoder,
        steps,
        heads,
        {"stsb"},
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
        clip=1.0,
        max_length=96,
        total_steps=STEPS,
        warmup_steps=3,
    )


@pytest.mark.distributed
@EACH_SETTING
def test_losses_and_gradients_equal_a_hand_written_padded_loop(trained_runs: Runs, setting: Setting) -> None:
    ours = training_lines(trained_runs.folder / setting.name)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for line, (loss, norm) in zip(ours, trained_runs.reference, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=TOLERANCE), f"step {line['step']}"
        assert line["grad_norm"] == pytest.approx(norm, rel=TOLERANCE), f"step {line['step']}"


@pytest.mark.distributed
@EACH_SOURCE
def test_settings_really_cut_steps_differently(trained_runs: Runs, source: Source) -> None:
    counts = {
        setting.name: {line["micro_batches"] for line in training_lines(trained_runs.folder / setting.name)}
        for setting in source.settings
    }
    assert counts["ranks1_zero2"] == {1}
    assert len(counts["ranks1_zero2_tokens128"]) > 1, (
        "the number of micro-batches should differ from step to step"
    )
    assert min(counts["ranks2_zero3_tokens256"]) >= 2
    assert all(
        line["padding_efficiency"] == 1.0 for line in training_lines(trained_runs.folder / "ranks2_zero1")
    )


@pytest.mark.distributed
@EACH_SETTING
def test_every_setting_evaluates_the_same(trained_runs: Runs, setting: Setting) -> None:
    """Every dev row is scored exactly once, whatever the number of ranks; equal models then get equal
    metrics.
    """
    ours, theirs = (
        [line for line in lines(trained_runs.folder / name) if "eval" in line]
        for name in (setting.name, SETTINGS[0].name)
    )
    assert [line["step"] for line in ours] == [STEPS]
    assert sorted(ours[0]["eval"]) == sorted(COLUMNS)
    assert list(ours[0]["eval"]["mnli"]) == ["accuracy", "accuracy_mm"]
    for task, metrics in theirs[0]["eval"].items():
        assert ours[0]["eval"][task] == pytest.approx(metrics, abs=1e-3), task
