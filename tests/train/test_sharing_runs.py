"""Soft and low-rank sharing in real runs: steps, resuming and evaluation are exact over ranks, token budgets
and ZeRO stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.glue_rows import cut_glue, read_example
from helpers.processes import ROOT, lines, run_jobs, run_ranks, training_lines, write_json, zero_config
from helpers.reference_loop import Example
from helpers.reference_sharing import Settings, Start, shared_training

pytestmark = pytest.mark.slow

STEPS = 4
TOLERANCE = 1e-4  # relative, fp32
# Far above the rounding errors of small gradients, which Adam would turn into steps, and the penalty counts
# those.
EPS = 1e-4
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
    pad_tokens_to: int = 1

    @property
    def name(self) -> str:
        return f"{self.sharing}_ranks{self.world_size}_zero{self.stage}_tokens{self.max_tokens}"

    @property
    def config(self) -> dict[str, Any]:
        """ZeRO 3 keeps small parameters whole between steps; with small micro-batches none, so that both are
        tested.
        """
        config = zero_config(self.stage)
        if self.stage == 3 and self.max_tokens == 128:
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config


SETTINGS = [
    Setting("separate", 2, 3, max_tokens=128),
    Setting("soft", 1, 3),
    *(Setting("soft", 2, stage, max_tokens=2048 if stage % 2 else 128) for stage in range(4)),
    Setting("soft", 2, 3, max_tokens=128, pad_tokens_to=32),
    Setting("low_rank", 1, 0),
    *(Setting("low_rank", 2, stage, max_tokens=128 if stage % 2 else 2048) for stage in range(1, 4)),
]


@dataclass(frozen=True)
class Resumed:
    """A run on two ranks with dropout, and one that goes on from the middle of it."""

    sharing: str
    stage: int
    precision: str

    @property
    def name(self) -> str:
        return f"{self.sharing}_zero{self.stage}_{self.precision}"


RESUMED = [
    Resumed("soft", 2, "bf16"),
    Resumed("soft", 3, "bf16"),
    Resumed("low_rank", 3, "bf16"),
]
EXACT_FIELDS = (
    "step",
    "loss",
    "penalty",
    "task_loss",
    "task_examples",
    "lr",
    "grad_norm",
    "tokens",
    "micro_batches",
    "eval",
    "average",
)


@dataclass(frozen=True)
class Runs:
    folder: Path
    references: dict[str, list[tuple[float, float, float]]]


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Runs:
    folder = tmp_path_factory.mktemp("sharing")
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=100, dev_rows=8)
    for name, sharing in SHARING.items():
        recipe = {
            "encoder": {"path": str(tiny_encoder), "max_length": 64},
            "tasks": [task for tasks in GROUPS.values() for task in tasks],
            "sharing": sharing,
            "batch": {"examples_per_step": 16},
            "optimizer": {
                "name": "adamw",
                "lr": 1e-3,
                "eps": EPS,
                "weight_decay": 0.05,
                "gradient_clipping": CLIP[name],
            },
            "schedule": {"name": "constant", "warmup": 0},
            "train": {"steps": STEPS, "dropout": "none", "seed": 5},
            "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    for world_size in (1, 2):
        jobs = [
            {
                "recipe": str(folder / f"{setting.sharing}.yaml"),
                "deepspeed_config": str(write_json(folder / f"{setting.name}.json", setting.config)),
                "output_dir": str(folder / setting.name),
                "overrides": {
                    "batch.max_tokens_per_micro_batch": str(setting.max_tokens),
                    "batch.pad_tokens_to": str(setting.pad_tokens_to),
                },
            }
            for setting in SETTINGS
            if setting.world_size == world_size
        ]
        if world_size == 2:
            jobs += [job for resumed in RESUMED for job in straight_and_resumed(folder, resumed)]
        run_jobs(jobs, folder, world_size)
    return Runs(folder, {name: reference(folder, name, glue, tiny_encoder) for name in SHARING})


def straight_and_resumed(folder: Path, resumed: Resumed) -> list[dict[str, Any]]:
    config = write_json(folder / f"{resumed.name}.json", zero_config(resumed.stage, resumed.precision))
    job = {"recipe": str(folder / f"{resumed.sharing}.yaml"), "deepspeed_config": str(config)}
    overrides = {
        "train.dropout": "model",
        "train.save_every": "2",
        "train.eval_every": "2",
        "batch.max_tokens_per_micro_batch": "128",
    }
    straight, ours = folder / f"straight_{resumed.name}", folder / f"resumed_{resumed.name}"
    return [
        {**job, "overrides": overrides, "output_dir": str(straight)},
        {
            **job,
            "overrides": overrides,
            "output_dir": str(ours),
            "resume": str(straight / "checkpoints" / "step_2"),
        },
    ]


def reference(folder: Path, name: str, glue: Path, encoder: Path) -> list[tuple[float, float, float]]:
    """The plan says which rows make up each step, the model what heads and low-rank factors start from; the
    rest is in reference_sharing.
    """
    from mtdnn_ds.config.load import load_recipe
    from mtdnn_ds.runs.setup import build_plan, prepare_run_data, run_model
    from mtdnn_ds.tasks.resolve import resolve_tasks

    recipe = load_recipe(str(folder / f"{name}.yaml"), {})
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    plan, names = build_plan(recipe, data), data.layout.task_names
    rows = [examples.split.source_rows for examples in data.train_sets]
    steps: list[list[Example]] = []
    for number in range(1, STEPS + 1):
        drawn = plan.step(number)
        steps.append(
            [
                read_example(glue, names[task], int(rows[task][row]))
                for task, row in zip(drawn.task_ids, drawn.rows, strict=True)
            ]
        )
    model = run_model(recipe, data, device=torch.device("cpu"), compute_dtype=torch.float32)
    bank, factors = model.heads["sequence"], {}
    for parameter_name, values in model.named_parameters():
        if parameter_name.endswith(".delta.a"):
            linear = parameter_name.removeprefix("encoder.model.").removesuffix(".delta.a")
            factors[linear] = list(values.detach().split(SHARING[name]["rank"]))
    columns = [slice(term.first_column, term.first_column + term.num_outputs) for term in data.layout.terms]
    heads = {
        task: (bank.weight[own].detach(), bank.bias[own].detach())
        for task, own in zip(names, columns, strict=True)
    }
    settings = Settings(
        groups=GROUPS,
        penalty=SHARING[name]["penalty"],
        lr=1e-3,
        eps=EPS,
        weight_decay=0.05,
        clip=CLIP[name],
        max_length=64,
    )
    return shared_training(encoder, steps, Start(heads, factors), settings)


@pytest.mark.distributed
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_steps_equal_the_hand_written_loop(trained_runs: Runs, setting: Setting) -> None:
    ours = training_lines(trained_runs.folder / setting.name)
    theirs = trained_runs.references[setting.sharing]
    assert [line["loss"] for line in ours] == pytest.approx([loss for loss, _, _ in theirs], rel=TOLERANCE)
    assert [line.get("penalty", 0.0) for line in ours] == pytest.approx(
        [penalty for _, penalty, _ in theirs], rel=TOLERANCE
    )
    assert [line["grad_norm"] for line in ours] == pytest.approx(
        [norm for _, _, norm in theirs], rel=TOLERANCE
    )
    assert len(ours) == STEPS and (
        "penalty" not in ours[-1] if setting.sharing == "separate" else ours[-1]["penalty"] > 1e-3
    )


@pytest.mark.distributed
@pytest.mark.parametrize("resumed", RESUMED, ids=lambda resumed: resumed.name)
def test_resume_is_bitwise(trained_runs: Runs, resumed: Resumed) -> None:
    ours, straight = (
        [
            {field: line.get(field) for field in EXACT_FIELDS}
            for line in lines(trained_runs.folder / f"{kind}_{resumed.name}")
            if line["step"] > 2
        ]
        for kind in ("resumed", "straight")
    )
    assert ours == straight and [line["step"] for line in ours] == [3, 4, 4]
    assert straight[0]["penalty"] > 0


@pytest.mark.distributed
@pytest.mark.parametrize(("sharing", "checkpoint"), [("soft", "best/average"), ("low_rank", f"step_{STEPS}")])
def test_saved_weights_give_the_metrics_of_the_run(trained_runs: Runs, sharing: str, checkpoint: str) -> None:
    """Gathered from ZeRO 3's parts on two ranks, loaded on one."""
    from mtdnn_ds.runs.evaluate import evaluate
    from mtdnn_ds.runs.load import find_run, load_run
    from mtdnn_ds.runs.setup import prepare_run_data

    folder = trained_runs.folder / f"{sharing}_ranks2_zero3_tokens128"
    found = find_run(str(folder), checkpoint)
    loaded = load_run(found, device=torch.device("cpu"))
    data = prepare_run_data(found.recipe, found.specs)
    result = evaluate(loaded.model, data, loaded.settings, torch.device("cpu"))
    (logged,) = (line["eval"] for line in lines(folder) if "eval" in line)
    assert result.metrics.keys() == logged.keys()
    for task, metrics in logged.items():
        assert result.metrics[task] == pytest.approx(metrics, abs=1e-4), task


@pytest.mark.distributed
def test_copies_are_sharded_over_ranks(trained_runs: Runs) -> None:
    """Each rank's fp32 weights and Adam moments under ZeRO 3, as its checkpoint holds them: of two ranks half
    as much as of one.
    """

    def state_bytes(ranks: int) -> list[int]:
        folder = (
            trained_runs.folder
            / f"soft_ranks{ranks}_zero3_tokens{2048 if ranks == 1 else 128}"
            / "checkpoints"
            / f"step_{STEPS}"
        )
        files = sorted(folder.glob("*_optim_states.pt"))
        return [tensor_bytes(torch.load(file, map_location="cpu", weights_only=False)) for file in files]

    (alone,), both = state_bytes(1), state_bytes(2)
    assert len(both) == 2 and all(0.49 < own / alone < 0.52 for own in both)


@pytest.mark.bars
@pytest.mark.distributed
def test_sharing_is_exact_beside_regularisers_frozen_parts_and_recomputed_layers(trained_runs: Runs) -> None:
    """One rank without ZeRO against two ranks with ZeRO 3 and small micro-batches."""
    beside = {
        "smart": {"regularizer.name": "smart", "regularizer.proximal_factor": "1.0"},
        "freelb": {"regularizer.name": "freelb"},
        "frozen": {"train.freeze": "embeddings,encoder.layer.0"},
        "recomputed": {"encoder.gradient_checkpointing": "true"},
    }
    small = {"batch.max_tokens_per_micro_batch": "128"}
    settings = {1: Setting("soft", 1, 0), 2: Setting("soft", 2, 3, max_tokens=128)}
    for ranks, setting in settings.items():
        config = write_json(trained_runs.folder / f"beside_{ranks}.json", setting.config)
        jobs = [
            {
                "recipe": str(trained_runs.folder / f"{sharing}.yaml"),
                "deepspeed_config": str(config),
                "output_dir": str(trained_runs.folder / f"{sharing}_{name}_ranks{ranks}"),
                "overrides": overrides if ranks == 1 else {**overrides, **small},
            }
            for sharing in ("soft", "low_rank")
            for name, overrides in beside.items()
        ]
        run_jobs(jobs, trained_runs.folder, ranks)
    for sharing in ("soft", "low_rank"):
        for name in beside:
            one, two = (
                training_lines(trained_runs.folder / f"{sharing}_{name}_ranks{ranks}") for ranks in settings
            )
            for field in ("loss", "penalty", "grad_norm"):
                assert [line[field] for line in two] == pytest.approx(
                    [line[field] for line in one], rel=TOLERANCE
                ), (sharing, name, field)


@pytest.mark.bars
@pytest.mark.distributed
def test_memory_of_a_rank_falls_with_the_number_of_ranks(trained_runs: Runs) -> None:
    """Everything a rank holds before its first step under ZeRO 3, three copies of the encoder with their fp32
    states, but for small buckets.
    """
    config = {
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 100_000,
            "stage3_param_persistence_threshold": 0,
        }
    }
    job = {
        "recipe": str(trained_runs.folder / "soft.yaml"),
        "deepspeed_config": str(write_json(trained_runs.folder / "small_buckets.json", config)),
        "output_dir": str(trained_runs.folder / "live_bytes"),
    }
    file = write_json(trained_runs.folder / "live_bytes.json", job)
    outputs = [run_ranks([str(ROOT / "tests/workers/live_bytes.py"), str(file)], ranks) for ranks in (1, 2)]
    alone, one_of_two = (int(output.split("bytes alive: ")[1].split()[0]) for output in outputs)
    assert 0.49 < one_of_two / alone < 0.53


def tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(tensor_bytes(item) for item in value.values())
    return sum(tensor_bytes(item) for item in value) if isinstance(value, (list, tuple)) else 0
