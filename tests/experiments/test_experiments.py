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
from helpers.said import logged
from plotly.offline import get_plotlyjs
from scipy.stats import ttest_rel

from mtdnn_ds.commands.adapt import amount_of
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.experiments.compare import Comparison, trials_of, warmup_of
from mtdnn_ds.experiments.compare_report import TaskFacts, report
from mtdnn_ds.runs.setup import build_plan, prepare_run_data
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.train.preflight.checks import checked_run

TASKS = ["quickstart_sentiment", "quickstart_entailment", "quickstart_similarity"]
DEV_ROWS = {"quickstart_sentiment": 250, "quickstart_entailment": 300, "quickstart_similarity": 200}


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
    for way in ("alone", "together"):
        scores = [table[TASKS[0], way, seed] for seed in ("5", "6")]
        assert f"{statistics.mean(scores):.4f} +- {statistics.stdev(scores):.4f}" in line
    picture(folder / "comparison", {"alone", "together", *TASKS})


@pytest.mark.distributed
def test_alone_a_task_has_the_updates_that_it_has_together(compared: tuple[Path, str]) -> None:
    """As many, with as many examples in each. Version 0.4 had whole steps alone: 6, 4 and 2."""
    folder, _ = compared
    for seed in (5, 6):
        together = training_lines(folder / f"together_seed_{seed}")
        for task in TASKS:
            in_steps = [line["task_examples"].get(task, 0) for line in together]
            alone = training_lines(folder / f"alone_{task}_seed_{seed}")
            assert [line["task_examples"][task] for line in alone] == [count for count in in_steps if count]
            assert len(alone) == 12


@pytest.mark.distributed
def test_alone_a_task_sees_the_rows_that_it_sees_together(compared: tuple[Path, str]) -> None:
    """The plans of the trials' own recipes give the same rows of the task, in the same epochs."""
    folder, _ = compared
    plans = {}
    for name in ("together", *(f"alone_{task}" for task in TASKS)):
        recipe = load_recipe(str(folder / f"{name}_seed_5" / "recipe.yaml"), {})
        plans[name] = build_plan(recipe, prepare_run_data(recipe, resolve_tasks(recipe)))
        written = json.loads((folder / f"{name}_seed_5" / "plan.json").read_text())
        assert written["fingerprint"] == plans[name].fingerprint

    for index, task in enumerate(TASKS):
        for step in range(1, 13):
            together, alone = plans["together"].step(step), plans[f"alone_{task}"].step(step)
            own = together.task_ids == index
            assert alone.rows.tolist() == together.rows[own].tolist()
            assert alone.epochs.tolist() == together.epochs[own].tolist()


@pytest.mark.distributed
def test_differences_are_paired_by_seed(compared: tuple[Path, str]) -> None:
    folder, output = compared
    scores: dict[tuple[str, str], list[float]] = {}
    for row in rows(folder / "comparison.csv"):  # seed by seed
        scores.setdefault((row["task"], row["way"]), []).append(float(row["score"]))

    found = {row["task"]: row for row in rows(folder / "differences.csv")}
    assert list(found) == [*TASKS, "average"]
    second_table = output.split("together - alone, seed by seed")[1]
    page, spreads = (folder / "comparison.html").read_text(), []
    for task in TASKS:
        ours, theirs = scores[task, "together"], scores[task, "alone"]
        low, high = ttest_rel(ours, theirs).confidence_interval(0.95)
        low, high = low + 0.0, high + 0.0  # no -0.0
        spreads.append(high - low)
        words = "no difference seen"
        if not low <= 0 <= high:
            words = "higher" if low > 0 else "lower"

        row = found[task]
        assert float(row["mean"]) == pytest.approx(statistics.mean(ours) - statistics.mean(theirs))
        assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high))
        assert (row["verdict"], row["updates"], row["seeds"]) == (words, "12", "2")
        assert row["dev_rows"] == str(DEV_ROWS[task])

        line = next(line for line in second_table.splitlines() if line.startswith(task))
        assert line.split()[1] == str(DEV_ROWS[task]) and line.endswith(words)
        for place in (line, page):
            assert f"[{low:+.4f}, {high:+.4f}]" in place and words in place
    assert max(spreads) > 0, "seeds without any spread would test nothing"
    assert "fewer updates, of whole steps: quickstart_sentiment 6 instead of 12" in second_table


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


def test_every_way_keeps_the_recipes_mixture(run_files: Path) -> None:
    """Its order too, but in sequence, which has none; and K steps, of which alone takes its part."""
    overrides = {"mixture.mixing": "per_step", "mixture.order": "stratified", "schedule.warmup": "6"}
    recipe, deepspeed = str(run_files / "recipe.yaml"), str(run_files / "zero2.json")
    comparison = Comparison(recipe=recipe, num_seeds=1, deepspeed_config=deepspeed, overrides=overrides)
    facts = {
        task: TaskFacts(updates=own, sequence_updates=own, block_end=end, dev_rows=1)
        for task, own, end in zip(TASKS, (6, 4, 2), (6, 10, 12), strict=True)
    }
    whole = checked_run(recipe, deepspeed, overrides, world_size=1)
    together, sequence, *alone = [trial.run.recipe for trial in trials_of(comparison, whole, 12, facts, 7)]
    assert together.mixture == whole.recipe.mixture and sequence.mixture.mixing == "sequential"
    assert [run.mixture.only_task for run in alone] == TASKS
    for run in alone:
        assert run.mixture.model_copy(update={"only_task": None}) == whole.recipe.mixture
    for run in (together, sequence, *alone):
        assert (run.train.steps, run.train.seed, run.schedule.warmup) == (12, 7, 0.5)  # 6 of 12 steps


def test_comparing_a_part_is_refused(run_files: Path) -> None:
    whole = [*("-m", "mtdnn_ds", "compare", str(run_files / "recipe.yaml"))]
    ended = run_command([*whole, "--mixture.only_task", TASKS[0]])
    assert ended.returncode == 2
    assert f"mixture.only_task={TASKS[0]}: is what compare itself sets; remove it" in ended.stderr


def test_one_seed_shows_no_spread(tmp_path: Path) -> None:
    """And a sequence whose updates are equal up to the rounding is not said to have fewer."""
    facts = {
        "a": TaskFacts(updates=4, sequence_updates=4, block_end=4, dev_rows=1043),
        "b": TaskFacts(updates=2, sequence_updates=3, block_end=6, dev_rows=40),
    }
    results = {
        "together_seed_0": {6: {"a": 0.75, "b": 0.5}},
        "sequence_seed_0": {4: {"a": 0.5, "b": 0.25}, 6: {"a": 0.25, "b": 0.5}},
        "alone_a_seed_0": {4: {"a": 0.5}},
        "alone_b_seed_0": {2: {"b": 0.75}},
    }
    with logged() as said:
        report(tmp_path, facts, [0], results)

    differences = [line.split(None, 4) for line in said if "one seed: no spread" in line]
    assert differences == [
        ["a", "1,043", "4", "+0.2500", "-  one seed: no spread"],
        ["b", "40", "2", "-0.2500", "-  one seed: no spread"],
        ["average", "+0.0000", "-", "one", "seed: no spread"],
    ]
    assert [row["deviation"] for row in rows(tmp_path / "differences.csv")] == ["", "", ""]
    assert "one seed: no spread" in (tmp_path / "comparison.html").read_text()
    assert not any("fewer updates" in line for line in said)


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
