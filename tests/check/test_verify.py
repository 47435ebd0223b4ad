"""verify: the certificate of a real recipe, and what it says when runs disagree or fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.processes import ROOT, run_command

from mtdnn_ds.check.verify.certificate import Result, certificate
from mtdnn_ds.check.verify.checks import Comparison, _results, _resumed, difference
from mtdnn_ds.check.verify.small import small_recipe
from mtdnn_ds.config.load import load_recipe


def write_run(folder: Path, losses: list[float], first: int = 1, examples: int = 4) -> Path:
    folder.mkdir()
    lines = [
        {"step": step, "loss": loss, "grad_norm": 1.0, "task_examples": {"a": examples}}
        for step, loss in enumerate(losses, start=first)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return folder


def test_differences_are_relative_and_between_equal_steps(tmp_path: Path) -> None:
    theirs = write_run(tmp_path / "theirs", [2.0, 4.0, 8.0])
    assert difference(write_run(tmp_path / "ours", [2.0, 4.0, 8.08]), theirs, 1) == pytest.approx(0.01)
    assert difference(write_run(tmp_path / "late", [4.0, 8.0], first=2), theirs, 2) == 0.0
    with pytest.raises(ValueError, match=r"steps \[1, 2\] against \[1, 2, 3\]"):
        difference(write_run(tmp_path / "short", [2.0, 4.0]), theirs, 1)
    with pytest.raises(ValueError, match="different examples"):
        difference(write_run(tmp_path / "other", [2.0, 4.0, 8.0], examples=5), theirs, 1)


def test_a_failed_group_is_told_once_and_what_came_after_it_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "hidden.json").write_text('{"difference": 1e-7}')
    write_run(tmp_path / "a", [1.0])
    write_run(tmp_path / "b", [1.5])
    comparisons = [Comparison(promise=f"{run} = a", run=run, reference="a") for run in ("a", "b", "c", "d")]
    results = _results(tmp_path, comparisons, {"": "rank 0: no memory"})
    assert [(result.holds, result.why) for result in results] == [
        (True, ""),
        (True, ""),
        (False, ""),
        (False, "rank 0: no memory"),
        (None, "its run was not reached"),
    ]
    text = certificate(results, "my.yaml", 3.0)
    assert (
        " 5.0e-01    0.0001  b = a   DOES NOT HOLD" in text and "2 promises hold, 2 do NOT (my.yaml, " in text
    )


def test_a_figure_of_zero_and_one_that_was_not_measured() -> None:
    text = certificate(
        [
            Result(promise="same", figure=0.0, at_most=0.0),
            Result(promise="other", figure=None, at_most=1e-4, why="one GPU"),
        ],
        "r",
        1,
    )
    assert text.splitlines()[1:4] == [
        "       0         0  same",
        "       -    0.0001  other   not measured",
        "                      one GPU",
    ]


def test_what_the_small_runs_leave_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe(
        str(ROOT / "recipes/quickstart.yaml"),
        {"train.freeze": "embeddings", "optimizer.name": "lamb", "init.run": "runs/x"},
    )
    with caplog.at_level("INFO", "mtdnn_ds"):
        small = small_recipe(recipe, tmp_path / "encoder", steps=4)
    assert caplog.messages == [
        "left out of the small runs: init.run, train.freeze (they belong to the large encoder)",
        "optimizer.name=lamb: adamw in the small runs",
    ]
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["model_type"]) == (2, 64, "bert")
    assert small.train.steps == 4 and small.init.run is None and small.encoder.random_init


@pytest.mark.slow
@pytest.mark.distributed
def test_the_quickstart_recipe_is_verified(tmp_path: Path) -> None:
    file = tmp_path / "certificate.json"
    result = run_command(
        ["-m", "mtdnn_ds", "verify", "recipes/quickstart.yaml", "--certificate", str(file)],
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (
        "17 promises hold (recipes/quickstart.yaml" in result.stdout and "DOES NOT HOLD" not in result.stdout
    )
    written = json.loads(file.read_text())
    assert [each["holds"] for each in written["results"]] == [True] * 17
    figures = {each["promise"]: each["figure"] for each in written["results"]}
    assert figures["resumed = uninterrupted, bit for bit"] == 0.0
    assert 0 < figures["packed = transformers' own forward, unpacked, float64 (hidden states)"] < 1e-5


def test_wrong_flags_are_refused_before_any_run() -> None:
    result = run_command(["-m", "mtdnn_ds", "verify", "recipes/quickstart.yaml", "--max_ranks", "none"])
    assert result.returncode == 2 and "--max_ranks none: must be a whole number" in result.stderr
    result = run_command(
        ["-m", "mtdnn_ds", "verify", "recipes/quickstart.yaml", "--certificate", "/no/such/folder/c.json"]
    )
    assert result.returncode == 2 and "its folder does not exist" in result.stderr


@pytest.mark.parametrize(
    ("on_cuda", "promise", "at_most"),
    [
        (False, "resumed = uninterrupted, bit for bit", 0.0),
        (True, "resumed = uninterrupted (float32 attention on CUDA: to rounding)", 1e-4),
    ],
)
def test_what_resuming_is_held_to(on_cuda: bool, promise: str, at_most: float) -> None:
    compared = _resumed(4, on_cuda=on_cuda)
    assert (compared.promise, compared.at_most, compared.first) == (promise, at_most, 4)
