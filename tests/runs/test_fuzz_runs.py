"""Changed and torn records of run folders and caches: refused with a message, or read; never a traceback.

No training (checkpoint/test_resume.py kills that).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.fuzzing import (
    EXAMPLES,
    JSON_PIECES,
    YAML_PIECES,
    changed,
    fuzz,
    refused_or_done,
    text_of_json,
    text_of_yaml,
    torn,
    with_settings,
)
from helpers.processes import ROOT
from helpers.said import logged
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mtdnn_ds.checkpoint import restore as elastic
from mtdnn_ds.checkpoint.find import find_checkpoint, resume_from
from mtdnn_ds.checkpoint.manifest import damage, write_manifest
from mtdnn_ds.checkpoint.weights import read_weights
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.stages import load_runs
from mtdnn_ds.data.plan.step_plan import StepPlan
from mtdnn_ds.monitor.run_monitor import cut_metrics
from mtdnn_ds.runs.evaluate import Evaluation
from mtdnn_ds.runs.load import find_run
from mtdnn_ds.runs.setup import build_plan, prepare_run_data, settings_dict
from mtdnn_ds.runs.state import RunState, check_fit
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.init.from_run import find_source
from mtdnn_ds.train.preflight.init_checks import preflight

pytestmark = pytest.mark.timeout(120 + EXAMPLES)
TOPOLOGY = {"world_size": 2, "zero_stage": 2, "precision": "fp32", "offload_optimizer": False}


class Whole:
    """A run folder as a run of three steps leaves it, but for its shards."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        self.folder = folder / "run"
        (folder / "rows.csv").write_text("a,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(7)))
        self.recipe: dict[str, Any] = {
            "encoder": {"path": str(encoder), "max_length": 16},
            "tasks": {
                "cats": {
                    "kind": "classification",
                    "text_columns": ["a"],
                    "label_column": "label",
                    "labels": ["0", "1"],
                    "files": dict.fromkeys(("train", "dev"), str(folder / "rows.csv")),
                }
            },
            "batch": {"examples_per_step": 4},
            "train": {"steps": 6},
            "data": {"cache_dir": str(folder / "cache")},
        }
        best, step = self.folder / "best" / "average", self.folder / "checkpoints" / "step_3"
        best.mkdir(parents=True)
        step.mkdir(parents=True)
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(self.recipe))
        (folder / "own.yaml").write_text(
            yaml.safe_dump({**self.recipe, "init": {"run": str(self.folder), "checkpoint": "best/average"}})
        )
        self.settings = load_recipe(str(self.folder / "recipe.yaml"), {})
        self.plan: StepPlan = build_plan(
            self.settings, prepare_run_data(self.settings, resolve_tasks(self.settings))
        )
        cache = Path(self.settings.data.cache_dir)
        self.cached = {
            str(path.relative_to(cache)): path.read_bytes()
            for path in cache.rglob("*")
            if path.suffix in (".json", ".arrow")
        }
        evaluation = Evaluation(metrics={"cats": {"accuracy": 0.5}}, scores={"cats": 0.5}, average=0.5)
        self.state = RunState(
            step=3,
            recipe=settings_dict(self.settings),
            plan=self.plan.state_dict(3),
            topology=TOPOLOGY,
            evaluation=evaluation,
            evaluated_at=3,
            best={"cats": {"score": 0.5, "step": 3}},
        )
        (step / "run_state.json").write_text(json.dumps(self.state.to_json()))
        (step / "mp_rank_00_model_states.pt").write_bytes(b"12345")
        write_manifest(step)
        save_file({"weight": torch.zeros(2)}, best / "model.safetensors")
        (best / "best.json").write_text('{"step": 3}')
        lines = [{"step": n, "loss": 0.5, "tokens": 9} for n in (1, 2, 3)]
        (self.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"), tiny_encoder)


def copied(whole: Whole, tmp_path: Path) -> Path:
    """The run folder, to be changed; its cache stays."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    return Path(shutil.copytree(whole.folder, tmp_path / "run"))


def read_everything(whole: Whole, run: Path) -> None:
    """What --resume, evaluate and init read before any weight is loaded, and the best weights."""
    recipe = run.parent / "own.yaml"
    own = {**whole.recipe, "init": {"run": str(run), "checkpoint": "best/average"}}
    recipe.write_text(yaml.safe_dump(own))

    def resume() -> None:
        found = resume_from(str(run), run)
        assert found is not None
        check_fit(str(found.path), found.run_state, whole.state, whole.plan)
        elastic.changes(found.run_state, whole.state.recipe, {**TOPOLOGY, "world_size": 1})
        assert RunState.from_json(found.run_state).step == found.step
        event("resumed")

    refused_or_done(resume)
    for checkpoint in ("latest", "step_3", "best/average", "best/cats"):
        refused_or_done(lambda checkpoint=checkpoint: find_run(str(run), checkpoint))  # type: ignore[misc]
    refused_or_done(lambda: read_weights(run / "best/average"))
    wanted = load_recipe(str(recipe), {})
    refused_or_done(lambda: find_source(wanted))
    refused_or_done(lambda: preflight(wanted, resolve_tasks(wanted), goes_on=False))
    cut_metrics(run / "metrics.jsonl", 2)


@given(data=st.data())
@fuzz
def test_run_folders(data: st.DataObject, whole: Whole, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    names = [
        "recipe.yaml",
        "metrics.jsonl",
        "best/average/model.safetensors",
        "checkpoints/step_3/manifest.json",
        "checkpoints/step_3/run_state.json",
    ]
    name = data.draw(st.sampled_from(names))
    event(name)
    victim, step = run / name, run / "checkpoints/step_3"
    content = victim.read_bytes()
    strategies = [
        torn([content], YAML_PIECES if name.endswith("yaml") else JSON_PIECES),
        st.binary(max_size=20),
    ]
    if name.endswith(".json"):
        strategies += [changed([json.loads(content)]).map(text_of_json)] * 2
    if name.endswith(".yaml"):
        strategies += [
            with_settings([whole.recipe]).map(text_of_yaml),
            changed([whole.recipe]).map(text_of_yaml),
        ]
    kind = data.draw(
        st.sampled_from(
            ["content"] if name == "metrics.jsonl" else ["content", "content", "content", "gone", "folder"]
        )
    )
    victim.unlink()
    if kind == "folder":
        victim.mkdir()
    elif kind == "content":
        victim.write_bytes(data.draw(st.one_of(strategies)))
    if name.endswith("run_state.json") and kind == "content":
        if victim.read_bytes() != content:
            assert damage(step) is not None
        write_manifest(step)  # as if it had been written so, by another version
    read_everything(whole, run)


@given(data=st.data())
@settings(fuzz, max_examples=EXAMPLES // 3)  # each is built again, and flushed to disk
def test_caches(data: st.DataObject, whole: Whole) -> None:
    """A damaged cache is built again."""
    name = data.draw(st.sampled_from(sorted(whole.cached)))
    content = whole.cached[name]
    strategies = [torn([content], JSON_PIECES)] + (
        [changed([json.loads(content)]).map(text_of_json)] * 2 if name.endswith(".json") else []
    )
    cache = Path(whole.settings.data.cache_dir)
    shutil.rmtree(cache)
    for each, good in whole.cached.items():
        (cache / each).parent.mkdir(parents=True, exist_ok=True)
        (cache / each).write_bytes(data.draw(st.one_of(strategies)) if each == name else good)
    with logged() as said:
        read = refused_or_done(lambda: prepare_run_data(whole.settings, resolve_tasks(whole.settings)))
    assert read.train_sizes == {"cats": 7}
    event("built again" if any("building it again" in text for text in said) else "used")


@pytest.mark.parametrize(
    "change", [{"skipped": 3}, {"skipped": {"a reason": "x"}}, {"num_texts": None}, {"rows": -7}]
)
def test_a_cache_with_broken_counts_is_built_again(change: dict[str, Any], whole: Whole) -> None:
    """The first two were a traceback."""
    cache = Path(whole.settings.data.cache_dir)
    meta = next(name for name in sorted(whole.cached) if name.endswith("meta.json"))
    (cache / meta).write_text(json.dumps({**json.loads(whole.cached[meta]), **change}))
    with logged() as said:
        prepare_run_data(whole.settings, resolve_tasks(whole.settings))
    assert any("is damaged" in text and "building it again" in text for text in said)
    assert (cache / meta).read_bytes() == whole.cached[meta]


def test_the_whole_folder_is_read(whole: Whole, tmp_path: Path) -> None:
    run = copied(whole, tmp_path)
    found = find_checkpoint(run / "checkpoints")
    assert found is not None and found.step == 3
    check_fit("step_3", found.run_state, whole.state, whole.plan)
    assert RunState.from_json(found.run_state) == whole.state
    assert [spec.name for spec in find_run(str(run), "best/average").specs] == ["cats"]
    assert len(load_runs(str(ROOT / "recipes/quickstart_stages.yaml"), {})) > 1
