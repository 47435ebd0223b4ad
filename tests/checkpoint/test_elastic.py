"""A run goes on with other ranks, another ZeRO stage, other micro-batches, as if nothing had changed: real
engines, dropout off.

Every chain begins on one rank with a run to the end, which is what the others are compared with. Its step 2
goes on on two ranks, and the step 4 of that one on one rank again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.glue_rows import cut_glue
from helpers.processes import run_jobs, training_lines, write_json, zero_config
from safetensors.torch import load_file

from mtdnn_ds.checkpoint.restore import _check_shapes, changes
from mtdnn_ds.checkpoint.shard_reader import SavedState, open_saved
from mtdnn_ds.checkpoint.weights import read_weights
from mtdnn_ds.config.errors import CheckpointError

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
        "optimizer": {"name": "torch_adamw", "lr": 1e-3, "head_lr_factor": 3.0},
    },
    "counter": {"train": {"dropout": "counter"}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 1e-3}},
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


CHAINS = [
    *(plain(stage * 3) for stage in "012"),
    Chain("plain", ("3", "3_sub_groups", "3")),
    # With those below, every stage to every other.
    plain("101", tokens=(200, 60, 120)),
    Chain("plain", ("2", "1_aligned", "2")),
    Chain("soft", ("2", "2_round_robin", "0")),
    Chain("low_rank", ("0", "3", "0")),
    Chain("tied", ("1", "3", "1")),
    Chain("counter", ("3", "2", "3"), tokens=(200, 60, 120)),
    Chain("adamw", ("0", "2_offload", "3_offload")),
    # Predictions rounded to bf16 and fp16 may differ in the last place on other ranks; 3e-3 is that of a
    # score of 3 in bf16.
    Chain("plain", ("2_bf16", "3_bf16", "1_bf16"), loss=3e-3, norm=1e-2),
    # Under ZeRO 3 DeepSpeed 0.19.8 divides the gradients of the step that doubles the scale by the doubled
    # one: none of its steps does here.
    Chain("plain", ("2_fp16", "1_fp16", "3_fp16"), norm=2e-3),
]


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    """A folder with recipes, data and DeepSpeed JSONs."""
    folder = tmp_path_factory.mktemp("elastic")
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=60, dev_rows=4)
    for file in glue.glob("*/dev.tsv"):
        file.unlink()  # nothing to evaluate: that takes as long as the steps
    recipe: dict[str, Any] = {
        "encoder": {"path": str(tiny_encoder), "max_length": 48},
        "tasks": ["cola", "stsb", "rte"],
        "batch": {"examples_per_step": 12},
        "optimizer": {"name": "torch_adamw", "lr": 1e-3},
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


@pytest.fixture(scope="module")
def said(run_files: Path) -> dict[str, str]:
    """All chains; what each run said.

    The first two hops of plain 0 and 3 are in the folder of the run that they go on from.
    """
    first = {chain.folder(0): job(run_files, chain, 0, "none") for chain in CHAINS}
    outputs = run_jobs(list(first.values()), run_files, 1, worker="fp16_on_cpu.py")
    before = {name: files(run_files / name) for name in first}
    for hop in (1, 2):
        jobs = [
            job(
                run_files,
                chain,
                hop,
                str(run_files / chain.folder(hop - 1) / f"checkpoints/step_{HOP * hop}"),
            )
            for chain in CHAINS
        ]
        in_place = run_files / f"in_place_hop{hop}"
        shutil.copytree(run_files / ("plain_1" if hop == 1 else "in_place_hop1"), in_place)
        for step in range(HOP * hop + 1, STEPS + 1):
            shutil.rmtree(in_place / f"checkpoints/step_{step}", ignore_errors=True)
        jobs.append({**job(run_files, plain("132"), hop, "auto"), "output_dir": str(in_place)})
        outputs |= run_jobs(jobs, run_files, RANKS[hop], worker="fp16_on_cpu.py")
    assert {
        name: files(run_files / name) for name in first
    } == before  # nothing is written where a run goes on from
    return outputs


def compare(run: Path, straight: Path, steps: Sequence[int], loss: float, norm: float) -> None:
    ours, theirs = training_lines(run), training_lines(straight)[STEPS - len(steps) :]
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(steps)
    for mine, other in zip(ours, theirs, strict=True):
        assert (
            mine["task_examples"] == other["task_examples"]
            and mine["tokens"] == other["tokens"]
            and mine["lr"] == other["lr"]
        )
        assert mine["loss"] == pytest.approx(other["loss"], abs=loss)
        assert mine["task_loss"] == pytest.approx(other["task_loss"], abs=loss * 10)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=norm)
        assert mine.keys() == other.keys()
        assert mine["loss_scale"] == other["loss_scale"]
        for name in {"penalty", "task_scale", "regularizer"} & mine.keys():
            assert mine[name] == pytest.approx(other[name], rel=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize("hop", [1, 2])
@pytest.mark.parametrize("chain", CHAINS, ids=[chain.name for chain in CHAINS])
def test_a_run_goes_on_elsewhere_as_if_nothing_had_changed(
    run_files: Path, said: dict[str, str], chain: Chain, hop: int
) -> None:
    run, straight = run_files / chain.folder(hop), run_files / chain.folder(0)
    compare(run, straight, range(HOP * hop + 1, STEPS + 1), chain.loss, chain.norm)
    assert f"goes on with {RANKS[hop]} rank" in said[run.name]
    assert f"resuming after step {HOP * hop} of {STEPS}" in said[run.name]
    topology = json.loads((run / f"checkpoints/step_{STEPS}/run_state.json").read_text())["topology"]
    assert (topology["world_size"], str(topology["zero_stage"])) == (RANKS[hop], chain.jsons[hop][0])


@pytest.mark.distributed
def test_auto_goes_on_in_the_same_folder(run_files: Path, said: dict[str, str]) -> None:
    for hop, stage in ((1, "3 instead of 1"), (2, "2 instead of 3")):
        run = run_files / f"in_place_hop{hop}"
        compare(run, run_files / "plain_1", range(1, STEPS + 1), TOLERANCE, TOLERANCE)
        note = (
            f"goes on with {RANKS[hop]} rank{'s' * (hop == 1)} instead of {RANKS[hop - 1]}, ZeRO stage "
            f"{stage}: the same examples in the same steps"
        )
        assert note in said[run.name]
        assert f"metrics.jsonl: {STEPS - HOP * hop} lines after step {HOP * hop} moved" in said[run.name], (
            said[run.name]
        )


@pytest.mark.distributed
def test_the_averaged_model_is_carried(run_files: Path, said: dict[str, str]) -> None:
    chain = next(chain for chain in CHAINS if chain.recipe == "low_rank")
    straight, *ours = (
        load_file(run_files / chain.folder(hop) / f"checkpoints/step_{STEPS}/momentum.safetensors")
        for hop in range(3)
    )
    for weights in ours:
        assert weights.keys() == straight.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, straight[name], atol=2e-6, rtol=1e-5)


def saved_state(run: Path, step: int) -> SavedState:
    folder = run / f"checkpoints/step_{step}"
    topology = json.loads((folder / "run_state.json").read_text())["topology"]
    return open_saved(folder, zero_stage=topology["zero_stage"], num_ranks=topology["world_size"])


@pytest.mark.distributed
@pytest.mark.parametrize(
    "chain", [chain for chain in CHAINS if "16" not in chain.name], ids=lambda chain: chain.name
)
def test_weights_are_found_as_deepspeed_itself_finds_them(
    run_files: Path, said: dict[str, str], chain: Chain
) -> None:
    """ZeRO 0-2 keep the weights whole beside their parts; for ZeRO 3 DeepSpeed has a tool of its own."""
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


@pytest.mark.distributed
def test_a_checkpoint_that_cannot_be_taken_apart_is_refused(
    run_files: Path, said: dict[str, str], tmp_path: Path
) -> None:
    old = tmp_path / "step_2"
    shutil.copytree(run_files / "plain_0/checkpoints/step_2", old)
    shard = old / "mp_rank_00_model_states.pt"
    contents = torch.load(shard, weights_only=True)
    torch.save({**contents, "mtdnn_ds": {"step": 2}}, shard)
    with pytest.raises(
        CheckpointError,
        match=r"step_2: was saved at ZeRO stage 0 by mtdnn_ds 0\.2 or older.*resume once with ZeRO stage 0",
    ):
        open_saved(old, zero_stage=0, num_ranks=1)
    torch.save({name: value for name, value in contents.items() if name != "optimizer"}, shard)
    with pytest.raises(
        CheckpointError,
        match=r"not laid out as DeepSpeed 0\.19\.8 writes them \(KeyError: 'optimizer'\); resume with the "
        r"number",
    ):
        open_saved(old, zero_stage=0, num_ranks=1)
    with pytest.raises(
        CheckpointError, match="not laid out as DeepSpeed"
    ):  # says another stage than its files are of
        open_saved(old, zero_stage=2, num_ranks=1)


@pytest.mark.distributed
def test_other_parameters_are_refused_by_name(run_files: Path, said: dict[str, str]) -> None:
    saved = saved_state(run_files / "plain_0", 2)
    ours = {name: torch.empty(shape) for name, shape in saved.shapes.items()}
    _check_shapes(ours, saved, "step_2")
    first, second, *_ = ours
    ours[first] = torch.empty(1, 2)
    del ours[second]
    with pytest.raises(CheckpointError) as caught:
        _check_shapes(ours, saved, "step_2")
    shapes = [tuple(saved.shapes[name]) for name in (first, second)]
    advice = "resume with the encoder, the tasks and the mtdnn_ds that it was saved with"
    assert sorted(caught.value.problems) == sorted(
        [
            f"step_2: {first} is {shapes[0]} there and (1, 2) here; {advice}",
            f"step_2: {second} is {shapes[1]} there and not trained here; {advice}",
        ]
    )


def test_what_has_changed_is_said() -> None:
    def notes(dropout: str, tokens: int = 400, **topology: Any) -> list[str]:
        before = {"world_size": 1, "zero_stage": 1, "precision": "fp32"}
        recipe: dict[str, Any] = {"batch": {"max_tokens_per_micro_batch": 400}, "train": {"dropout": dropout}}
        now = {**recipe, "batch": {"max_tokens_per_micro_batch": tokens}}
        return changes({"topology": before, "recipe": recipe}, now, {**before, **topology})

    assert notes("model") == []
    assert notes("none", world_size=2, zero_stage=3, offload_optimizer=True) == [
        "goes on with 2 ranks instead of 1, ZeRO stage 3 instead of 1, "
        "zero_optimization.offload_optimizer True instead of off: the same examples "
        "in the same steps; every rank takes its part of the weights and of the optimizer's state from "
        "the checkpoint's shards"
    ]
    assert notes("counter", tokens=200) == [
        "goes on with batch.max_tokens_per_micro_batch 200 instead of 400: the same examples in the same "
        "steps"
    ]
    assert notes("model", zero_stage=2)[1:] == []  # dropout knows no stage
    for changed in ({"world_size": 2}, {"tokens": 200}):
        assert notes("model", **changed)[1:] == [
            "train.dropout=model: dropout is drawn by rank and micro-batch, so the losses from here on "
            "are not those that the run would have had "
            "where it was; train.dropout=none, or counter, does not depend on it"
        ]
