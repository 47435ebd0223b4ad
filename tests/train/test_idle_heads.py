"""optimizer.idle_heads in real runs: with freeze a head stays bit for bit as it is in steps without its task,
at every ZeRO stage, number of ranks and precision; with update it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.elastic_runs import JSONS, saved_state
from helpers.glue_rows import cut_glue
from helpers.processes import ROOT, lines, run_jobs, training_lines, write_json, zero_config
from torch import Tensor

STEPS, HALF = 7, 3
TASKS = ("cola", "mnli", "rte", "stsb", "reviews", "text")

# Rows of a task alone, by hand: cola has two columns of the bank and stsb one, mnli three of SAN's classifier
# and rte two; SAN's other parameters have a row for each of its tasks.
BANK, SAN = "heads.sequence", "heads.san"
SAN_ROWS = tuple(
    f"{SAN}.{name}"
    for name in ("summary", "attention", "input_weight", "state_weight", "input_bias", "state_bias")
)
OWN_ROWS: dict[str, dict[str, slice]] = {
    "cola": {f"{BANK}.weight": slice(0, 2), f"{BANK}.bias": slice(0, 2)},
    "stsb": {f"{BANK}.weight": slice(2, 3), f"{BANK}.bias": slice(2, 3)},
    "mnli": {f"{SAN}.classifier": slice(0, 3), **dict.fromkeys(SAN_ROWS, slice(0, 1))},
    "rte": {f"{SAN}.classifier": slice(3, 5), **dict.fromkeys(SAN_ROWS, slice(1, 2))},
}
OWN_MODULES = {"reviews": "heads.ordinal_head.", "text": "heads.masked_lm."}  # their only task's, whole


@dataclass(frozen=True)
class Setting:
    json: str
    ranks: int
    idle_heads: str = "freeze"
    optimizer: str = "adamw"

    @property
    def name(self) -> str:
        return f"{self.idle_heads}_{self.optimizer}_{self.json}_ranks{self.ranks}"


QUICK = [
    Setting("2", 2),
    Setting("2", 2, "update"),
    Setting("3_offload", 2, optimizer="adamax"),
]
FP32 = [
    Setting("0", 1),
    *(Setting(str(stage), 2) for stage in range(4)),
    Setting("2_offload", 2),
    Setting("2_round_robin", 2),
    Setting("3_sub_groups", 2),
]
FROZEN = [
    *FP32,
    Setting("0", 1, optimizer="adamax"),
    Setting("3_offload", 2, optimizer="adamax"),
    Setting("1_bf16", 2),
    Setting("3_bf16", 2),
    Setting("2_overflowing", 2),
    Setting("3_overflowing", 2),
]
MOVING = [Setting("0", 1, "update"), Setting("2", 2, "update"), Setting("3", 2, "update")]
# The scale falls until it no longer overflows: the first step takes several attempts.
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 24, "hysteresis": 1}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("idle_heads")
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=40, dev_rows=4)
    for file in glue.glob("*/dev*.tsv"):
        file.unlink()  # nothing to evaluate: that takes as long as the steps
    text = folder / "text.txt"
    text.write_text((glue / "RTE" / "train.tsv").read_text().replace("\t", " "))
    reviews = yaml.safe_load((ROOT / "recipes/own_kind.yaml").read_text())["tasks"]["reviews"]
    reviews["files"] = {"train": reviews["files"]["train"]}

    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 48},
        "plugins": ["recipes/own_kind/ordinal.py"],
        "tasks": {
            "cola": {},
            "mnli": {"head": "san"},
            "rte": {"head": "san"},
            "stsb": {},
            "reviews": reviews,
            "text": {"kind": "masked_lm", "files": {"train": str(text)}},
        },
        "mixture": {"rates": {**dict.fromkeys(TASKS, 2.0), "stsb": 1.0}, "mixing": "per_step"},
        "batch": {"examples_per_step": 8, "max_tokens_per_micro_batch": 200},
        "optimizer": {"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-4},
        "schedule": {"name": "constant", "warmup": 0},
        "train": {"steps": STEPS, "save_every": 1, "keep_last": 9, "dropout": "none", "seed": 3},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    for name, config in JSONS.items():
        write_json(folder / f"{name}.json", config)
    for stage in (2, 3):
        write_json(folder / f"{stage}_overflowing.json", {**zero_config(stage), **FP16})

    return folder


@pytest.fixture(scope="module")
def quick_runs(files: Path) -> Path:
    run_jobs([job(files, setting) for setting in QUICK], files, 2, worker="fp16_on_cpu.py")
    return files


@pytest.fixture(scope="module")
def all_runs(quick_runs: Path) -> Path:
    for ranks in (1, 2):
        settings = [each for each in (*FROZEN, *MOVING) if each.ranks == ranks and each not in QUICK]
        jobs = [job(quick_runs, setting) for setting in settings]
        jobs += every_task_in_every_step(quick_runs) if ranks == 1 else on_and_elsewhere(quick_runs)
        run_jobs(jobs, quick_runs, ranks, worker="fp16_on_cpu.py")
    return quick_runs


def run_of(request: pytest.FixtureRequest, setting: Setting) -> Path:
    folder: Path = request.getfixturevalue("quick_runs" if setting in QUICK else "all_runs")
    return folder / setting.name


def each_of(settings: Sequence[Setting]) -> list[Any]:
    """Parameters of a test."""
    return [
        pytest.param(setting, id=setting.name, marks=() if setting in QUICK else pytest.mark.slow)
        for setting in settings
    ]


def job(folder: Path, setting: Setting, name: str = "", **more: Any) -> dict[str, Any]:
    """`more`: resume; settings with dots in their names."""
    return {
        "recipe": str(folder / "recipe.yaml"),
        "deepspeed_config": str(folder / f"{setting.json}.json"),
        "output_dir": str(folder / (name or setting.name)),
        "resume": more.pop("resume", "none"),
        "overrides": {
            "optimizer.name": setting.optimizer,
            "optimizer.idle_heads": setting.idle_heads,
            **more,
        },
    }


def every_task_in_every_step(folder: Path) -> list[dict[str, Any]]:
    settings = {
        "tasks": "cola,mnli,stsb",
        "mixture.rates": "uniform",
        "mixture.mixing": "per_example",
        "train.steps": "3",
    }
    return [
        job(folder, Setting("2", 1, choice), f"all_{choice}", **settings) for choice in ("update", "freeze")
    ]


def straight_and_resumed(folder: Path, json: str) -> list[dict[str, Any]]:
    setting, dropout = Setting(json, 2), {"train.dropout": "model"}
    source = str(folder / f"straight_{json}" / "checkpoints" / f"step_{HALF}")
    return [
        job(folder, setting, f"straight_{json}", **dropout),
        job(folder, setting, f"resumed_{json}", resume=source, **dropout),
    ]


def on_and_elsewhere(folder: Path) -> list[dict[str, Any]]:
    """Two that go on where they were, and one of one rank without ZeRO that goes on on two with ZeRO 3."""
    source = str(folder / Setting("0", 1).name / "checkpoints" / f"step_{HALF}")
    elsewhere = job(folder, Setting("3", 2), "elsewhere", resume=source)
    return [*straight_and_resumed(folder, "2"), *straight_and_resumed(folder, "3_bf16"), elsewhere]


def states_of(run: Path, step: int) -> dict[str, dict[str, Tensor]]:
    """Parameter -> its float32 weights and moments after a step, whole, whatever the ranks hold of them."""
    saved = saved_state(run, step)
    return {
        name: {
            key: saved.values(name, key, 0, shape.numel()).view(shape)
            for key in ("fp32", *sorted(saved.keys(name)))
        }
        for name, shape in saved.shapes.items()
    }


def own_of(states: dict[str, dict[str, Tensor]], task: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What belongs to the task alone."""
    for name, of_parameter in states.items():
        if task in OWN_ROWS and name in OWN_ROWS[task]:
            yield name, {key: tensor[OWN_ROWS[task][name]] for key, tensor in of_parameter.items()}
        elif task in OWN_MODULES and name.startswith(OWN_MODULES[task]):
            yield name, of_parameter


def is_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    assert ours.keys() == theirs.keys() and len(ours) == 3
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def tasks_of(run: Path) -> list[str]:
    """The task of each step."""
    tasks = []
    for line in training_lines(run):
        (task,) = (name for name, count in line["task_examples"].items() if count)
        tasks.append(task)
    assert len(tasks) == STEPS and len(set(tasks)) > 3
    return tasks


@pytest.mark.distributed
@pytest.mark.parametrize("setting", each_of(FROZEN))
def test_an_idle_head_stays_bit_for_bit(request: pytest.FixtureRequest, setting: Setting) -> None:
    run = run_of(request, setting)
    before = states_of(run, 1)
    for step, present in enumerate(tasks_of(run)[1:], start=2):
        after = states_of(run, step)
        for task in TASKS:
            own = dict(own_of(before, task))
            assert own
            for name, now in own_of(after, task):
                is_idle = task != present
                assert is_same(now, own[name]) == is_idle, (step, task, name)
        shared = "encoder.model.embeddings.word_embeddings.weight"
        assert not is_same(after[shared], before[shared])
        before = after


@pytest.mark.distributed
@pytest.mark.parametrize("setting", each_of(FROZEN))
def test_a_head_that_had_no_step_yet_has_no_moments(request: pytest.FixtureRequest, setting: Setting) -> None:
    """Adamax would count its eps as a gradient."""
    run = run_of(request, setting)
    states, (first, *_) = states_of(run, 1), tasks_of(run)
    for task in TASKS:
        for name, own in own_of(states, task):
            moments = [tensor for key, tensor in own.items() if key != "fp32"]
            assert any(bool(moment.any()) for moment in moments) == (task == first), (task, name)


@pytest.mark.distributed
@pytest.mark.parametrize("setting", each_of(MOVING))
def test_without_it_an_idle_head_moves(request: pytest.FixtureRequest, setting: Setting) -> None:
    """A step of the task, and what follows it: the head goes on by its momentum."""
    run = run_of(request, setting)
    tasks = tasks_of(run)
    moved = []
    for step in range(2, STEPS + 1):
        before, after = states_of(run, step - 1), states_of(run, step)
        for task in set(tasks[: step - 1]) - {tasks[step - 1]}:
            for name, own in own_of(before, task):
                moved.append(not is_same(dict(own_of(after, task))[name], own))
    assert moved and all(moved)


@pytest.mark.distributed
def test_the_first_step_of_the_others_is_that_without_it(quick_runs: Path) -> None:
    """In the first step nothing has been idle before: what is not idle moves as it would."""
    frozen, moving = (
        states_of(quick_runs / Setting("2", 2, choice).name, 1) for choice in ("freeze", "update")
    )
    (first, *_) = tasks_of(quick_runs / Setting("2", 2).name)
    for name in frozen:
        if name.startswith("encoder."):
            assert is_same(frozen[name], moving[name]), name
    for name, own in own_of(frozen, first):
        assert is_same(own, dict(own_of(moving, first))[name]), name


@pytest.mark.slow
@pytest.mark.distributed
def test_it_does_nothing_where_every_task_is_in_every_step(all_runs: Path) -> None:
    frozen, moving = (all_runs / f"all_{choice}" for choice in ("freeze", "update"))
    assert all(all(line["task_examples"].values()) for line in training_lines(frozen))
    ours, theirs = states_of(frozen, 3), states_of(moving, 3)
    assert ours.keys() == theirs.keys()
    assert all(is_same(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("setting", FP32[1:], ids=lambda setting: setting.name)
def test_ranks_and_stages_agree(all_runs: Path, setting: Setting) -> None:
    ours, one = (training_lines(all_runs / each.name) for each in (setting, FP32[0]))
    for field in ("loss", "grad_norm"):
        assert [line[field] for line in ours] == pytest.approx([line[field] for line in one], rel=1e-4)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("json", ["2", "3_bf16"])
def test_a_run_goes_on_bit_for_bit(all_runs: Path, json: str) -> None:
    straight, resumed = (all_runs / f"{kind}_{json}" for kind in ("straight", "resumed"))
    fields = ("step", "loss", "grad_norm", "task_examples")
    theirs = [{field: line[field] for field in fields} for line in lines(straight) if line["step"] > HALF]
    assert [{field: line[field] for field in fields} for line in lines(resumed)] == theirs
    ours, expected = states_of(resumed, STEPS), states_of(straight, STEPS)
    assert all(is_same(ours[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_goes_on_elsewhere(all_runs: Path) -> None:
    straight = training_lines(all_runs / Setting("0", 1).name)[HALF:]
    ours = training_lines(all_runs / "elsewhere")
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in straight], rel=1e-4)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
def test_an_update_that_overflows_is_repeated(all_runs: Path, stage: int) -> None:
    """The runs in fp16 have repeated their first step."""
    (first, *_) = training_lines(all_runs / Setting(f"{stage}_overflowing", 2).name)
    assert first["loss_scale"] < 2**24
