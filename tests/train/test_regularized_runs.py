"""Regularisers in real runs: the same losses and gradients on any topology and ZeRO stage as a hand-written
loop, and bitwise resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.glue_rows import cut_glue, read_example
from helpers.mixture_files import write_mixture
from helpers.processes import ROOT, run_jobs, run_ranks, training_lines, write_json, zero_config
from helpers.regularized_loop import Perturbation, ReferenceModel, TokenExample, regularized_training
from helpers.tiny_encoders import write_tiny_encoder
from transformers import AutoTokenizer

pytestmark = pytest.mark.slow

STEPS = 3
TOLERANCE = 1e-4  # relative, fp32
TASKS = ["cola", "stsb", "mnli"]
SMART = {
    "name": "smart",
    "factor": 2.0,
    "noise_std": 0.02,
    "radius": 0.05,
    "step_size": 0.03,
    "proximal_factor": 1.5,
    "proximal_momentum": 0.9,
}
FREELB = {"name": "freelb", "ascent_steps": 2, "radius": 0.5, "step_size": 0.3}
HOW = {
    "smart": Perturbation(
        "smart", 1, 0.03, 0.05, "inf", "token", factor=2.0, proximal_factor=1.5, momentum=0.9
    ),
    "freelb": Perturbation("freelb", 2, 0.3, 0.5, "l2", "sequence"),
}
REGULARIZERS: dict[str, dict[str, Any]] = {"smart": SMART, "freelb": FREELB}
EXACT_FIELDS = ("step", "loss", "task_loss", "grad_norm", "regularizer", "task_scale", "micro_batches")


@dataclass(frozen=True)
class Setting:
    """A run on two ranks; the hand-written loop has one and whole batches."""

    recipe: str
    stage: int
    max_tokens: int = 8192
    pad_tokens_to: int = 1

    @property
    def name(self) -> str:
        return f"{self.recipe}_zero{self.stage}_tokens{self.max_tokens}"


SETTINGS = [
    Setting("smart", 0),
    *(Setting("smart", stage, 150) for stage in (1, 3)),
    Setting("smart", 2, 160, pad_tokens_to=32),
    Setting("freelb", 0, 150),
    Setting("freelb", 3, 160, pad_tokens_to=32),
]
SCALED = [Setting("famo", 0), Setting("famo", 2, 150)]
MIXTURES = [Setting("mixture", 0), Setting("mixture", 3, 640)]
# What is resumed after step 3 of 5: dropout on, every adaptive scale and every regulariser once.
RESUMED = {
    "smart_uncertainty": (3, "fp32", {**SMART, "ascent_steps": 2}, {"scale": "uncertainty"}),
    "smart_famo": (2, "bf16", SMART, {"scale": "famo"}),
    "freelb_dwa": (1, "bf16", FREELB, {"scale": "dwa", "scale_window": 2}),
    "r_drop_random": (3, "bf16", {"name": "r_drop", "factor": 2.0}, {"scale": "random"}),
}


@dataclass(frozen=True)
class Runs:
    folder: Path
    references: dict[str, list[tuple[float, float, float]]]


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, official_files: Path, minilm: Path) -> Runs:
    folder = tmp_path_factory.mktemp("regularized_runs")
    encoder = write_tiny_encoder(folder / "encoder", minilm, initializer_range=0.1)
    tasks = write_mixture(official_files, folder)
    (folder / "glue").rename(folder / "glue_of_mixture")
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=40, dev_rows=8)
    base: dict[str, Any] = {
        "encoder": {"path": str(encoder), "max_length": 48},
        "tasks": TASKS,
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 12, "max_tokens_per_micro_batch": 8192},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "gradient_clipping": 1.0},
        "schedule": {"name": "constant", "warmup": 0},
        "train": {"steps": STEPS, "dropout": "none", "seed": 5},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }
    recipes = {name: {**base, "regularizer": settings} for name, settings in REGULARIZERS.items()}
    recipes["mixture"] = {
        **base,
        "tasks": tasks,
        "batch": {"examples_per_step": 33, "max_tokens_per_micro_batch": 8192},
        "data": {"glue_dir": str(folder / "glue_of_mixture"), "cache_dir": str(folder / "cache")},
        "regularizer": SMART,
    }
    recipes["famo"] = {**base, "loss": {"scale": "famo", "scale_lr": 0.5}}
    for name, (_, _, regularizer, loss) in RESUMED.items():
        train = {"steps": 5, "save_every": 3, "seed": 7}
        recipes[name] = {
            **base,
            "regularizer": regularizer,
            "loss": loss,
            "train": train,
            "batch": {**base["batch"], "max_tokens_per_micro_batch": 150},
        }
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    for stage in range(4):
        write_json(folder / f"zero{stage}_fp32.json", zero_config(stage))
        write_json(folder / f"zero{stage}_bf16.json", zero_config(stage, "bf16"))
    jobs = [
        job_of(
            folder,
            setting.recipe,
            setting.name,
            setting.stage,
            **{
                "batch.max_tokens_per_micro_batch": str(setting.max_tokens),
                "batch.pad_tokens_to": str(setting.pad_tokens_to),
            },
        )
        for setting in (*SETTINGS, *MIXTURES, *SCALED)
    ]
    for name, (stage, precision, _, _) in RESUMED.items():
        jobs.append(job_of(folder, name, f"straight_{name}", stage, precision))
        checkpoint = folder / f"straight_{name}" / "checkpoints" / "step_3"
        jobs.append({**job_of(folder, name, f"resumed_{name}", stage, precision), "resume": str(checkpoint)})
    run_jobs(jobs, folder, world_size=2)
    return Runs(folder, {name: reference_of(folder, glue, encoder, name) for name in REGULARIZERS})


def job_of(
    folder: Path, recipe: str, name: str, stage: int, precision: str = "fp32", **overrides: str
) -> dict[str, Any]:
    return {
        "recipe": str(folder / f"{recipe}.yaml"),
        "deepspeed_config": str(folder / f"zero{stage}_{precision}.json"),
        "output_dir": str(folder / name),
        "overrides": overrides,
    }


def reference_of(folder: Path, glue: Path, encoder: Path, name: str) -> list[tuple[float, float, float]]:
    """The plan says which rows make up each step, the model what the heads start from, the generator where
    the ascent begins.
    """
    from mtdnn_ds.config.load import load_recipe
    from mtdnn_ds.runs.setup import build_plan, prepare_run_data, run_model
    from mtdnn_ds.tasks.resolve import resolve_tasks
    from mtdnn_ds.train.regularizers.noise import Ball, generator_noise

    recipe = load_recipe(str(folder / f"{name}.yaml"), {})
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    plan, how = build_plan(recipe, data), HOW[name]
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = run_model(recipe, data, device=torch.device("cpu"), compute_dtype=torch.float32)
    bank: Any = model.heads["sequence"]
    heads = {
        task: (bank.weight[list(term.columns)].detach(), bank.bias[list(term.columns)].detach())
        for task, term in zip(TASKS, data.layout.terms, strict=True)
    }
    ball = Ball(norm=how.norm, per=how.per, radius=how.radius, step_size=how.step_size)  # type: ignore[arg-type]
    steps = []
    for number in range(1, STEPS + 1):
        of_step = plan.step(number)
        examples = []
        for task, row in zip(of_step.task_ids.tolist(), of_step.rows.tolist(), strict=True):
            raw = read_example(glue, TASKS[task], int(data.train_sets[task].split.source_rows[row]))
            tokens = tokenizer(*raw.texts, truncation=True, max_length=48)
            place = SimpleNamespace(
                cu_seqlens=torch.tensor([0, len(tokens["input_ids"])]),
                sequence_examples=np.array([0]),
                example_tasks=np.array([task]),
                example_rows=np.array([row]),
            )
            std = 0.02 if name == "smart" else None
            noise = generator_noise(
                place,  # type: ignore[arg-type]
                width=32,
                is_noisy_N=np.ones(3, dtype=bool),
                std=std,
                ball=ball,
                seed=5,
                step=number,
            )
            examples.append(
                TokenExample(TASKS[task], tokens["input_ids"], tokens["token_type_ids"], raw.label, noise)
            )
        steps.append(examples)
    theirs = ReferenceModel(encoder, heads, {"stsb"})
    return regularized_training(theirs, steps, how, lr=1e-3, weight_decay=0.05, clip=1.0)


@pytest.mark.distributed
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_losses_and_gradients_equal_a_hand_written_loop(trained_runs: Runs, setting: Setting) -> None:
    ours = training_lines(trained_runs.folder / setting.name)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for line, (loss, norm, added) in zip(ours, trained_runs.references[setting.recipe], strict=True):
        assert line["loss"] == pytest.approx(loss, rel=TOLERANCE), f"step {line['step']}"
        assert line["grad_norm"] == pytest.approx(norm, rel=TOLERANCE), f"step {line['step']}"
        if setting.recipe == "smart":
            assert line["regularizer"] == pytest.approx(added, rel=1e-3), f"step {line['step']}"
            assert added > 1e-3 * loss, "too small a term to say anything"
        else:
            assert "regularizer" not in line


@pytest.mark.distributed
def test_settings_really_cut_steps_differently(trained_runs: Runs) -> None:
    counts = {
        setting.name: max(
            line["micro_batches"] for line in training_lines(trained_runs.folder / setting.name)
        )
        for setting in SETTINGS
    }
    assert counts["smart_zero0_tokens8192"] == 1
    assert min(counts["smart_zero2_tokens160"], counts["freelb_zero3_tokens160"]) > 1


@pytest.mark.distributed
def test_every_kind_of_task_is_regularised_alike_on_any_topology(trained_runs: Runs) -> None:
    """Eleven tasks of nine kinds, masked tokens (which have no rule) and SAN among them: small micro-batches
    under ZeRO 3 against whole ones without.
    """
    expected, ours = (training_lines(trained_runs.folder / setting.name) for setting in MIXTURES)
    assert len(ours) == STEPS
    for mine, theirs in zip(ours, expected, strict=True):
        for field in ("loss", "grad_norm"):
            assert mine[field] == pytest.approx(theirs[field], rel=TOLERANCE), (field, mine["step"])
        assert mine["regularizer"] == pytest.approx(theirs["regularizer"], rel=2e-3)
        assert mine["regularizer"] > 0


def exact(run_folder: Path) -> list[dict[str, Any]]:
    return [{field: line.get(field) for field in EXACT_FIELDS} for line in training_lines(run_folder)]


@pytest.mark.distributed
@pytest.mark.parametrize("name", list(RESUMED))
def test_resume_is_bitwise(trained_runs: Runs, name: str) -> None:
    straight, resumed = (
        exact(trained_runs.folder / f"straight_{name}"),
        exact(trained_runs.folder / f"resumed_{name}"),
    )
    assert [line["step"] for line in resumed] == [4, 5]
    assert resumed == straight[3:]
    assert all(set(line["task_scale"]) == set(line["task_loss"]) for line in straight)
    assert all(line["loss"] > 0 and np.isfinite(line["grad_norm"]) for line in straight)


@pytest.mark.distributed
def test_the_averaged_model_is_in_the_checkpoint(trained_runs: Runs) -> None:
    from safetensors.torch import load_file

    saved = load_file(
        trained_runs.folder / "straight_smart_famo" / "checkpoints" / "step_3" / "momentum.safetensors"
    )
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    assert saved["encoder.model.embeddings.word_embeddings.weight"].shape == (30522, 32)
    assert not list(
        (trained_runs.folder / "straight_freelb_dwa" / "checkpoints").rglob("momentum.safetensors")
    )


# Adaptive loss scales


@pytest.mark.distributed
def test_adaptive_scales_do_not_depend_on_how_the_step_was_cut(trained_runs: Runs) -> None:
    whole, cut = (training_lines(trained_runs.folder / setting.name) for setting in SCALED)
    assert max(line["micro_batches"] for line in cut) > 1
    for mine, theirs in zip(cut, whole, strict=True):
        for field in ("loss", "grad_norm"):
            assert mine[field] == pytest.approx(theirs[field], rel=TOLERANCE), (field, mine["step"])
        assert mine["task_scale"] == {
            task: pytest.approx(scale, rel=TOLERANCE) for task, scale in theirs["task_scale"].items()
        }
    assert len({line["task_scale"]["cola"] for line in whole}) == STEPS


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["famo_zero2_tokens150", *(f"straight_{name}" for name in RESUMED)])
def test_the_objective_is_the_scaled_task_means_and_the_regulariser(trained_runs: Runs, name: str) -> None:
    for line in training_lines(trained_runs.folder / name):
        parts = sum(scale * line["task_loss"][task] for task, scale in line["task_scale"].items())
        assert line["loss"] == pytest.approx(parts + line.get("regularizer", 0.0), rel=1e-6)


@pytest.mark.distributed
def test_dwa_scales_of_a_run_follow_from_its_logged_losses(trained_runs: Runs) -> None:
    """Windows of two steps: the fifth step's scales are the softmax of half the ratio of steps 3 and 4 to
    steps 1 and 2.
    """
    lines = training_lines(trained_runs.folder / "straight_freelb_dwa")
    for line in lines[:4]:
        assert list(line["task_scale"].values()) == pytest.approx([1 / 3] * 3)
    losses = np.array([[line["task_loss"][task] for task in TASKS] for line in lines])
    raw = np.exp(losses[2:4].sum(0) / losses[0:2].sum(0) / 2)
    assert [lines[4]["task_scale"][task] for task in TASKS] == pytest.approx(
        (raw / raw.sum()).tolist(), rel=1e-6
    )


@pytest.mark.bars
@pytest.mark.distributed
def test_fp16_repeats_overflowing_steps_with_the_same_noise(trained_runs: Runs) -> None:
    """On one rank, from a loss scale that overflows: the losses are those of fp32."""
    scaling = {"enabled": True, "initial_scale_power": 24, "hysteresis": 1}
    write_json(trained_runs.folder / "zero2_fp16.json", {"zero_optimization": {"stage": 2}, "fp16": scaling})
    jobs = [job_of(trained_runs.folder, name, f"{name}_fp16", 2, "fp16") for name in REGULARIZERS]
    write_json(trained_runs.folder / "fp16_jobs.json", jobs)  # type: ignore[arg-type]
    run_ranks([str(ROOT / "tests/workers/fp16_on_cpu.py"), str(trained_runs.folder / "fp16_jobs.json")], 1)
    for name in REGULARIZERS:
        ours = training_lines(trained_runs.folder / f"{name}_fp16")
        assert ours[0]["skipped"] > 0
        for line, (loss, norm, _) in zip(ours, trained_runs.references[name], strict=True):
            assert line["loss"] == pytest.approx(loss, rel=1e-2)
            assert line["grad_norm"] == pytest.approx(norm, rel=1e-1)
