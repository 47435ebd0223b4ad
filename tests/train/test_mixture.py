"""Promises 1 and 2 with every kind of task in one step: losses and gradients do not depend on ranks,
micro-batches, ZeRO stage or place.

Four fp32 steps without dropout on generated rows of eleven tasks, against a hand-written float64 loop on
padded BertModel (helpers/reference_mixture.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.mixture_files import write_mixture
from helpers.processes import lines, run_jobs, training_lines, write_json, zero_config
from helpers.reference_mixture import TaskOfStep, TermOfStep, reference_steps

STEPS = 4
TOLERANCE = 1e-4  # relative, fp32
MAX_LENGTH = 64


@dataclass(frozen=True)
class Setting:
    name: str
    world_size: int
    stage: int
    max_tokens: int = 8192


QUICK = [
    Setting("ranks1_zero0", 1, 0),
    Setting("ranks1_zero2_tokens400", 1, 2, max_tokens=400),
    Setting("ranks2_zero3_tokens640", 2, 3, max_tokens=640),
]
SLOW = [
    *(Setting(f"ranks1_zero{stage}", 1, stage) for stage in (1, 2, 3)),
    *(Setting(f"ranks2_zero{stage}_tokens640", 2, stage, max_tokens=640) for stage in (0, 1, 2)),
    Setting("ranks2_zero3", 2, 3),
]


def each_of(settings: Sequence[Setting]) -> list[Any]:
    """Parameters of a test."""
    return [
        pytest.param(setting, id=setting.name, marks=() if setting in QUICK else pytest.mark.slow)
        for setting in settings
    ]


EACH_SPEED = pytest.mark.parametrize(
    "settings", [pytest.param(QUICK, id="quick"), pytest.param(SLOW, id="slow", marks=pytest.mark.slow)]
)


@dataclass(frozen=True)
class Runs:
    folder: Path
    reference: list[tuple[float, float, list[float]]]


@pytest.fixture(scope="module")
def quick_runs(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Runs:
    folder = tmp_path_factory.mktemp("mixture")
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": MAX_LENGTH},
        "tasks": write_mixture(official_files, folder),
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 44, "max_tokens_per_micro_batch": 8192},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "gradient_clipping": 1.0},
        "schedule": {"name": "constant", "warmup": 0},
        "train": {"steps": STEPS, "dropout": "none", "seed": 5},
        "data": {"glue_dir": str(folder / "glue"), "cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    for stage in range(4):
        write_json(folder / f"zero{stage}.json", zero_config(stage))
    train(folder, QUICK)
    return Runs(folder, reference_of(folder, tiny_encoder))


@pytest.fixture(scope="module")
def slow_runs(quick_runs: Runs) -> Runs:
    train(quick_runs.folder, SLOW)
    return quick_runs


def runs_of(request: pytest.FixtureRequest, setting: Setting) -> Runs:
    """Those with the setting."""
    runs: Runs = request.getfixturevalue("quick_runs" if setting in QUICK else "slow_runs")
    return runs


def train(folder: Path, settings: Sequence[Setting]) -> None:
    for world_size in (1, 2):
        jobs = [
            {
                "recipe": str(folder / "recipe.yaml"),
                "deepspeed_config": str(folder / f"zero{setting.stage}.json"),
                "output_dir": str(folder / setting.name),
                "overrides": {
                    "batch.max_tokens_per_micro_batch": str(setting.max_tokens),
                    "train.gradient_norms_every": "2" if setting.stage < 3 else "0",
                },
            }
            for setting in settings
            if setting.world_size == world_size
        ]
        run_jobs(jobs, folder, world_size)


def reference_of(folder: Path, encoder: Path) -> list[tuple[float, float, list[float]]]:
    """The plan says which examples make up each step, mtdnn_ds/data their tokens and labels, the model what
    the heads start from.
    """
    from mtdnn_ds.config.load import load_recipe
    from mtdnn_ds.runs.setup import build_plan, prepare_run_data, run_model
    from mtdnn_ds.tasks.resolve import resolve_tasks

    recipe = load_recipe(str(folder / "recipe.yaml"), {})
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    plan, layout = build_plan(recipe, data), data.layout
    model = run_model(recipe, data, device=torch.device("cpu"), compute_dtype=torch.float32)
    heads = {name: parameter.detach() for name, parameter in model.heads.named_parameters()}
    san_terms = [index for index, term in enumerate(layout.terms) if term.form == "san"]
    steps = []
    for number in range(1, STEPS + 1):
        step, tasks = plan.step(number), []
        for task, examples in enumerate(data.train_sets):
            members = np.flatnonzero(step.task_ids == task)
            gathered = examples.gather(step.rows[members], step.epochs[members])
            sizes = gathered.lengths.tolist()
            ids, types = (
                torch.from_numpy(array).split(sizes)
                for array in (gathered.input_ids, gathered.token_type_ids)
            )
            terms = [
                TermOfStep(
                    form=layout.terms[index].form,
                    columns=slice(
                        layout.terms[index].first_column,
                        layout.terms[index].first_column + layout.terms[index].num_outputs,
                    ),
                    san_index=san_terms.index(index) if index in san_terms else -1,
                    rows=torch.from_numpy(np.asarray(own.rows, dtype=np.int64)),
                    labels=torch.from_numpy(np.asarray(own.labels, dtype=np.float32)),
                    examples=torch.from_numpy(np.asarray(own.examples, dtype=np.int64)),
                    segments=torch.from_numpy(own.extra["segments"]) if "segments" in own.extra else None,
                )
                for index, own in zip(layout.terms_of(task), gathered.targets, strict=True)
            ]
            tasks.append(
                TaskOfStep(
                    num_examples=len(members), sequences=list(zip(ids, types, strict=True)), terms=terms
                )
            )
        steps.append(tasks)
    return reference_steps(encoder, steps, heads, lr=1e-3, weight_decay=0.05, clip=1.0)


@pytest.mark.distributed
@pytest.mark.parametrize("setting", each_of([*QUICK, *SLOW]))
def test_losses_and_gradients_of_every_kind_equal_a_hand_written_padded_loop(
    request: pytest.FixtureRequest, setting: Setting
) -> None:
    trained_runs = runs_of(request, setting)
    ours = training_lines(trained_runs.folder / setting.name)
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for line, (loss, norm, _) in zip(ours, trained_runs.reference, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=TOLERANCE), f"step {line['step']}"
        assert line["grad_norm"] == pytest.approx(norm, rel=TOLERANCE), f"step {line['step']}"


@pytest.mark.distributed
@pytest.mark.parametrize("setting", each_of([each for each in [*QUICK, *SLOW] if each.stage < 3]))
def test_gradient_norms_of_tasks_equal_plain_autograd(
    request: pytest.FixtureRequest, setting: Setting
) -> None:
    trained_runs = runs_of(request, setting)
    ours = training_lines(trained_runs.folder / setting.name)
    assert [line["step"] for line in ours if "task_grad_norm" in line] == [2, 4]
    for line, (_, _, norms) in zip(ours, trained_runs.reference, strict=True):
        if "task_grad_norm" in line:
            assert list(line["task_grad_norm"].values()) == pytest.approx(norms, rel=TOLERANCE)


@pytest.mark.distributed
@EACH_SPEED
def test_each_task_loses_the_same_in_every_setting(
    request: pytest.FixtureRequest, settings: Sequence[Setting]
) -> None:
    trained_runs = runs_of(request, settings[0])
    first = training_lines(trained_runs.folder / QUICK[0].name)
    assert set(first[0]["task_loss"]) == {
        "cola",
        "stsb",
        "mnli",
        "rte",
        "ranked",
        "ordered",
        "ner",
        "questions",
        "text",
        "choices",
        "embedded",
    }
    for setting in settings:
        for line, expected in zip(training_lines(trained_runs.folder / setting.name), first, strict=True):
            assert line["task_loss"] == pytest.approx(expected["task_loss"], rel=1e-3), (
                setting.name,
                line["step"],
            )


@pytest.mark.distributed
def test_settings_really_cut_steps_differently(quick_runs: Runs) -> None:
    counts = {
        setting.name: {line["micro_batches"] for line in training_lines(quick_runs.folder / setting.name)}
        for setting in QUICK
    }
    assert counts["ranks1_zero0"] == {1}
    assert min(counts["ranks1_zero2_tokens400"]) >= 5
    assert min(counts["ranks2_zero3_tokens640"]) >= 2


@pytest.mark.distributed
@EACH_SPEED
def test_every_setting_evaluates_the_same(
    request: pytest.FixtureRequest, settings: Sequence[Setting]
) -> None:
    trained_runs = runs_of(request, settings[0])
    evaluations = [
        [line for line in lines(trained_runs.folder / setting.name) if "eval" in line][-1]["eval"]
        for setting in (QUICK[0], *settings)
    ]
    assert sorted(evaluations[0]) == [
        "choices",
        "cola",
        "embedded",
        "mnli",
        "ner",
        "ordered",
        "questions",
        "ranked",
        "rte",
        "stsb",
    ]
    for evaluation in evaluations[1:]:
        for task, metrics in evaluations[0].items():
            assert evaluation[task] == pytest.approx(metrics, abs=2e-3), task
