"""Damaged checkpoints of two ranks under ZeRO 1, 2 and 3: noticed, named, and the run goes on from the one
before, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.fault_runs import exact, write_run_files
from helpers.processes import run_jobs, write_json, zero_config

from mtdnn_ds.checkpoint.find import find_checkpoint
from mtdnn_ds.checkpoint.weights import read_weights
from mtdnn_ds.config.errors import CheckpointError

pytestmark = pytest.mark.slow

STAGES = (1, 2, 3)
RANK_1 = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
MODEL = {
    1: "mp_rank_00_model_states.pt",
    2: "mp_rank_00_model_states.pt",
    3: "zero_pp_rank_1_mp_rank_00_model_states.pt",
}


def cut(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(1000)


def flip(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def half_written(checkpoints: Path) -> None:
    """As a kill would leave it if shards were written to their final place: half of them, no manifest."""
    (checkpoints / "step_6" / RANK_1).unlink()
    (checkpoints / "step_6" / "manifest.json").unlink()


def emptied(checkpoints: Path) -> None:
    shutil.rmtree(checkpoints / "step_6")
    (checkpoints / "step_6").mkdir()


def unfinished(checkpoints: Path) -> None:
    (checkpoints / "step_6").rename(checkpoints / ".partial_step_6.0a1b2c")


def nothing_after(checkpoints: Path) -> None:
    (checkpoints / "latest").unlink()


def broken_json(checkpoints: Path) -> None:
    manifest = checkpoints / "step_6" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])


def forgotten_file(checkpoints: Path) -> None:
    """The manifest no longer lists a shard that is damaged too."""
    manifest = checkpoints / "step_6" / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["files"]["run_state.json"]
    manifest.write_text(json.dumps(values))


# name -> (damage, step that is found, what is said of step_6)
KINDS: dict[str, tuple[Callable[[Path, str], None], int, str]] = {
    "truncated model": (
        lambda folder, model: cut(folder / "step_6" / model),
        3,
        "step_6: MODEL has 1000 bytes instead of ",
    ),
    "truncated shard": (
        lambda folder, _: cut(folder / "step_6" / RANK_1),
        3,
        f"step_6: {RANK_1} has 1000 bytes instead of ",
    ),
    "flipped byte": (
        lambda folder, _: flip(folder / "step_6" / RANK_1),
        3,
        f"step_6: {RANK_1} is damaged (its sha256 differs from the",
    ),
    "missing rank file": (
        lambda folder, _: (folder / "step_6" / RANK_1).unlink(),
        3,
        f"step_6: {RANK_1} is missing; trying the one before",
    ),
    "half-written": (
        lambda folder, _: half_written(folder),
        3,
        "step_6: not a whole checkpoint (manifest.json is missing)",
    ),
    "empty folder": (
        lambda folder, _: emptied(folder),
        3,
        "step_6: not a whole checkpoint (manifest.json is missing)",
    ),
    "unfinished": (
        lambda folder, _: unfinished(folder),
        3,
        ".partial_step_6.0a1b2c: an unfinished checkpoint",
    ),
    "manifest cut": (lambda folder, _: broken_json(folder), 3, "step_6: manifest.json is not readable"),
    "manifest incomplete": (
        lambda folder, _: forgotten_file(folder),
        3,
        "step_6: manifest.json does not list run_state.json",
    ),
    "missing latest": (lambda folder, _: nothing_after(folder), 6, ""),
}
CONTINUED = {1: "truncated shard", 2: "flipped byte", 3: "missing rank file"}


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    """A run of two ranks for each stage, with checkpoints of steps 3 and 6."""
    folder = write_run_files(
        tmp_path_factory.mktemp("damage"), official_files, tiny_encoder, steps=6, save_every=3, eval_every=0
    )
    run_jobs([job(folder, stage) for stage in STAGES], folder, 2)
    return folder


def job(folder: Path, stage: int, **changes: Any) -> dict[str, Any]:
    config = write_json(folder / f"zero{stage}.json", zero_config(stage))
    return {
        "recipe": str(folder / "recipe.yaml"),
        "deepspeed_config": str(config),
        "output_dir": str(folder / f"run_{stage}"),
        **changes,
    }


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_noticed_and_named_and_the_one_before_is_used(
    run_files: Path, tmp_path: Path, kind: str, stage: int
) -> None:
    damage, step, said = KINDS[kind]
    folder = shutil.copytree(run_files / f"run_{stage}" / "checkpoints", tmp_path / "checkpoints")
    damage(folder, MODEL[stage])
    found = find_checkpoint(folder)
    assert found is not None
    assert (found.step, found.path) == (step, folder / f"step_{step}")
    assert [note for note in found.notes if said.replace("MODEL", MODEL[stage]) in note] == list(found.notes)
    assert len(found.notes) == (step == 3)


@pytest.fixture(scope="module")
def continued(run_files: Path) -> dict[str, str]:
    """A copy of each run with its newest checkpoint damaged, started again."""
    for stage, kind in CONTINUED.items():
        copy = shutil.copytree(run_files / f"run_{stage}", run_files / f"damaged_{stage}")
        KINDS[kind][0](copy / "checkpoints", MODEL[stage])
    return run_jobs(
        [
            job(run_files, stage, output_dir=str(run_files / f"damaged_{stage}"), resume="auto")
            for stage in STAGES
        ],
        run_files,
        2,
    )


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(
    run_files: Path, continued: dict[str, str], stage: int
) -> None:
    ours, said = run_files / f"damaged_{stage}", continued[f"damaged_{stage}"]
    assert KINDS[CONTINUED[stage]][2] in said
    assert "step_6: later than the step this run goes on from; set aside as abandoned_step_6" in said
    assert f"resuming after step 3 of 6 from {ours}/checkpoints/step_3" in said
    assert exact(ours) == exact(run_files / f"run_{stage}")
    assert len(exact(ours)) == 6


@pytest.mark.distributed
def test_best_weights_are_checked_when_they_are_read(run_files: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_files / "run_2" / "best" / "average", tmp_path / "average")
    whole = read_weights(folder)
    about = json.loads((folder / "best.json").read_text())
    assert about["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    flip(folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read_weights(folder)
    assert str(caught.value) == (
        f"{folder}/model.safetensors: is damaged (its sha256 differs from that in best.json); give "
        f"another --checkpoint"
    )
    del about["sha256"]  # as version 0.2 wrote it
    (folder / "best.json").write_text(json.dumps(about))
    assert read_weights(folder).keys() == whole.keys()
