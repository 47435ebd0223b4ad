"""data.drop_leaked_rows: training rows of development and test splits are left out, of every kind of task.

Counts of real GLUE files are those of their raw texts.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.glue_rows import COLUMNS

from mtdnn_ds.check.mixture import mixture_findings
from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.cache.leaked_rows import leaked_rows
from mtdnn_ds.data.examples.sampled import train_labels
from mtdnn_ds.runs.folder import plan_record
from mtdnn_ds.runs.setup import RunData, build_plan, prepare_run_data
from mtdnn_ds.tasks.resolve import resolve_tasks

SAME = "the very same plain sentence stands here"


def recipe_of(folder: Path, encoder: Path, tasks: Any, *, drops: bool = True, **data: Any) -> Recipe:
    values = {
        "encoder": {"path": str(encoder), "max_length": 24},
        "tasks": tasks,
        "train": {"epochs": 6},
        "batch": {"examples_per_step": 8},
        "data": {"cache_dir": str(folder / "cache"), "drop_leaked_rows": drops, **data},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return load_recipe(str(folder / "recipe.yaml"), {})


def opened(recipe: Recipe) -> RunData:
    return prepare_run_data(recipe, resolve_tasks(recipe))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Real files


def raw_rows(glue: Path, task: str, split: str) -> list[tuple[str, ...]]:
    """Raw texts in small letters, as an uncased tokenizer reads them, without the project's own readers."""
    folder, columns, _, _ = COLUMNS[task]
    has_header = task != "cola" or split == "test"
    if task == "cola" and split == "test":
        columns = (1,)
    text = (glue / folder / f"{split}.tsv").read_text(encoding="utf-8-sig")
    lines = [line for line in text.split("\n") if line][1 if has_header else 0 :]
    return [tuple(line.split("\t")[column].lower() for column in columns) for line in lines]


def test_glue_rows_of_other_tasks_splits_are_left_out(
    real_data: Path, tiny_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks, glue = ["cola", "mrpc", "stsb", "rte"], real_data / "glue"
    train = {task: raw_rows(glue, task, "train") for task in tasks}
    elsewhere = {
        f"{task}/{split}": set(raw_rows(glue, task, split)) for task in tasks for split in ("dev", "test")
    }
    counted = {
        task: {
            name: number
            for name, rows in elsewhere.items()
            if (number := sum(row in rows for row in train[task]))
        }
        for task in tasks
    }
    # 110 of 1,500 STS-B dev rows are MRPC's training rows, 48 of 408 MRPC dev rows STS-B's.
    assert counted["mrpc"] == {"stsb/dev": 110, "stsb/test": 119}
    assert counted["stsb"] == {"mrpc/dev": 48, "mrpc/test": 498, "stsb/dev": 6, "stsb/test": 9}

    with caplog.at_level(logging.INFO):
        data = opened(recipe_of(tmp_path, tiny_encoder, tasks, glue_dir=str(glue)))
    assert {task: dict(found.places) for task, found in data.leaks.items()} == {
        task: places for task, places in counted.items() if places
    }
    anywhere = set().union(*elsewhere.values())
    for task in tasks:
        kept = [number for number, row in enumerate(train[task]) if row not in anywhere]
        assert data.examples[task]["train"].rows.tolist() == kept
        assert set(data.examples[task]) == {"train", "dev"}  # evaluation is as it was
    assert data.train_sizes["mrpc"] == 3_668 - 229 and len(data.leaks["stsb"].rows) == 561
    assert (
        "mrpc: 229 of 3,668 training rows left out: they stand in stsb/dev (110), stsb/test (119) "
        "(data.drop_leaked_rows)"
    ) in caplog.messages


# Small files


@pytest.fixture
def kinds(tmp_path: Path) -> dict[str, Any]:
    """Tasks of several kinds; of each the training rows 1 and 3 of 5 stand in its dev split or another's."""
    context = " ".join(f"word{number} and more of it" for number in range(12))

    def texts(name: str, number: int) -> dict[str, Any]:
        rows: dict[str, dict[str, Any]] = {
            "one": {"text": f"{SAME} {number}", "label": "ab"[number % 2]},
            "scores": {"a": f"{SAME} {number}", "b": "a score of it", "label": float(number)},
            "asked": {
                "question": f"which is number {number} ?",
                "context": f"{number} {context}",
                "answers": {"text": ["word1"], "answer_start": [context.index("word1") + 2]},
            },
            "words": {"words": ["ada", "wrote", str(number)], "tags": ["B-PER", "O", "O"]},
            "chosen": {
                "start": f"{SAME} {number}",
                "first": "it ends",
                "second": "it goes on",
                "label": number % 2,
            },
        }
        return rows[name]

    tasks: dict[str, dict[str, Any]] = {
        "one": {"kind": "classification", "text_columns": ["text"], "labels": ["a", "b"]},
        "scores": {"kind": "regression", "text_columns": ["a", "b"]},
        "asked": {"kind": "span", "text_columns": ["question", "context"], "label_column": "answers"},
        "words": {
            "kind": "token_classification",
            "text_columns": ["words"],
            "label_column": "tags",
            "labels": ["O", "B-PER", "I-PER"],
        },
        "chosen": {
            "kind": "multiple_choice",
            "text_columns": ["start"],
            "choice_columns": ["first", "second"],
        },
    }
    for name, task in tasks.items():
        task.setdefault("label_column", "label")
        task["files"] = {
            "train": write_rows(tmp_path / f"{name}.jsonl", [texts(name, number) for number in range(5)]),
            "dev": write_rows(tmp_path / f"{name}_dev.jsonl", [texts(name, number) for number in (3, 7)]),
            "test": write_rows(tmp_path / f"{name}_test.jsonl", [texts(name, number) for number in (8, 1)]),
        }
    return tasks


def test_every_kind_loses_the_rows_of_any_split(
    kinds: dict[str, Any], tiny_encoder: Path, tmp_path: Path
) -> None:
    without = opened(recipe_of(tmp_path, tiny_encoder, kinds, drops=False))
    recipe = recipe_of(tmp_path, tiny_encoder, kinds)
    data = opened(recipe)
    assert without.leaks == {}
    for name in kinds:
        whole, examples = without.examples[name]["train"], data.examples[name]["train"]
        assert sorted(set(whole.rows.tolist())) == [0, 1, 2, 3, 4]
        assert sorted(set(examples.rows.tolist())) == [0, 2, 4]
        assert [examples.source_row(number) for number in range(examples.num_examples)] == [
            whole.source_row(number) for number in range(whole.num_examples) if whole.rows[number] % 2 == 0
        ]
        assert examples.split.fingerprint != whole.split.fingerprint
        assert data.leaks[name].record() == {
            "left_out": 2,
            "of": 5,
            "stand_in": {f"{name}/dev": 1, f"{name}/test": 1},
        }
    # A question's windows go together.
    assert (
        without.train_sizes["asked"] > 5 and data.train_sizes["asked"] * 5 == 3 * without.train_sizes["asked"]
    )

    plan = build_plan(recipe, data)
    assert plan.fingerprint != build_plan(recipe, without).fingerprint
    assert plan_record(plan, data.leaks)["left_out"]["one"]["left_out"] == 2


def test_the_number_of_passes_changes_nothing(
    kinds: dict[str, Any], tiny_encoder: Path, tmp_path: Path
) -> None:
    data = opened(recipe_of(tmp_path, tiny_encoder, kinds, drops=False))
    prepared = {
        task: {name: examples.split for name, examples in splits.items()}
        for task, splits in data.examples.items()
    }
    whole, parts = leaked_rows(prepared), leaked_rows(prepared, hashes_per_pass=3)
    assert whole.keys() == parts.keys() == kinds.keys()
    for task, found in whole.items():
        assert found.rows.tolist() == parts[task].rows.tolist() == [3]
        assert found.places == parts[task].places == {f"{task}/dev": 1}


def test_samples_are_drawn_of_what_is_left(kinds: dict[str, Any], tiny_encoder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{SAME} {number}", "label": "ab"[number % 2]} for number in range(100)]
    one = {**kinds["one"], "train_fraction": 0.5}
    one["files"] = {**one["files"], "train": write_rows(tmp_path / "many.jsonl", rows)}
    data = opened(recipe_of(tmp_path, tiny_encoder, {"one": one}))
    train = data.examples["one"]["train"]
    # Of rows 0 to 99 rows 1, 3, 7 and 8 stand elsewhere.
    assert train.num_examples == 48 and not {1, 3, 7, 8} & set(train.rows.tolist())
    assert train_labels(train).tolist() == (train.rows % 2).tolist()


def test_random_segments_are_not_of_documents_left_out(tiny_encoder: Path, tmp_path: Path) -> None:
    """The long document stands in dev: without it, every second segment is of a short one."""
    long = "\n".join(f"zebra {number} went over the hill ." for number in range(9))
    short = [f"a cat {number} sat there .\nthen it left the room ." for number in range(6)]
    (tmp_path / "train.txt").write_text("\n\n".join([long, *short]) + "\n")
    (tmp_path / "dev.txt").write_text("\n\n".join([long, "nobody was there .\nthe end ."]) + "\n")
    task = {
        "kind": "masked_lm",
        "next_sentence": True,
        "mask_rate": 0.01,
        "files": {name: str(tmp_path / f"{name}.txt") for name in ("train", "dev")},
    }

    def tokens(drops: bool) -> set[int]:
        train = opened(recipe_of(tmp_path, tiny_encoder, {"texts": task}, drops=drops)).train_sets[0]
        short_ones = np.flatnonzero(train.rows > 0)
        assert (train.rows == 0).any() != drops and len(short_ones) == 6
        seen: set[int] = set()
        for epoch in range(20):
            seen |= set(train.gather(short_ones, np.full(6, epoch)).input_ids.tolist())
        return seen

    only_long = tokens(False) - tokens(True)
    assert len(only_long) >= 5  # zebra, went, over, the hill


def test_a_task_that_keeps_no_row_is_refused(
    kinds: dict[str, Any], tiny_encoder: Path, tmp_path: Path
) -> None:
    kinds["scores"]["files"]["train"] = kinds["scores"]["files"]["dev"]
    with pytest.raises(ConfigError) as refused:
        opened(recipe_of(tmp_path, tiny_encoder, kinds))
    assert refused.value.problems == (
        "tasks.scores: all 2 training rows stand in scores/dev, and data.drop_leaked_rows leaves them out; "
        "give it other rows, or take the task out of 'tasks'",
    )


def test_plan_counts_and_finds_what_is_left(
    kinds: dict[str, Any], tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {name: kinds[name] for name in ("one", "words")}
    recipe = recipe_of(tmp_path, tiny_encoder, tasks, drops=False)
    data = opened(recipe)
    found = mixture_findings(data, build_plan(recipe, data))
    assert [line.split(" (")[0] for line in found if "rows stand in" in line] == [
        "one/dev: 1 of 2 rows stand in one/train too",
        "words/dev: 1 of 2 rows stand in words/train too",
    ]

    recipe_of(tmp_path, tiny_encoder, tasks)
    assert main(["plan", str(tmp_path / "recipe.yaml")]) == 0
    said = capsys.readouterr().out
    assert "rows stand in" not in said
    where = "one/dev (1), one/test (1) (data.drop_leaked_rows)"
    assert f"\none: 2 of 5 training rows left out: they stand in {where}\n" in said


def test_labels_that_only_leaked_rows_have_are_found(
    kinds: dict[str, Any], tiny_encoder: Path, tmp_path: Path
) -> None:
    """B-PER stands in the rows of dev alone."""
    rows = [
        {"words": ["ada", "wrote", str(number)], "tags": ["B-PER" if number == 3 else "O", "O", "O"]}
        for number in range(5)
    ]
    kinds["words"]["files"]["train"] = write_rows(tmp_path / "words.jsonl", rows)
    recipe = recipe_of(tmp_path, tiny_encoder, {"words": kinds["words"]})
    data = opened(recipe)
    (line,) = [line for line in mixture_findings(data, build_plan(recipe, data)) if "'B-PER'" in line]
    assert line.startswith("words: label 'B-PER' never stands in train, but in dev 2 times")
