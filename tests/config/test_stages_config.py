"""stages: what a staged recipe means (defaults, each_task, from, flags),
and every way to get one wrong. Trains nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.processes import ROOT

from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.stages import Stage, dump_stages, load_runs, load_stages
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.preflight.checks import one_task_alone

BASE: dict[str, Any] = {
    "encoder": {"path": "enc"},
    "tasks": {"cola": {"dropout": 0.05}, "rte": None, "stsb": {}},
    "mixture": {"rates": {"cola": 1, "rte": 2, "stsb": 3}},
    "train": {"steps": 100, "save_every": 10},
}
MTL_THEN_EACH: list[dict[str, Any]] = [
    {"name": "mtl"},
    {
        "name": "tune",
        "each_task": True,
        "tasks": ["cola", "rte"],
        "train": {"epochs": 3},
        "optimizer": {"lr": 1e-5},
    },
]


def staged(
    folder: Path, stages: Any, overrides: dict[str, str] | None = None, **base: Any
) -> dict[str, Stage]:
    (folder / "r.yaml").write_text(yaml.safe_dump({**BASE, **base, "stages": stages}))
    return {stage.name: stage for stage in load_stages(str(folder / "r.yaml"), overrides or {})}


def test_sections_are_defaults_and_a_stages_own_settings_go_over_them(tmp_path: Path) -> None:
    stages = staged(
        tmp_path,
        [
            {"name": "a"},
            {
                "name": "b",
                "encoder": {"max_length": 64},
                "train": {"steps": 7},
                "mixture": {"rates": "uniform"},
            },
        ],
    )
    a, b = stages["a"].recipe, stages["b"].recipe
    assert (a.train.steps, a.train.save_every, a.encoder.max_length, a.mixture.rates) == (
        100,
        10,
        128,
        {"cola": 1, "rte": 2, "stsb": 3},
    )
    assert (b.train.steps, b.train.save_every, b.encoder.max_length, b.mixture.rates) == (
        7,
        10,
        64,
        "uniform",
    )


def test_a_stage_may_replace_a_default_that_it_contradicts(tmp_path: Path) -> None:
    """As flags do: epochs instead of steps, and no temperature beside other rates."""
    mixture = {"rates": "temperature", "temperature": 3.0}
    b = staged(
        tmp_path,
        [{"name": "a"}, {"name": "b", "train": {"epochs": 2}, "mixture": {"rates": "uniform"}}],
        mixture=mixture,
    )["b"].recipe
    assert (b.train.steps, b.train.epochs, b.mixture.rates) == (None, 2, "uniform")


def test_each_task_is_a_stage_of_its_own_that_begins_with_the_one_before(tmp_path: Path) -> None:
    stages = staged(tmp_path, MTL_THEN_EACH)
    assert [(stage.name, stage.folder, stage.source) for stage in stages.values()] == [
        ("mtl", "stages/01_mtl", None),
        ("tune_cola", "stages/02_tune_cola", "mtl"),
        ("tune_rte", "stages/03_tune_rte", "mtl"),
    ]
    cola = stages["tune_cola"].recipe
    assert (list(cola.tasks), cola.tasks["cola"].dropout, cola.mixture.rates) == (["cola"], 0.05, {"cola": 1})
    assert (cola.init.run, cola.init.checkpoint, cola.init.heads) == ("stages/01_mtl", "latest", "matching")
    assert (cola.optimizer.lr, stages["mtl"].recipe.optimizer.lr) == (1e-5, 5e-5)
    assert stages["mtl"].recipe.init.run is None


def test_where_a_stage_begins(tmp_path: Path) -> None:
    stages = staged(
        tmp_path,
        [
            {"name": "a"},
            {"name": "b", "checkpoint": "best/average", "init": {"heads": "none"}},
            {"name": "c", "from": "a"},
            {"name": "d", "from": "none"},
            {"name": "e", "from": "previous"},
        ],
        init={"run": "runs/before", "checkpoint": "best/rte"},
    )
    begins = {
        name: (stage.source, stage.recipe.init.run, stage.recipe.init.checkpoint, stage.recipe.init.heads)
        for name, stage in stages.items()
    }
    assert begins == {
        "a": (None, "runs/before", "best/rte", "matching"),
        "b": ("a", "stages/01_a", "best/average", "none"),
        "c": ("a", "stages/01_a", "latest", "matching"),
        "d": (None, "runs/before", "best/rte", "matching"),
        "e": ("d", "stages/04_d", "latest", "matching"),
    }


def test_tasks_of_a_stage(tmp_path: Path) -> None:
    """A list takes the recipe's settings; a mapping goes over them;
    built-in tasks of no default may be named too.
    """
    stages = staged(
        tmp_path,
        [
            {"name": "a", "tasks": ["cola", "sst2"]},
            {"name": "b", "tasks": {"cola": {"train_fraction": 0.1}, "mrpc": None}},
        ],
        mixture={"rates": "proportional"},
    )
    assert {name: settings.dropout for name, settings in stages["a"].recipe.tasks.items()} == {
        "cola": 0.05,
        "sst2": None,
    }
    cola = stages["b"].recipe.tasks["cola"]
    assert (list(stages["b"].recipe.tasks), cola.dropout, cola.train_fraction) == (
        ["cola", "mrpc"],
        0.05,
        0.1,
    )


def test_defaults_that_name_tasks_keep_those_of_the_stage(tmp_path: Path) -> None:
    base = {"loss": {"scale": {"cola": 2, "rte": 3}}, "regularizer": {"name": "smart", "tasks": ["cola"]}}
    stages = staged(tmp_path, [{"name": "a"}, {"name": "b", "tasks": ["rte", "stsb"]}], **base)
    b = stages["b"].recipe
    assert (b.mixture.rates, b.loss.scale, b.regularizer.name) == ({"rte": 2, "stsb": 3}, {"rte": 3}, "none")
    assert stages["a"].recipe.regularizer.tasks == ["cola"]


def test_flags(tmp_path: Path) -> None:
    """A flag changes the default;
    a stage that sets the same keeps its own, unless the flag names the stage or its group.
    """
    flags = {
        "train.steps": "50",
        "optimizer.lr": "2e-5",
        "stages.tune.train.epochs": "1",
        "stages.tune_rte.batch.examples_per_step": "8",
    }
    stages = staged(tmp_path, MTL_THEN_EACH, flags)
    assert {
        name: (
            s.recipe.train.steps,
            s.recipe.train.epochs,
            s.recipe.optimizer.lr,
            s.recipe.batch.examples_per_step,
        )
        for name, s in stages.items()
    } == {
        "mtl": (50, None, 2e-5, 32),
        "tune_cola": (None, 1, 1e-5, 32),
        "tune_rte": (None, 1, 1e-5, 8),
    }


def test_resolved_stages_read_back_as_they_were(tmp_path: Path) -> None:
    stages = staged(
        tmp_path, [*MTL_THEN_EACH, {"name": "last", "from": "tune_rte", "train": {"freeze": ["pooler"]}}]
    )
    (tmp_path / "again.yaml").write_text(dump_stages(list(stages.values())))
    assert load_stages(str(tmp_path / "again.yaml"), {}) == tuple(stages.values())


def test_a_recipe_without_stages_is_one_run(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(BASE))
    (only,) = load_runs(str(tmp_path / "r.yaml"), {})
    assert only == Stage(name="", folder="", source=None, recipe=load_recipe(str(tmp_path / "r.yaml"), {}))


REFUSED: dict[str, tuple[Any, str]] = {
    "not a list": (
        {"a": {}},
        "FILE: stages: must be a list with one mapping for each stage, which begins with '- name: ...'",
    ),
    "empty": ([], "FILE: stages: must be a list with one mapping"),
    "no name": (
        [{"train": {"steps": 1}}],
        "FILE: stages.1: name: a stage needs a name of up to 100 letters, digits",
    ),
    "a name that means something": (
        [{"name": "previous"}],
        "FILE: stages.previous: name: a stage needs a name",
    ),
    "the same name": (
        [{"name": "a"}, {"name": "a"}],
        "FILE: stages.a: there are two stages 'a'; give each a name of its own",
    ),
    "unknown key": (
        [{"name": "a", "trian": {}}],
        "FILE: stages.a: unknown setting 'trian'; did you mean 'train'?",
    ),
    "unknown setting": (
        [{"name": "a"}, {"name": "b", "train": {"setps": 1}}],
        "FILE: stages.b: unknown setting 'train.setps'; did you mean 'train.steps'?",
    ),
    "a bad value": (
        [{"name": "a"}, {"name": "b", "train": {"steps": 0}}],
        "FILE: stages.b: train.steps=0: must be at least 1",
    ),
    "a contradiction": (
        [{"name": "a"}, {"name": "b", "schedule": {"power": 2}}],
        "FILE: stages.b: schedule.power=2.0: has no effect with",
    ),
    "from nowhere": (
        [{"name": "a"}, {"name": "b", "from": "aa"}],
        "FILE: stages.b: from: aa: no stage before it has this name; did you mean 'a'?",
    ),
    "from later": (
        [{"name": "a", "from": "b"}, {"name": "b"}],
        "FILE: stages.a: from: b: no stage before it has this name",
    ),
    "previous of the first": (
        [{"name": "a", "from": "previous"}],
        "FILE: stages.a: from: previous: there is no stage before it; write from: none",
    ),
    "previous of several": (
        [{"name": "a", "each_task": True}, {"name": "b"}],
        (
            "FILE: stages.b: from: previous: the stages before it are a_cola, a_rte, a_stsb; "
            "name one of them, or none"
        ),
    ),
    "checkpoint of nothing": (
        [{"name": "a", "checkpoint": "latest"}],
        "FILE: stages.a: checkpoint=latest: has no effect with from: none; remove it",
    ),
    "unknown checkpoint": (
        [{"name": "a"}, {"name": "b", "checkpoint": "last"}],
        "stages.b: checkpoint=last: must be latest (after the last step), best/average",
    ),
    "two beginnings": (
        [{"name": "a"}, {"name": "b", "init": {"run": "r"}}],
        "FILE: stages.b: init.run: the stage begins with stage 'a'; remove it, or write",
    ),
    "each_task of a wrong kind": (
        [{"name": "a", "each_task": 1}],
        "FILE: stages.a: each_task=1: must be true or false",
    ),
}


@pytest.mark.parametrize(("stages", "message"), REFUSED.values(), ids=list(REFUSED))
def test_bad_stages(stages: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        staged(tmp_path, stages)
    assert message.replace("FILE", str(tmp_path / "r.yaml")) in str(refused.value)


def test_a_default_that_is_wrong_everywhere_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        staged(tmp_path, MTL_THEN_EACH, batch={"examples_per_step": 0})
    assert refused.value.problems == (
        f"{tmp_path / 'r.yaml'}: batch.examples_per_step=0: must be at least 1",
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "stages.tnue.train.steps",
            "--stages.tnue.train.steps: there is no stage 'tnue'; did you mean 'tune'?",
        ),
        ("stages.tune", "--stages.tune: name a setting of the stage"),
        ("stages.mtl.train.setps", "unknown setting '--train.setps'; did you mean '--train.steps'?"),
    ],
)
def test_bad_flags(flag: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        staged(tmp_path, MTL_THEN_EACH, {flag: "1"})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (
            "mt_dnn_glue",
            [
                "mtl",
                *(f"tune_{task}" for task in ("mrpc", "rte", "cola", "stsb", "sst2", "qnli", "qqp", "mnli")),
            ],
        ),
        ("coqa_multistage", ["inference", "paragraphs", "coqa"]),
        ("quickstart_stages", ["together", "paraphrase", "similarity"]),
    ],
)
def test_shipped_recipes(recipe: str, expected: list[str]) -> None:
    stages = load_stages(str(ROOT / f"recipes/{recipe}.yaml"), {})
    assert [stage.name for stage in stages] == expected
    assert all(resolve_tasks(stage.recipe) for stage in stages)
    assert [stage.recipe.init.head_of for stage in stages if stage.recipe.init.head_of] == (
        [{"coqa": "quac"}] if "coqa" in expected else []
    )


def test_idle_heads_are_no_matter_of_a_stage_with_one_task(tmp_path: Path) -> None:
    stages = staged(tmp_path, MTL_THEN_EACH, optimizer={"idle_heads": "freeze"})
    assert [stage.recipe.optimizer.idle_heads for stage in stages.values()] == ["freeze", "update", "update"]
    assert one_task_alone(stages["mtl"].recipe)["optimizer.idle_heads"] == "update"


def test_the_papers_hyper_parameters() -> None:
    """Liu et al. 2019, section 4.2."""
    mtl, *tuned = load_stages(str(ROOT / "recipes/mt_dnn_glue.yaml"), {})
    for stage in (mtl, *tuned):
        recipe = stage.recipe
        assert (
            recipe.optimizer.name,
            recipe.optimizer.lr,
            recipe.batch.examples_per_step,
            recipe.train.epochs,
        ) == ("adamax", 5e-5, 32, 5)
        assert recipe.optimizer.weight_decay == 0.01  # of their code
        assert (recipe.schedule.name, recipe.schedule.warmup, recipe.optimizer.gradient_clipping) == (
            "linear",
            0.1,
            1,
        )
        assert (recipe.encoder.max_length, recipe.mixture.mixing) == (512, "per_step")
        dropout = {name: settings.dropout for name, settings in recipe.tasks.items()}
        assert dropout == {name: {"mnli": 0.3, "cola": 0.05}.get(name, 0.1) for name in dropout}
    assert {stage.source for stage in tuned} == {"mtl"} and "wnli" not in mtl.recipe.tasks


def test_commands_check_all_stages_at_once(
    tmp_path: Path, tiny_encoder: Path, minilm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tasks, parts to freeze, encoders and scores of all stages,
    with their names, before anything is done.
    """
    stages = [
        {"name": "a", "tasks": ["quickstart_sentiment", "nope"]},
        {"name": "b", "from": "none", "tasks": ["quickstart_sentiment"]},
        {
            "name": "c",
            "encoder": {"path": str(minilm)},
            "tasks": ["quickstart_sentiment"],
            "checkpoint": "best/cola",
        },
        {
            "name": "d",
            "from": "b",
            "tasks": ["quickstart_sentiment"],
            "train": {"freeze": ["encoder.layer.7"]},
        },
    ]
    base = {"encoder": {"path": str(tiny_encoder)}, "mixture": {"rates": "uniform"}, "train": {"steps": 2}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**base, "stages": stages}))
    assert main(["train", "--recipe", str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "error: stages.a: tasks.nope: unknown task 'nope'" in said
    assert (
        "error: stages.c: from: b: hidden_size is 32 there and 384 here; give both stages the same encoder"
        in said
    )
    assert (
        "error: stages.c: checkpoint=best/cola: stage b scores no task 'cola'; "
        "(known: average, quickstart_sentiment)"
    ) in said
    assert (
        "error: stages.d: train.freeze: encoder.layer.7: the encoder has 2 layers, "
        "encoder.layer.0 to encoder.layer.1"
    ) in said
    assert not (tmp_path / "run").exists()


def test_other_commands_name_the_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = tmp_path / "run/stages/01_mtl"
    stage.mkdir(parents=True)
    for folder in (stage, tmp_path / "run"):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(BASE))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert (
        f"--run_dir {tmp_path / 'run'}: a run in stages; give one of them: {stage}" in capsys.readouterr().err
    )
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**BASE, "stages": MTL_THEN_EACH}))
    with pytest.raises(
        ConfigError,
        match=(
            "has stages, each a run of its own; "
            "only tasks, prepare, plan, distill and train take such a recipe"
        ),
    ):
        load_recipe(str(tmp_path / "s.yaml"), {})
