"""The learning study (benchmarks/learning): sound runs, words that follow from results. Trains nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import ROOT

from benchmarks.learning.data import ROWS_NOT_SCORED
from benchmarks.learning.plain_loop import WAYS, batches_of
from benchmarks.learning.plots import adaptation_curve, paired_lines
from benchmarks.learning.runs import RECIPE, Result, StudyRun, _with_settings, append_result, read_results
from benchmarks.learning.summary import forgetting, summary
from benchmarks.learning.tables import TABLES, Inputs, Table
from mtdnn_ds.config.load import load_recipe


def result(way: str, seed: int, accuracy: float) -> Result:
    return Result(
        name=f"{way}_seed_{seed}", way=way, seed=seed, at={}, settings="", steps=1, tokens=1, seconds=1.0,
        scores={"rte": {"accuracy": accuracy}}, precision="bf16",
    )  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_made_of_sound_recipes(name: str, real_data: Path, tmp_path: Path) -> None:
    table = TABLES[name]
    inputs = Inputs(data=real_data, folder=tmp_path, glue_run=tmp_path / "glue_small")
    runs = table.runs(inputs, table.seeds)
    assert len({run.name for run in runs}) == len(runs)
    assert table.reference in {run.way for run in runs}

    tasks: set[str] = set()
    for run in runs:
        recipe = load_recipe(str(RECIPE), {**run.flags, "train.seed": str(run.seed)})
        tasks |= recipe.tasks.keys()
    assert set(table.scored) <= tasks


def test_tasks_that_are_not_scored_keep_few_development_rows(real_data: Path, tmp_path: Path) -> None:
    TABLES["rte_mnli"].runs(Inputs(data=real_data, folder=tmp_path, glue_run=None), [1])
    lines = (tmp_path / "glue/MNLI/dev_matched.tsv").read_text().splitlines()
    assert len(lines) == 1 + ROWS_NOT_SCORED
    assert (tmp_path / "glue/RTE/dev.tsv").resolve() == (real_data / "glue/RTE/dev.tsv").resolve()


def test_differences_are_taken_seed_by_seed() -> None:
    """+0.02, +0.04 and +0.03: mean 0.03, deviation 0.01, t(0.975, 2) = 4.3027 times 0.01 / sqrt(3)."""
    results = [result("alone", seed, score) for seed, score in ((1, 0.50), (2, 0.60), (3, 0.55))]
    results += [result("with mnli", seed, score) for seed, score in ((3, 0.58), (1, 0.52), (2, 0.64))]
    lines = [*summary(TABLES["rte_mnli"], results)]
    assert lines[2:] == [
        "| alone | rte |  | 0.5500 +- 0.0500 | 3 |  |  |  |",
        "| with mnli | rte |  | 0.5800 +- 0.0600 | 3 | +0.0300 +- 0.0100 | [+0.0052, +0.0548] | higher |",
    ]


def test_what_a_task_forgets_after_its_own_block() -> None:
    """STS-B's block is the second: 0.84 - 0.80 and 0.86 - 0.80, mean 0.05, deviation 0.0141."""

    def evaluated(score: float) -> dict[str, dict[str, float]]:
        return {task: {"score": score} for task in TABLES["sharing"].scored}

    in_turn = [
        replace(
            result("in turn", seed, 0.5),
            earlier={"160": evaluated(0.1), "320": evaluated(own), "480": evaluated(0.7)},
            scores=evaluated(0.8),
        )
        for seed, own in ((1, 0.84), (2, 0.86))
    ]
    mixed = result("hard", 1, 0.5)
    assert [*forgetting(TABLES["sharing"], [mixed, *in_turn])][2:] == [
        "| cola | 0.1000 +- 0.0000 | 0.8000 +- 0.0000 | -0.7000 +- 0.0000 | [-0.7000, -0.7000] | lower |",
        "| stsb | 0.8500 +- 0.0141 | 0.8000 +- 0.0000 | +0.0500 +- 0.0141 | [-0.0771, +0.1771] | "
        "no difference seen |",
        "| mrpc | 0.7000 +- 0.0000 | 0.8000 +- 0.0000 | -0.1000 +- 0.0000 | [-0.1000, -0.1000] | lower |",
    ]
    assert [*forgetting(TABLES["sharing"], [mixed])] == []


def test_a_run_that_another_table_has_trained_is_not_trained_again(tmp_path: Path) -> None:
    append_result(tmp_path / "four_tasks.jsonl", result("four tasks", 1, 0.5))
    assert _with_settings("other", tmp_path) is None
    assert _with_settings("", tmp_path) == result("four tasks", 1, 0.5)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "results" / "rte_mnli.jsonl"
    assert read_results(file) == {}
    for seed in (1, 2):
        append_result(file, result("alone", seed, 0.5))
    assert [*read_results(file)] == ["alone_seed_1", "alone_seed_2"]
    assert read_results(file)["alone_seed_2"] == result("alone", 2, 0.5)


def test_committed_results_are_of_runs_of_their_table(real_data: Path, tmp_path: Path) -> None:
    inputs = Inputs(data=real_data, folder=tmp_path, glue_run=tmp_path)
    for file in (ROOT / "benchmarks/learning/results").glob("*.jsonl"):
        table: Table | None = TABLES.get(file.stem)
        if table is None:
            continue
        names = {run.name for run in table.runs(inputs, table.seeds)}
        assert read_results(file).keys() <= names, file


def test_fixed_batches_are_the_same_rows_in_every_epoch() -> None:
    data = {task: [(f"{task} {row}", "", 0) for row in range(100)] for task in ("rte", "mnli")}

    def batches(way: str) -> set[tuple[str, ...]]:
        steps = [*batches_of(data, WAYS[way], np.random.default_rng(1))]
        assert len(steps) == 468
        return {tuple(first for first, _, _ in pairs) for _, pairs in steps}

    assert len(batches("mt-dnn's choices")) == 2 * 4  # 32, 32, 32 and 4 rows of each task, again and again
    assert len(batches("plain loop")) > 400


def test_names_of_runs_hold_their_places() -> None:
    run = StudyRun(way="mt-dnn", seed=2, flags={}, at={"fraction": "0.1", "sampling": 3})
    assert run.name == "mt-dnn_fraction_0.1_sampling_3_seed_2"


def test_pictures_are_the_same_for_the_same_results(tmp_path: Path) -> None:
    pairs = [result(way, seed, 0.5 + seed / 100) for way in ("alone", "with mnli") for seed in (1, 2)]
    adapted = [
        replace(result(way, 1, 0.6), scores={"scitail": {"accuracy": 0.6}}, at={"fraction": fraction})
        for way in ("plain", "mt-dnn")
        for fraction in ("0.01", "1")
    ]
    for number in (1, 2):
        paired_lines(pairs, "rte", ("alone", "with mnli"), tmp_path / f"pairs_{number}.svg")
        adaptation_curve(adapted, "scitail", tmp_path / f"curve_{number}.svg")

    for name, text in (("pairs", "mean of 2 seeds"), ("curve", "training rows")):
        drawn = (tmp_path / f"{name}_1.svg").read_text()
        assert drawn == (tmp_path / f"{name}_2.svg").read_text()
        assert text in drawn
