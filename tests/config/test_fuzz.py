"""Random recipes, flags, DeepSpeed JSONs and plans: refused with a message, or taken; never a traceback or a
hang.

Inputs are drawn from a fixed seed (hypothesis, derandomized), FUZZ_EXAMPLES of each target: 2000 make 12,666
inputs with those of data/test_fuzz_data.py and runs/test_fuzz_runs.py; --hypothesis-show-statistics tells how
far they got. What fuzzing has found is kept as `@example`s and in test_fuzz_found.py.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.fuzzing import (
    EXAMPLES,
    JSON_PIECES,
    NAMES,
    YAML_PIECES,
    bomb,
    changed,
    deep,
    fuzz,
    keys,
    numbers,
    refused_or_done,
    setting_value,
    text_of_json,
    text_of_yaml,
    texts,
    torn,
    values,
    with_settings,
)
from helpers.processes import ROOT
from hypothesis import event, example, given
from hypothesis import strategies as st

from mtdnn_ds.cli import read_arguments
from mtdnn_ds.commands.verbs import VERBS
from mtdnn_ds.config.deepspeed import load_deepspeed_json, resolve_deepspeed
from mtdnn_ds.config.deepspeed_keys import SECTIONS, TOP_LEVEL
from mtdnn_ds.config.load import dump_recipe, load_recipe
from mtdnn_ds.config.schema import annotation_at
from mtdnn_ds.config.stages import dump_stages, load_runs, load_stages
from mtdnn_ds.runs.schedule import learning_rate, num_warmup_steps
from mtdnn_ds.runs.setup import RunData, build_plan, idle_tasks, prepare_run_data, recipe_sharing
from mtdnn_ds.tasks.resolve import resolve_tasks

pytestmark = pytest.mark.timeout(120 + EXAMPLES)  # of each test: an input that hangs fails it

RECIPE_TEXTS = [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
RECIPES = [yaml.safe_load(text) for text in RECIPE_TEXTS]
recipe_files = st.one_of(
    with_settings(RECIPES).map(text_of_yaml),
    changed(RECIPES).map(text_of_yaml),
    torn(RECIPE_TEXTS, YAML_PIECES),
    st.one_of(st.binary(max_size=60), values.map(text_of_yaml)),
)


@given(content=recipe_files)
@example(content=bomb(9, 40))
@example(content=text_of_yaml(deep(300)))
@example(content=b"[" * 20_000)
@fuzz
def test_recipes(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    stages = refused_or_done(lambda: load_runs(str(file), {}))
    if stages is None:
        return
    refused_or_done(lambda: [resolve_tasks(stage.recipe) for stage in stages])
    # What a run folder keeps is read back as it was.
    (tmp_path / "again.yaml").write_text(
        dump_stages(stages) if stages[0].name else dump_recipe(stages[0].recipe)
    )
    if stages[0].name:
        assert load_stages(str(tmp_path / "again.yaml"), {}) == stages
    else:
        assert load_recipe(str(tmp_path / "again.yaml"), {}) == stages[0].recipe


recipe_paths = st.sampled_from(
    [str(ROOT / "recipes" / name) for name in ("quickstart.yaml", "quickstart_stages.yaml", "none.yaml")]
)


def setting_flag(name: str) -> st.SearchStrategy[str]:
    value = setting_value(annotation_at(name.split(".")))
    return st.builds(
        "--{}{}={}".format,
        st.sampled_from(["", "", "stages.together."]),
        st.just(name.replace("NAME", "quickstart_sentiment")),
        value,
    )


setting_flags = st.sampled_from(NAMES).flatmap(setting_flag)
any_flags = st.one_of(
    setting_flags,
    st.builds("--{}={}".format, st.one_of(st.sampled_from(NAMES), keys), st.one_of(texts, values.map(str))),
    st.builds(
        "--{}".format,
        st.one_of(st.sampled_from(["recipe", "resume", "train.steps", "nope", "tasks", "quiet"]), keys),
    ),
    texts,
)
flags = st.one_of(st.lists(setting_flags, min_size=1, max_size=2), st.lists(any_flags, max_size=4))


@given(
    arguments=flags,
    verb=st.sampled_from(sorted(VERBS) + ["train", "plan", "prepare"] * 5),
    recipe=st.one_of(st.none(), recipe_paths),
)
@example(arguments=["--=x"], verb="tasks", recipe=None)
@fuzz
def test_flags(arguments: list[str], verb: str, recipe: str | None) -> None:
    given = [
        argument.replace("\x00", "").replace("\ud800", "\udcff") for argument in arguments
    ]  # what a system can hand over
    given += (
        [f"--recipe={recipe}"] if recipe and any(flag.name == "recipe" for flag in VERBS[verb].flags) else []
    )

    def read() -> dict[str, Any]:
        found = read_arguments(VERBS[verb], given)
        if VERBS[verb].takes_settings and found.get("recipe"):
            [resolve_tasks(stage.recipe) for stage in load_runs(found["recipe"], found["overrides"])]
        return found

    found = refused_or_done(read)  # fails on anything but a refusal in words
    assert found is None or {flag.name for flag in VERBS[verb].flags} == set(found) - {"overrides"}


JSON_TEXTS = [path.read_bytes() for path in sorted((ROOT / "ds_configs").glob("*.json"))]
JSONS = [json.loads(text) for text in JSON_TEXTS]
OPTIMIZERS = [
    {
        **JSONS[0],
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
        },
    }
]
KEYS = {
    **TOP_LEVEL,
    **{f"{section}.{key}": kind for section, known in SECTIONS.items() for key, kind in known.items()},
}


@st.composite
def with_keys(draw: st.DrawFn) -> dict[str, Any]:
    """A whole JSON with one to three of the keys that DeepSpeed knows set to a value of the right kind,
    or of any.
    """
    config = copy.deepcopy(draw(st.sampled_from([*JSONS, *OPTIMIZERS])))
    for name in draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3)):
        *sections, key = name.split(".")
        holder = config
        for section in sections:
            holder = (
                holder[section]
                if isinstance(holder.get(section), dict)
                else holder.setdefault(section, {}) or {}
            )
        fitting = {
            "flag": st.booleans(),
            "whole": numbers,
            "number": numbers,
            "text": texts,
            "names": st.lists(texts, max_size=2),
            "section": st.just({}),
            "any": values,
        }
        holder[key] = draw(
            st.one_of(
                fitting.get(KEYS[name], st.sampled_from(KEYS[name].split("|"))), st.just("auto"), values
            )
        )
    return config


deepspeed_files = st.one_of(
    with_keys().map(text_of_json),
    changed([*JSONS, *OPTIMIZERS]).map(text_of_json),
    torn(JSON_TEXTS, JSON_PIECES),
    st.one_of(st.binary(max_size=40), values.map(text_of_json)),
)


@given(
    content=deepspeed_files,
    device_type=st.sampled_from(["cpu", "cuda"]),
    world_size=st.sampled_from([1, 2, 3]),
)
@example(content=text_of_json(deep(300)), device_type="cpu", world_size=1)
@fuzz
def test_deepspeed_jsons(content: bytes, device_type: Any, world_size: int, tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_bytes(content)
    recipe = load_recipe(str(ROOT / "recipes/quickstart.yaml"), {})

    def resolve(path: Path) -> Any:
        found = load_deepspeed_json(str(path))
        return resolve_deepspeed(
            found,
            recipe,
            device_type=device_type,
            fast_bf16=True,
            fp16_supported=True,
            world_size=world_size,
            source="zero.json",
        )

    resolved = refused_or_done(lambda: resolve(tmp_path / "zero.json"))
    if resolved is not None:
        (tmp_path / "again.json").write_text(json.dumps(resolved.config))
        assert resolve(tmp_path / "again.json").config == resolved.config


@pytest.fixture(scope="module")
def three_tasks(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path
) -> tuple[dict[str, Any], RunData]:
    """A recipe with three small tasks, and their data."""
    folder = tmp_path_factory.mktemp("plans")
    (folder / "rows.csv").write_text("a,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(7)))
    task = {
        "kind": "classification",
        "text_columns": ["a"],
        "label_column": "label",
        "labels": ["0", "1"],
        "files": {"train": str(folder / "rows.csv")},
    }
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 16},
        "tasks": {name: task for name in ("cats", "dogs", "eels")},
        "train": {"steps": 20},
        "data": {"cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    settings = load_recipe(str(folder / "recipe.yaml"), {})
    return recipe, prepare_run_data(settings, resolve_tasks(settings))


PLAN_NAMES = [
    name
    for name in NAMES
    if name.split(".")[0] in ("mixture", "schedule", "batch", "train", "sharing", "loss", "optimizer")
]


@given(data=st.data())
@fuzz
def test_plans(data: st.DataObject, three_tasks: tuple[dict[str, Any], RunData], tmp_path: Path) -> None:
    original, prepared = three_tasks
    recipe = data.draw(with_settings([original, {**original, "train": {"epochs": 2}}], PLAN_NAMES))
    (tmp_path / "recipe.yaml").write_bytes(text_of_yaml(recipe))

    def plan() -> None:
        settings = load_recipe(str(tmp_path / "recipe.yaml"), {})
        resolve_tasks(settings)
        recipe_sharing(settings)
        plan = build_plan(settings, prepared)
        event("planned")
        idle_tasks(plan)
        schedule, steps = settings.schedule, plan.total_steps
        for step in {1, min(2, steps), steps // 2 + 1, steps}:
            count = int(plan.task_counts(step).sum())
            is_part = settings.mixture.only_task is not None
            assert count == plan.examples_per_step or (is_part and 1 <= count < plan.examples_per_step)
            if plan.examples_per_step <= 4096:
                assert len(plan.step(step).rows) == count
            rate = learning_rate(
                step,
                name=schedule.name,
                peak=settings.optimizer.lr,
                total_steps=steps,
                warmup_steps=num_warmup_steps(schedule.warmup, steps),
                final_lr_ratio=schedule.final_lr_ratio,
                power=schedule.power,
            )
            assert 0 <= rate <= settings.optimizer.lr

    refused_or_done(plan)


def test_a_traceback_would_be_found() -> None:
    with pytest.raises(KeyError):
        refused_or_done(lambda: {}["missing"])
