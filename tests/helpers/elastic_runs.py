"""Runs that go on elsewhere, for tests: with other ranks, another ZeRO stage, other micro-batches.

Every chain begins on one rank with a run to the end, which is what the others are compared with. Its step 2
goes on on two ranks, and the step 4 of that one on one rank again. Not a test file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.glue_rows import cut_glue
from helpers.processes import run_jobs, training_lines, write_json, zero_config
from mtdnn_ds.checkpoint.shard_reader import SavedState, open_saved
from mtdnn_ds.checkpoint.weights import read_weights

STEPS, HOP = 5, 2
RANKS = (1, 2, 1)
TOLERANCE = 1e-4
GROUPS = {"single": ["cola"], "pairs": ["rte", "stsb"]}
REPLY = {
    "kind": "classification",
    "files": {"train": "recipes/own_task/train.csv"},
    "text_columns": ["message"],
    "label_column": "team",
    "labels": ["billing", "delivery", "account"],
}

# What is trained -> what its recipe changes.
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    # Copies of the encoder, another optimizer.
    "soft": {
        "sharing": {"mode": "soft", "penalty": 100.0, "groups": GROUPS},
        "optimizer": {"name": "adamax", "lr": 1e-3},
    },
    # Low-rank changes, a frozen layer that is not as it is in encoder.path, loss scales that are learnt, an
    # averaged model.
    "low_rank": {
        "sharing": {"mode": "low_rank", "penalty": 100.0, "rank": 4, "groups": GROUPS},
        "loss": {"scale": "uncertainty"},
        "regularizer": {"name": "smart", "proximal_factor": 1.0},
        "train": {"freeze": ["encoder.layer.0"]},
    },
    # A head that borrows the word embeddings, learning rates by group.
    "tied": {
        "tasks": {"text": {"kind": "masked_lm"}, "reply": REPLY},
        "optimizer": {"name": "adamw", "lr": 1e-3, "head_lr_factor": 3.0},
    },
    "counter": {"train": {"dropout": "counter"}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 1e-3}},
    "deepspeed_adamw": {"optimizer": {"name": "deepspeed_adamw", "lr": 1e-3}},
}
# How ZeRO is set up beside its stage.
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
JSONS: dict[str, dict[str, Any]] = {
    **{str(stage): zero_config(stage) for stage in range(4)},
    **{f"{stage}_bf16": zero_config(stage, "bf16") for stage in (1, 2, 3)},
    # The scale doubles in every third step: one that is not carried, or whose count of steps is not, is seen.
    **{
        f"{stage}_fp16": {
            **zero_config(stage),
            "fp16": {"enabled": True, "initial_scale_power": 10, "loss_scale_window": 3},
        }
        for stage in (1, 2, 3)
    },
    "2_offload": {"zero_optimization": {"stage": 2, **OFFLOADED}},
    "3_offload": {"zero_optimization": {"stage": 3, **OFFLOADED, "offload_param": {"device": "cpu"}}},
    "1_aligned": {"zero_optimization": {"stage": 1, "parameter_alignment": True}},
    "2_round_robin": {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
    "3_sub_groups": {
        "zero_optimization": {"stage": 3, "sub_group_size": 3000, "stage3_param_persistence_threshold": 0}
    },
}


@dataclass(frozen=True)
class Chain:
    recipe: str
    jsons: tuple[str, str, str]  # on 1, 2 and 1 rank
    tokens: tuple[int, int, int] = (200, 200, 200)  # batch.max_tokens_per_micro_batch
    loss: float = TOLERANCE
    norm: float = TOLERANCE

    @property
    def name(self) -> str:
        return f"{self.recipe}_{'-'.join(self.jsons)}"

    def folder(self, hop: int) -> str:
        return f"{self.name}_hop{hop}" if hop else f"{self.recipe}_{self.jsons[0]}"


def plain(stages: str, **others: Any) -> Chain:
    return Chain("plain", (stages[0], stages[1], stages[2]), **others)


def write_elastic_files(folder: Path, official_files: Path, tiny_encoder: Path) -> Path:
    """Recipes, data and DeepSpeed JSONs, in `folder`."""
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=60, dev_rows=4)
    for file in glue.glob("*/dev.tsv"):
        file.unlink()  # nothing to evaluate: that takes as long as the steps

    recipe: dict[str, Any] = {
        "encoder": {"path": str(tiny_encoder), "max_length": 48},
        "tasks": ["cola", "stsb", "rte"],
        "batch": {"examples_per_step": 12},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": STEPS, "save_every": HOP, "keep_last": 9, "seed": 3, "dropout": "none"},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }

    text = folder / "text.txt"
    text.write_text("\n".join((glue / "RTE" / "train.tsv").read_text().replace("\t", " ").splitlines()))

    for name, changed in RECIPES.items():
        merged = {
            **recipe,
            **{key: {**recipe[key], **value} if key == "train" else value for key, value in changed.items()},
        }

        if name == "low_rank":
            merged["init"] = {"run": str(folder / "plain_0")}
        if name == "tied":
            merged["tasks"]["text"]["files"] = {"train": str(text)}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(merged))

    for name, config in JSONS.items():
        write_json(folder / f"{name}.json", config)
    return folder


def job(run_files: Path, chain: Chain, hop: int, resume: str) -> dict[str, Any]:
    return {
        "recipe": str(run_files / f"{chain.recipe}.yaml"),
        "deepspeed_config": str(run_files / f"{chain.jsons[hop]}.json"),
        "output_dir": str(run_files / chain.folder(hop)),
        "resume": resume,
        "overrides": {"batch.max_tokens_per_micro_batch": str(chain.tokens[hop])},
    }


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def train_first(run_files: Path, chains: Sequence[Chain]) -> dict[str, str]:
    """Train what every chain begins with, to the end; what each run said."""
    first = {chain.folder(0): job(run_files, chain, 0, "none") for chain in chains}
    return run_jobs(list(first.values()), run_files, RANKS[0], worker="fp16_on_cpu.py")


def go_on(
    run_files: Path, chains: Sequence[Chain], hop: int, others: Sequence[Mapping[str, Any]] = ()
) -> dict[str, str]:
    """Let every chain, and other jobs, go on with the next number of ranks; what each run said."""
    jobs = []
    for chain in chains:
        source = run_files / chain.folder(hop - 1) / f"checkpoints/step_{HOP * hop}"
        jobs.append(job(run_files, chain, hop, str(source)))
    return run_jobs([*jobs, *others], run_files, RANKS[hop], worker="fp16_on_cpu.py")


def compare(run: Path, straight: Path, steps: Sequence[int], loss: float, norm: float) -> None:
    """The run's lines of these steps, the last ones, against those of the run that never moved."""
    ours, theirs = training_lines(run), training_lines(straight)[STEPS - len(steps) :]
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(steps)
    for mine, other in zip(ours, theirs, strict=True):
        for field in ("task_examples", "tokens", "lr", "loss_scale"):
            assert mine[field] == other[field]
        assert mine["loss"] == pytest.approx(other["loss"], abs=loss)
        assert mine["task_loss"] == pytest.approx(other["task_loss"], abs=loss * 10)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=norm)
        assert mine.keys() == other.keys()
        for name in {"penalty", "task_scale", "regularizer"} & mine.keys():
            assert mine[name] == pytest.approx(other[name], rel=1e-3)


def check_chain(run_files: Path, said: Mapping[str, str], chain: Chain, hop: int) -> None:
    """A chain's run has gone on as if nothing had changed."""
    run, straight = run_files / chain.folder(hop), run_files / chain.folder(0)
    compare(run, straight, range(HOP * hop + 1, STEPS + 1), chain.loss, chain.norm)
    assert f"goes on with {RANKS[hop]} rank" in said[run.name]
    assert f"resuming after step {HOP * hop} of {STEPS}" in said[run.name]
    topology = json.loads((run / f"checkpoints/step_{STEPS}/run_state.json").read_text())["topology"]
    assert (topology["world_size"], str(topology["zero_stage"])) == (RANKS[hop], chain.jsons[hop][0])


def saved_state(run: Path, step: int) -> SavedState:
    folder = run / f"checkpoints/step_{step}"
    topology = json.loads((folder / "run_state.json").read_text())["topology"]
    return open_saved(folder, zero_stage=topology["zero_stage"], num_ranks=topology["world_size"])


def check_weights(run_files: Path, chain: Chain) -> None:
    """Weights are found as DeepSpeed itself finds them.

    ZeRO 0-2 keep the weights whole beside their parts; for ZeRO 3 DeepSpeed has a tool of its own.
    """
    for hop in (0, 1):
        ours, theirs = (
            saved_state(run_files / chain.folder(hop), 4),
            read_weights(run_files / chain.folder(hop) / "checkpoints/step_4"),
        )
        assert ours.shapes.keys() | ours.untrained.keys() == set(theirs)
        for name, shape in ours.shapes.items():
            assert torch.equal(ours.values(name, "fp32", 0, shape.numel()).view(shape), theirs[name]), name
            low, high = shape.numel() // 3, shape.numel() // 3 * 2
            assert torch.equal(
                ours.values(name, "fp32", low, high - low), theirs[name].flatten()[low:high]
            ), name
        for name, tensor in ours.untrained.items():
            assert torch.equal(tensor, theirs[name]), name
