"""Recipe -> TaskSpecs: what comes out for built-in and user tasks, and the exact text of every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.kinds import KINDS
from mtdnn_ds.tasks.metrics import METRICS, metric_misfit
from mtdnn_ds.tasks.resolve import builtin_task, resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec


def recipe(tasks: Any, **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {"encoder": {"path": "x"}, "train": {"steps": 1}, "tasks": tasks, **sections}
    )


def problems(tasks: Any, **sections: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        resolve_tasks(recipe(tasks, **sections))
    return raised.value.problems


@pytest.fixture
def user_task(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "train.csv").write_text("a,b,y\n")
    return {
        "kind": "classification",
        "text_columns": ["a", "b"],
        "label_column": "y",
        "labels": ["no", "yes"],
        "files": {"train": str(tmp_path / "train.csv")},
    }


def test_table_rows_are_consistent() -> None:
    assert len(BUILTIN_TASKS) == 23
    for task in BUILTIN_TASKS.values():
        assert KINDS[task.kind].has_classes == bool(task.labels)
        assert all(
            metric in METRICS and metric_misfit(metric, task.kind, len(task.labels)) is None
            for metric in task.metrics
        )
        if task.folder_setting:
            assert task.folder.keys() == task.remote.keys()
            assert {len(source.text_columns) for source in task.folder.values()} == {
                len(source.text_columns) for source in task.remote.values()
            }


def test_official_ids_are_class_ids() -> None:
    # ClassLabel names of nyu-mll/glue and stanfordnlp/snli on the Hugging Face hub
    assert {
        name: task.labels for name, task in BUILTIN_TASKS.items() if not name.startswith("quickstart")
    } == {
        "cola": ("unacceptable", "acceptable"),
        "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"),
        "stsb": (),
        "qqp": ("not_duplicate", "duplicate"),
        "mnli": ("entailment", "neutral", "contradiction"),
        "qnli": ("entailment", "not_entailment"),
        "rte": ("entailment", "not_entailment"),
        "wnli": ("not_entailment", "entailment"),
        "ax": ("entailment", "neutral", "contradiction"),
        "snli": ("entailment", "neutral", "contradiction"),
        "scitail": ("neutral", "entails"),
        "qnli_ranking": ("entailment", "not_entailment"),
        "wnut17": (
            "O",
            "B-corporation",
            "I-corporation",
            "B-creative-work",
            "I-creative-work",
            "B-group",
            "I-group",
            "B-location",
            "I-location",
            "B-person",
            "I-person",
            "B-product",
            "I-product",
        ),
        **dict.fromkeys(("squad", "squad_v2", "coqa", "quac"), ()),
    }


def test_builtin_without_folder_comes_from_the_hub() -> None:
    (mnli,) = resolve_tasks(recipe(["mnli"]))
    assert {
        split: (source.format, source.path, source.config, source.split, source.label_column)
        for split, source in mnli.splits.items()
    } == {
        "train": ("hub", "nyu-mll/glue", "mnli", "train", "label"),
        "dev": ("hub", "nyu-mll/glue", "mnli", "validation_matched", "label"),
        "dev_mm": ("hub", "nyu-mll/glue", "mnli", "validation_mismatched", "label"),
        "test": ("hub", "nyu-mll/glue", "mnli", "test_matched", None),
        "test_mm": ("hub", "nyu-mll/glue", "mnli", "test_mismatched", None),
    }
    assert mnli.dev_splits == ("dev", "dev_mm")


def test_glue_dir_takes_the_files_that_are_there(official_files: Path) -> None:
    glue = str(official_files / "glue")
    specs = resolve_tasks(recipe(["cola", "sst2", "mnli"], data={"glue_dir": glue}))
    assert [tuple(spec.splits) for spec in specs] == [
        ("train", "dev", "test"),
        ("train", "dev"),
        ("train", "dev", "dev_mm"),
    ]
    assert specs[0].splits["train"].path == f"{glue}/CoLA/train.tsv"
    assert not specs[0].splits["train"].header and specs[0].splits["test"].header


def test_settings_reach_the_spec(user_task: dict[str, Any]) -> None:
    mnli, mine = resolve_tasks(
        recipe(
            {"mnli": {"dropout": 0.3, "metrics": ["macro_f1"]}, "mine": user_task},
            loss={"scale": {"mine": 2.5}},
        )
    )
    assert (mnli.dropout, mnli.loss_scale, mnli.metrics) == (0.3, 1.0, ("macro_f1",))
    assert (mine.dropout, mine.loss_scale, mine.metrics, mine.labels) == (
        None,
        2.5,
        ("accuracy",),
        ("no", "yes"),
    )
    assert (mine.splits["train"].format, mine.splits["train"].quoted, mine.splits["train"].header) == (
        "csv",
        True,
        True,
    )


def test_numbered_columns_mean_a_file_without_header(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").touch()
    files = {"train": str(tmp_path / "t.tsv"), "test": str(tmp_path / "t.tsv")}
    (task,) = resolve_tasks(
        recipe({"r": {"kind": "regression", "text_columns": ["0"], "label_column": "-1", "files": files}})
    )
    source = task.splits["train"]
    assert (source.header, source.quoted, source.label_column) == (False, False, "-1")
    assert task.splits["test"].label_column is None
    assert task.metrics == ("pearson", "spearman")


def test_ax_is_predicted_but_not_trained() -> None:
    assert problems(["ax"]) == (
        (
            "tasks.ax: this task has no training rows and is only predicted, "
            "with the head of mnli; take it out of 'tasks'"
        ),
    )
    ax: TaskSpec = builtin_task("ax", recipe(["mnli"]).data)
    assert tuple(ax.splits) == ("test",) and ax.labels == BUILTIN_TASKS["mnli"].labels


def test_all_problems_come_at_once(user_task: dict[str, Any]) -> None:
    tasks = {"mnil": {}, "mine": {**user_task, "metrics": ["f2"]}, "rte": {"labels": ["a", "b"]}}
    assert [problem.split(":")[0] for problem in problems(tasks, loss={"scale": {"sst": 1.0}})] == [
        "loss.scale.sst",
        "tasks.mnil",
        "tasks.mine.metrics",
        "tasks.rte.labels",
    ]


def test_unknown_task_gets_the_closest_name() -> None:
    (problem,) = problems(["mnil"])
    assert problem.startswith("tasks.mnil: unknown task 'mnil'; did you mean 'mnli'? (known: ax, cola, ")
    assert problem.endswith("; a task of your own needs kind, text_columns, label_column and files")
    with pytest.raises(ConfigError, match=r"^unknown task 'rtee'; did you mean 'rte'\? "):
        builtin_task("rtee", recipe(["rte"]).data)


def test_builtin_keys_cannot_be_overridden() -> None:
    assert problems({"rte": {"kind": "regression", "files": {"train": "x.csv"}}}) == (
        "tasks.rte.kind: 'rte' is a built-in task, whose kind is fixed; give your own task another name",
        "tasks.rte.files: 'rte' is a built-in task, whose files is fixed; give your own task another name",
    )


def test_missing_glue_file_is_named(tmp_path: Path) -> None:
    assert problems(["rte"], data={"glue_dir": str(tmp_path)}) == (
        (
            f"tasks.rte: data.glue_dir={tmp_path} has no file RTE/train.tsv; "
            "put it there, or unset data.glue_dir to use the hub"
        ),
    )


def test_names_in_mappings_are_checked() -> None:
    assert problems(["rte"], loss={"scale": {"rt": 2.0}}, mixture={"rates": {"rte": 1.0, "cola": 1.0}}) == (
        "loss.scale.rt: no such task in this run; did you mean 'rte'? (known: rte)",
        "mixture.rates.cola: no such task in this run; (known: rte)",
    )


USER_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": ({"kind": None}, "tasks.mine.kind: missing; every task of your own needs it"),
    "no columns": (
        {"text_columns": None},
        "tasks.mine.text_columns: missing; every task of your own needs it",
    ),
    "no label column": (
        {"label_column": None},
        "tasks.mine.label_column: missing; every task of your own needs it",
    ),
    "no labels": (
        {"labels": None},
        "tasks.mine.labels: missing; a classification lists its label names, in class-id order",
    ),
    "labels of a regression": (
        {"kind": "regression"},
        "tasks.mine.labels: a regression has no label names, its label_column holds numbers; remove the key",
    ),
    "label twice": (
        {"labels": ["a", "b", "a"]},
        "tasks.mine.labels: 'a' stands twice; every class has its own name",
    ),
    "empty label": ({"labels": ["a", ""]}, "tasks.mine.labels: a label name is empty"),
    "unknown metric": (
        {"metrics": ["acuracy"]},
        (
            "tasks.mine.metrics: unknown metric 'acuracy'; "
            "did you mean 'accuracy'? (known: accuracy, f1, macro_f1, matthews)"
        ),
    ),
    "metric of another kind": (
        {"metrics": ["pearson"]},
        (
            "tasks.mine.metrics: metric 'pearson' is for regression, similarity; "
            "this task is classification, use accuracy, f1, macro_f1, matthews"
        ),
    ),
    "metric twice": (
        {"metrics": ["f1", "f1"]},
        "tasks.mine.metrics: a metric stands twice, which would count it twice in the task's score",
    ),
    "no rows": ({"files": None}, "tasks.mine: no rows; give exactly one of files, dataset, hub"),
    "two sources": (
        {"hub": "a/b"},
        "tasks.mine: files and hub are both given; give exactly one of files, dataset, hub",
    ),
    "splits beside files": (
        {"splits": {"train": "train"}},
        "tasks.mine.splits: has no effect beside files, whose keys already name the splits; remove it",
    ),
    "hub without splits": (
        {"files": None, "hub": "a/b"},
        "tasks.mine.splits: missing; say which of its splits is what, e.g. {train: train, dev: validation}",
    ),
    "hub without train": (
        {"files": None, "hub": "a/b", "splits": {"dev": "x"}},
        "tasks.mine.splits: has no train split; a task of a run is trained",
    ),
    "label among texts": (
        {"label_column": "b"},
        "tasks.mine.label_column: 'b' is a text column too, so the model would read its answer",
    ),
    "text twice": (
        {"text_columns": ["a", "a"]},
        "tasks.mine.text_columns: 'a' stands twice; a task with one text names one column",
    ),
    "numbers and names": (
        {"text_columns": ["0", "1"]},
        (
            "tasks.mine: columns are given both by number and by name; "
            "numbers (0, 1, -1 ...) are for files without a header, names for files with one"
        ),
    ),
}


@pytest.mark.parametrize("case", USER_CASES)
def test_user_task_refusals(case: str, user_task: dict[str, Any]) -> None:
    changes, expected = USER_CASES[case]
    assert problems({"mine": {**user_task, **changes}}) == (expected,)


def test_user_file_refusals(user_task: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.txt").touch()
    files = {
        "dev": str(tmp_path / "rows.txt"),
        "devel": user_task["files"]["train"],
        "test": str(tmp_path / "gone.csv"),
    }
    assert problems({"mine": {**user_task, "files": files}}) == (
        (
            f"tasks.mine.files.dev={tmp_path}/rows.txt: unknown file type '.txt'; "
            "use .csv, .tsv, .jsonl, .parquet"
        ),
        f"tasks.mine.files.test={tmp_path}/gone.csv: no such file (looked for {tmp_path}/gone.csv)",
        "tasks.mine.files.devel: unknown split; use train, dev, dev_NAME, test or test_NAME",
        "tasks.mine.files: has no train split; a task of a run is trained",
    )


@pytest.mark.parametrize("name", ["average", "my task", "../up"])
def test_task_names_are_safe_folder_names(name: str, user_task: dict[str, Any]) -> None:
    assert problems({name: user_task}) == (
        f"tasks.{name}: a task name is made of up to 100 letters, digits, '_' and '-', and is not 'average'",
    )


def test_saved_dataset_folders(user_task: dict[str, Any], tmp_path: Path) -> None:
    del user_task["files"]
    empty, single, several = tmp_path / "empty", tmp_path / "single", tmp_path / "several"
    for folder in (empty, single, several):
        folder.mkdir()
    (single / "state.json").write_text("{}")
    (several / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    unnamed = tmp_path / "unnamed"
    unnamed.mkdir()
    (unnamed / "dataset_dict.json").write_text(json.dumps({"splits": ["r1", "r2"]}))
    assert problems({"mine": {**user_task, "dataset": str(empty)}}) == (
        (
            f"tasks.mine.dataset={empty}: "
            "not a folder written by datasets' save_to_disk (no dataset_dict.json, no state.json)"
        ),
    )
    assert problems({"mine": {**user_task, "dataset": str(single), "splits": {"train": "train"}}}) == (
        f"tasks.mine.splits: {single} holds one Dataset without splits, which becomes train; remove the key",
    )
    assert problems(
        {"mine": {**user_task, "dataset": str(several), "splits": {"train": "train", "dev": "validatoin"}}}
    ) == (
        (
            f"tasks.mine.splits.dev=validatoin: {several} has no split 'validatoin'; "
            "did you mean 'validation'? (known: train, validation)"
        ),
    )
    assert problems({"mine": {**user_task, "dataset": str(unnamed)}}) == (
        (
            "tasks.mine.splits: missing; say which of its splits is what, e.g. "
            "{train: train, dev: validation} (it has: r1, r2)"
        ),
    )
    (task,) = resolve_tasks(recipe({"mine": {**user_task, "dataset": str(single)}}))
    assert (task.splits["train"].format, task.splits["train"].split) == ("datasets", None)
    (task,) = resolve_tasks(
        recipe({"mine": {**user_task, "hub": "a/b:c", "splits": {"train": "t", "dev_x": "v"}}})
    )
    assert {split: (source.path, source.config, source.split) for split, source in task.splits.items()} == {
        "train": ("a/b", "c", "t"),
        "dev_x": ("a/b", "c", "v"),
    }
