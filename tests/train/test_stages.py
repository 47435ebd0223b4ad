"""Runs in stages, on two ranks: what one stage leaves is what the next begins with; killed inside a stage or
between two it goes on bit for bit; finished stages are neither trained again nor changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.fault_runs import exact
from helpers.glue_rows import cut_glue
from helpers.processes import (
    ROOT,
    lines,
    run_ranks,
    start_ranks,
    training_lines,
    wait_for_death,
    write_json,
    zero_config,
)
from safetensors.torch import load_file

from mtdnn_ds.cli import main
from mtdnn_ds.config.stages import load_stages

pytestmark = pytest.mark.slow

STAGES = ("01_mtl", "02_tune_cola", "03_tune_rte", "04_last")
WORKER = str(ROOT / "tests/workers/stages_and_die.py")


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, official_files: Path, tiny_encoder: Path) -> Path:
    """A folder with recipe and data; the straight run, and one that was killed three times."""
    folder = tmp_path_factory.mktemp("stages")
    glue = cut_glue(official_files / "glue", folder / "glue", train_rows=40, dev_rows=6)
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 40},
        "tasks": {"cola": {"dropout": 0.3}, "stsb": {}, "rte": {}},
        "batch": {"examples_per_step": 8, "max_tokens_per_micro_batch": 160},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "train": {"steps": 4, "save_every": 2, "seed": 3},
        "data": {"glue_dir": str(glue), "cache_dir": str(folder / "cache")},
        "stages": [
            {"name": "mtl"},
            {
                "name": "tune",
                "each_task": True,
                "tasks": ["cola", "rte"],
                "train": {"steps": 3},
                "optimizer": {"lr": 1e-3},
            },
            {
                "name": "last",
                "from": "mtl",
                "checkpoint": "best/average",
                "tasks": ["stsb"],
                "train": {"steps": 2, "freeze": ["encoder"]},
            },
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))  # which sorts the tasks
    write_json(folder / "zero.json", zero_config(3, "bf16"))
    return folder


def job(run_files: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "recipe": str(run_files / "recipe.yaml"),
        "deepspeed_config": str(run_files / "zero.json"),
        "output_dir": str(run_files / name),
        **changes,
    }


def write_jobs(run_files: Path, jobs: list[dict[str, Any]]) -> Path:
    file = run_files / "jobs.json"
    file.write_text(json.dumps(jobs))
    return file


def die(run_files: Path, name: str, *point: str) -> None:
    jobs = write_jobs(run_files, [job(run_files, name)])
    wait_for_death(start_ranks([WORKER, str(jobs), *point], 2))


@pytest.fixture(scope="module")
def straight(run_files: Path) -> Path:
    said = run_ranks([WORKER, str(write_jobs(run_files, [job(run_files, "straight")]))], 2)
    (run_files / "straight.txt").write_text(said)
    return run_files / "straight"


@pytest.fixture(scope="module")
def killed(run_files: Path, straight: Path) -> Path:
    """Killed when the second stage has a folder and no step yet, and inside the third after a checkpoint;
    gone on; then refused thrice.
    """
    die(run_files, "killed", "tune_cola", "1")
    assert sorted(path.name for path in (run_files / "killed/stages").iterdir()) == ["01_mtl", "02_tune_cola"]
    assert training_lines(run_files / "killed/stages/02_tune_cola") == []
    die(run_files, "killed", "tune_rte", "3")
    assert [line["step"] for line in training_lines(run_files / "killed/stages/03_tune_rte")] == [1, 2]
    renamed = yaml.safe_load((run_files / "recipe.yaml").read_text())
    renamed["stages"][1]["name"] = "fit"
    (run_files / "renamed.yaml").write_text(yaml.safe_dump(renamed))
    shutil.copytree(straight, run_files / "torn")  # the stage that others began with is not finished any more
    shutil.rmtree(run_files / "torn/stages/01_mtl/checkpoints/step_4")
    jobs = [
        job(run_files, "killed"),
        job(
            run_files, "killed", overrides={"stages.tune.optimizer.lr": "2e-3", "stages.last.train.seed": "4"}
        ),
        job(run_files, "killed", recipe=str(run_files / "renamed.yaml")),
        job(run_files, "torn"),
    ]
    said = run_ranks([WORKER, str(write_jobs(run_files, jobs))], 2)
    (run_files / "killed.txt").write_text(said)
    return run_files / "killed"


def weights(stage: Path, name: str = "average") -> dict[str, torch.Tensor]:
    return load_file(stage / f"best/{name}/model.safetensors")


@pytest.mark.distributed
def test_stages_train_one_after_the_other(run_files: Path, straight: Path) -> None:
    said = (run_files / "straight.txt").read_text()
    assert [len(training_lines(straight / "stages" / stage)) for stage in STAGES] == [4, 3, 3, 2]
    assert [list(line["task_examples"]) for line in training_lines(straight / "stages/02_tune_cola")] == [
        ["cola"]
    ] * 3
    mtl = straight / "stages/01_mtl"
    assert (
        f"starting from {mtl}/checkpoints/step_4: encoder and pooler carried; heads of cola carried" in said
    )
    assert f"starting from {mtl}/best/average: encoder and pooler carried; heads of stsb carried" in said
    assert [line for line in said.splitlines() if line.startswith("models alive")] == [
        f"models alive before {name}: 0" for name in ("mtl", "tune_cola", "tune_rte", "last")
    ]


@pytest.mark.distributed
def test_a_stage_begins_with_what_the_other_left(straight: Path) -> None:
    """The last stage freezes the encoder, so there it is still the first stage's, bit for bit; its head and
    pooler have trained.
    """
    before, after = weights(straight / "stages/01_mtl"), weights(straight / "stages/04_last")
    encoder = [name for name in before if name.startswith("encoder.model.")]
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert not torch.equal(before["encoder.pooler.dense.weight"], after["encoder.pooler.dense.weight"])
    # Columns there: cola 0 and 1, rte 2 and 3, stsb 4. Two steps of Adam at 1e-2 move each weight by little
    # more than 2e-2.
    assert (before["heads.sequence.weight"][4] - after["heads.sequence.weight"][0]).abs().max() < 0.03


@pytest.mark.distributed
def test_the_run_folder_tells_of_all_stages(
    run_files: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((straight / "stages.json").read_text())["stages"]
    assert [
        (stage["name"], stage["folder"], stage["source"], stage["checkpoint"], stage["steps"])
        for stage in results
    ] == [
        ("mtl", "stages/01_mtl", None, None, 4),
        ("tune_cola", "stages/02_tune_cola", "mtl", "latest", 3),
        ("tune_rte", "stages/03_tune_rte", "mtl", "latest", 3),
        ("last", "stages/04_last", "mtl", "best/average", 2),
    ]
    for stage in results:
        (evaluation,) = (line for line in lines(straight / stage["folder"]) if "eval" in line)
        assert stage["metrics"] == evaluation["eval"]
    table = (run_files / "straight.txt").read_text().split("dev scores of all stages")[1]
    assert [line.split()[:2] for line in table.splitlines()[3:9]] == [
        ["cola", "mtl"],
        ["cola", "tune_cola"],
        ["rte", "mtl"],
        ["rte", "tune_rte"],
        ["stsb", "mtl"],
        ["stsb", "last"],
    ]
    assert load_stages(str(straight / "recipe.yaml"), {}) == load_stages(str(run_files / "recipe.yaml"), {})
    assert main(["evaluate", str(straight)]) == 2
    assert all(f"stages/{stage}" in capsys.readouterr().err for stage in STAGES[:1])
    kept = yaml.safe_load((straight / "stages/02_tune_cola/recipe.yaml").read_text())
    assert kept["init"] == {
        "run": str(straight / "stages/01_mtl"),
        "checkpoint": "latest",
        "heads": "matching",
    }


@pytest.mark.distributed
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_bit_for_bit(straight: Path, killed: Path, stage: str) -> None:
    assert exact(killed / "stages" / stage) == exact(straight / "stages" / stage)
    ours, theirs = weights(killed / "stages" / stage), weights(straight / "stages" / stage)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.distributed
def test_finished_stages_are_kept_and_their_settings_too(run_files: Path, killed: Path) -> None:
    said = (run_files / "killed.txt").read_text()
    assert (
        "stage 1 of 4: mtl (finished, 4 steps)" in said
        and "stage 2 of 4: tune_cola (finished, 3 steps)" in said
    )
    refused = [line for line in said.splitlines() if line.startswith("refused: ")]
    cola, last = (f"{killed}/stages/{stage}/checkpoints" for stage in (STAGES[1], STAGES[3]))
    assert (
        f"refused: stages.tune_cola: {cola}/step_3: optimizer.lr was 0.001 when it was saved and is 0.002 now"
        in refused
    )
    assert f"refused: stages.last: {last}/step_2: train.seed was 3 when it was saved and is 4 now" in refused
    assert (
        sum(
            "stages/02_tune_cola: no stage of this recipe has this number and name; resume with the recipe"
            in line
            for line in refused
        )
        == 1
    )
    torn = (
        "stage tune_cola has begun with the weights of stage mtl, which is not finished; remove this "
        "folder to train tune_cola again"
    )
    assert any(line.startswith(f"refused: {run_files}/torn/stages/02_tune_cola: {torn}") for line in refused)


@pytest.mark.distributed
def test_folders_of_other_runs_are_refused(
    run_files: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run_files / "plain/checkpoints"
    plain.mkdir(parents=True)
    values = yaml.safe_load((run_files / "recipe.yaml").read_text())
    del values["stages"]
    (run_files / "plain.yaml").write_text(yaml.safe_dump(values))

    def said(recipe: str, *flags: str) -> str:
        assert (
            main(
                [
                    "train",
                    "--recipe",
                    str(run_files / recipe),
                    "--deepspeed_config",
                    str(run_files / "zero.json"),
                    *flags,
                ]
            )
            == 2
        )
        return capsys.readouterr().err

    assert "is not empty; add --resume auto" in said("recipe.yaml", "--output_dir", str(straight))
    assert (
        f"{plain.parent}: holds a run without stages; give the recipe without stages that it was run with"
        in said("recipe.yaml", "--output_dir", str(plain.parent), "--resume", "auto")
    )
    assert f"{straight}: holds a run in stages; give the recipe with stages that it was run with" in said(
        "plain.yaml", "--output_dir", str(straight), "--resume", "auto"
    )
    one = str(straight / "stages/01_mtl/checkpoints/step_4")
    assert (
        f"--resume {one}: a run in stages goes on with --resume auto, or with the folder that holds its "
        f"stages/" in said("recipe.yaml", "--resume", one)
    )
    assert f"init.run {straight}: a run in stages; give one of them: {straight}/stages/01_mtl, " in said(
        "plain.yaml", "--output_dir", str(run_files / "new"), "--init.run", str(straight)
    )
