"""adapt and compare: tiny real experiments,
their tables against the runs' own logs, their budgets, and going on after a stop.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.processes import run_command, training_lines, write_json, zero_config
from plotly.offline import get_plotlyjs

from mtdnn_ds.commands.adapt import amount_of
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.experiments.compare import warmup_of

TASKS = ["quickstart_sentiment", "quickstart_entailment", "quickstart_similarity"]


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 32},
        "tasks": TASKS,
        "mixture": {"rates": dict(zip(TASKS, (3, 2, 1), strict=True))},
        "batch": {"examples_per_step": 12, "max_tokens_per_micro_batch": 2048},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 12, "seed": 5},
        "data": {"cache_dir": str(folder / "cache")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_json(folder / "zero2.json", zero_config(2))
    return folder


def command(run_files: Path, *words: str) -> str:
    ended = run_command(["-m", "mtdnn_ds", *words, "--deepspeed_config", str(run_files / "zero2.json")])
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def picture(path: Path, names: set[str]) -> None:
    """The page is there with its figure, says these names, and fetches nothing."""
    page = path.with_suffix(".html").read_text()
    assert page.startswith("<!doctype html>") and "src=" not in page.replace(get_plotlyjs(), "")
    (figure,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    traces = json.loads(figure)["data"]
    texts = {str(text) for trace in traces for text in (trace.get("name"), *trace["x"])}
    assert names <= texts, texts
    assert all(name in page for name in names)


def last_score(trial: Path, task: str) -> float:
    """Mean of a task's metrics in the last evaluation of a run's log."""
    evaluation = [
        json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines() if '"eval"' in line
    ][-1]
    return statistics.mean(evaluation["eval"][task].values())


def examples_of(trial: Path) -> dict[str, int]:
    totals: dict[str, int] = {}
    for line in training_lines(trial):
        for task, count in line["task_examples"].items():
            totals[task] = totals.get(task, 0) + count
    return totals


@pytest.fixture(scope="module")
def compared(run_files: Path) -> tuple[Path, str]:
    output = command(
        run_files,
        "compare",
        str(run_files / "recipe.yaml"),
        "--seeds",
        "2",
        "--output_dir",
        str(run_files / "compared"),
    )
    return run_files / "compared", output


@pytest.mark.distributed
def test_every_way_of_training_has_the_same_budget(compared: tuple[Path, str]) -> None:
    folder, _ = compared
    together = examples_of(folder / "together_seed_5")
    assert together == {TASKS[0]: 72, TASKS[1]: 48, TASKS[2]: 24}  # 12 steps of 12, rates 3 : 2 : 1
    assert examples_of(folder / "sequence_seed_5") == together
    alone = [examples_of(folder / f"alone_{task}_seed_5") for task in TASKS]
    assert alone == [{TASKS[0]: 72}, {TASKS[1]: 48}, {TASKS[2]: 24}]
    first = training_lines(folder / "sequence_seed_5")[0]["task_examples"]
    assert first == {TASKS[0]: 12}, "a sequence begins with the first task alone"


@pytest.mark.distributed
def test_compares_table_holds_what_the_runs_logged(compared: tuple[Path, str]) -> None:
    folder, output = compared
    table = {
        (row["task"], row["way"], row["seed"]): float(row["score"]) for row in rows(folder / "comparison.csv")
    }
    assert len(table) == 3 * 4 * 2
    for seed in ("5", "6"):
        for task in TASKS:
            assert table[task, "together", seed] == pytest.approx(
                last_score(folder / f"together_seed_{seed}", task)
            )
            assert table[task, "alone", seed] == pytest.approx(
                last_score(folder / f"alone_{task}_seed_{seed}", task)
            )
        evaluations = [
            json.loads(line)
            for line in (folder / f"sequence_seed_{seed}" / "metrics.jsonl").read_text().splitlines()
        ]
        steps = {line["step"]: line["eval"] for line in evaluations if "eval" in line}
        assert list(steps) == [6, 10, 12]  # 72, 48 and 24 of 144 examples
        after = statistics.mean(steps[10][TASKS[1]].values())
        assert table[TASKS[1], "in sequence, after its own block", seed] == pytest.approx(after)
    line = next(line for line in output.splitlines() if line.startswith(TASKS[0]))
    means = {
        way: statistics.mean(table[TASKS[0], way, seed] for seed in ("5", "6"))
        for way in ("alone", "together")
    }
    spread = statistics.stdev(table[TASKS[0], "alone", seed] for seed in ("5", "6"))
    assert f"{means['alone']:.4f} +- {spread:.4f}" in line
    assert f"{means['together'] - means['alone']:+.4f}" in line
    picture(folder / "comparison", {"alone", "together", *TASKS})


@pytest.mark.distributed
def test_a_stopped_comparison_trains_only_what_is_missing(
    run_files: Path, compared: tuple[Path, str]
) -> None:
    folder, output = compared
    assert not list(folder.glob("*/checkpoints")), "finished trials let go of their weights"
    shutil.rmtree(folder / "together_seed_6")
    before = (folder / "together_seed_5" / "metrics.jsonl").read_bytes()
    again = command(
        run_files, "compare", str(run_files / "recipe.yaml"), "--seeds", "2", "--output_dir", str(folder)
    )
    assert again.count("(done before)") == 9
    assert (folder / "together_seed_5" / "metrics.jsonl").read_bytes() == before
    assert again.split("dev score")[1] == output.split("dev score")[1], "the same table"
    refused = run_command(
        [
            "-m",
            "mtdnn_ds",
            "compare",
            str(run_files / "recipe.yaml"),
            "--seeds",
            "2",
            "--output_dir",
            str(folder),
            "--optimizer.lr",
            "0.5",
        ]
    )
    assert refused.returncode == 2
    assert "optimizer.lr was 0.001 when the trial was run and is 0.5 now" in refused.stderr


@pytest.fixture(scope="module")
def adapted(run_files: Path) -> tuple[Path, str]:
    command(
        run_files,
        "train",
        "--recipe",
        str(run_files / "recipe.yaml"),
        "--output_dir",
        str(run_files / "run"),
        "--tasks",
        ",".join(TASKS[1:]),
        "--mixture.rates",
        "proportional",
    )
    flags = [
        "--task",
        TASKS[0],
        "--fractions",
        "0.01,0.1",
        "--samplings",
        "2",
        "--min_steps",
        "3",
        "--epochs",
        "1",
    ]
    refused = run_command(
        [
            "-m",
            "mtdnn_ds",
            "adapt",
            str(run_files / "run"),
            *flags,
            "--head_of",
            TASKS[1],
            "--output_dir",
            str(run_files / "no"),
        ]
    )
    assert refused.returncode == 2 and "kind, head and labels must be equal" in refused.stderr
    return run_files / "adapted", command(
        run_files, "adapt", str(run_files / "run"), *flags, "--output_dir", str(run_files / "adapted")
    )


@pytest.mark.distributed
def test_adapt_trains_both_starts_on_the_same_samples(adapted: tuple[Path, str]) -> None:
    folder, _ = adapted
    table: list[dict[str, Any]] = list(rows(folder / "adaptation.csv"))
    assert [(row["start"], row["fraction"], row["examples"], row["sampling"]) for row in table[:4]] == [
        ("mt-dnn", "0.01", "15", "0"),
        ("plain encoder", "0.01", "15", "0"),
        ("mt-dnn", "0.01", "15", "1"),
        ("plain encoder", "0.01", "15", "1"),
    ]
    assert len(table) == 8
    for row in table:
        trial = (
            folder / row["start"].replace(" ", "_") / f"fraction_{row['fraction']}_sampling_{row['sampling']}"
        )
        assert float(row["score"]) == pytest.approx(last_score(trial, TASKS[0]))
    small = [
        training_lines(folder / start / "fraction_0.01_sampling_0") for start in ("mt-dnn", "plain_encoder")
    ]
    assert [line["tokens"] for line in small[0]] == [line["tokens"] for line in small[1]], (
        "the same examples in the same steps"
    )
    assert (
        len(small[0]) == 3 and len(training_lines(folder / "mt-dnn" / "fraction_0.1_sampling_0")) == 13
    )  # 150 examples in steps of 12
    assert small[0][0]["loss"] != small[1][0]["loss"], "from other weights"
    other = training_lines(folder / "mt-dnn" / "fraction_0.01_sampling_1")
    assert [line["tokens"] for line in other] != [line["tokens"] for line in small[0]], "another sample"


@pytest.mark.distributed
def test_adapts_table_and_picture(adapted: tuple[Path, str]) -> None:
    folder, output = adapted
    scores = [
        float(row["score"])
        for row in rows(folder / "adaptation.csv")
        if row["fraction"] == "0.1" and row["start"] == "mt-dnn"
    ]
    line = next(line for line in output.splitlines() if line.split()[:2] == ["10.0%", "150"])
    assert f"{statistics.mean(scores):.4f} +- {statistics.stdev(scores):.4f}" in line
    picture(folder / "adaptation", {"mt-dnn", "plain encoder"})


def test_every_wrong_amount_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        amount_of(fractions="0.1,2,x", samplings="0", epochs="-1", min_steps="1.5")
    assert list(raised.value.problems) == [
        "--fractions 2: must be numbers above 0 and at most 1, e.g. 0.001,0.01,0.1,1",
        "--fractions x: must be numbers above 0 and at most 1, e.g. 0.001,0.01,0.1,1",
        "--samplings 0: must be a whole number, at least 1",
        "--epochs -1: must be a number above 0",
        "--min_steps 1.5: must be a whole number, at least 1",
    ]


def test_a_run_too_short_for_a_warm_up_has_none() -> None:
    assert [warmup_of(0.1, 60, own) for own in (60, 2, 1)] == [0.1, 0.1, 0.0]
    assert [warmup_of(6, 60, own) for own in (60, 10, 1)] == [0.1, 0.1, 0.0]


def test_what_an_experiment_sets_itself_is_refused_as_a_flag(tmp_path: Path) -> None:
    ended = run_command(["-m", "mtdnn_ds", "adapt", str(tmp_path), "--task", "cola", "--train.seed", "3"])
    assert ended.returncode == 2
    assert "--train.seed: is what adapt itself sets; remove it" in ended.stderr


def test_comparing_one_task_is_refused(run_files: Path) -> None:
    ended = run_command(
        [
            "-m",
            "mtdnn_ds",
            "compare",
            str(run_files / "recipe.yaml"),
            "--tasks",
            TASKS[0],
            "--mixture.rates",
            "uniform",
        ]
    )
    assert ended.returncode == 2
    assert "has one task; compare needs at least two" in ended.stderr
