"""What plan finds in a mixture's data: rows in two places, tasks hardly seen, odd labels.

Counts of real GLUE files are those of their raw texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.glue_rows import COLUMNS
from transformers import AutoTokenizer

from mtdnn_ds.check.mixture import mixture_findings
from mtdnn_ds.cli import main
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.data.cache.row_hashes import hashed_blocks
from mtdnn_ds.runs.setup import RunData, build_plan, prepare_run_data
from mtdnn_ds.tasks.resolve import resolve_tasks


def write_recipe(folder: Path, encoder: Path, tasks: Any, **more: Any) -> Path:
    recipe = {
        "encoder": {"path": str(encoder)},
        "tasks": tasks,
        "train": {"steps": 4},
        "batch": {"examples_per_step": 8},
    }
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({**recipe, "data": {"cache_dir": str(folder / "cache")}, **more}, sort_keys=False)
    )
    return folder / "recipe.yaml"


def opened(recipe_path: Path) -> tuple[RunData, Any]:
    recipe = load_recipe(str(recipe_path), {})
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    return data, build_plan(recipe, data)


def rows_of(glue: Path, task: str, file: str) -> list[tuple[str, ...]]:
    """Raw texts in small letters, as an uncased tokenizer reads them, without the project's own readers."""
    folder, columns, _, _ = COLUMNS[task]
    lines = [line for line in (glue / folder / file).read_text(encoding="utf-8-sig").split("\n") if line]
    return [
        tuple(line.split("\t")[column].lower() for column in columns)
        for line in lines[0 if task == "cola" else 1 :]
    ]


@pytest.fixture(scope="module")
def glue_findings(
    tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path, real_data: Path
) -> tuple[list[str], list[str]]:
    folder = tmp_path_factory.mktemp("glue")
    more = {
        "data": {"glue_dir": str(real_data / "glue"), "cache_dir": str(folder / "cache")},
        "train": {"epochs": 1},
    }
    data, plan = opened(write_recipe(folder, tiny_encoder, ["cola", "mrpc", "stsb", "rte"], **more))
    return mixture_findings(data, plan), mixture_findings(data, plan, hashes_per_pass=5_000)


def test_rows_of_glue_in_two_places(
    glue_findings: tuple[list[str], list[str]], real_data: Path, tiny_encoder: Path
) -> None:
    found, _ = glue_findings
    lines = [line.split(" (")[0] for line in found]
    train, dev = (
        {task: rows_of(real_data / "glue", task, f"{name}.tsv") for task in ("cola", "stsb", "mrpc")}
        for name in ("train", "dev")
    )
    own = {task: sum(row in set(train[task]) for row in dev[task]) for task in train}
    assert own == {"cola": 16, "stsb": 6, "mrpc": 0}
    assert (
        "cola/dev: 16 of 1,043 rows stand in cola/train too" in lines
        and "stsb/dev: 6 of 1,500 rows stand in stsb/train too" in lines
    )
    assert not any(line.startswith("mrpc/dev") and "mrpc/train" in line for line in lines)
    # STS-B is made of MRPC's sentences, among others.
    across = sum(row in set(train["mrpc"]) for row in dev["stsb"])
    assert across == 110 and "stsb/dev: 110 of 1,500 rows stand in mrpc/train too" in lines
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    ids = [tuple(row) for row in tokenizer([row[0] for row in train["cola"]])["input_ids"]]
    repeated = len(ids) - len(set(ids))
    (cola,) = [line for line in found if line.startswith("cola/train")]
    assert (
        cola
        == f"cola/train: {repeated} of 8,551 rows stand in it before (0.3%), 11 of them with another label"
    )
    assert not any(line.startswith("rte") for line in lines)


def test_the_number_of_passes_changes_nothing(glue_findings: tuple[list[str], list[str]]) -> None:
    whole, parts = glue_findings
    assert whole == parts and len(whole) > 5


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A task with 96 % of one label, one that never stands,
    and a question in SQuAD's layout that another task has too.
    """
    folder = tmp_path_factory.mktemp("small")
    odd = [
        {
            "text": f"this is the long and plain sentence number {place}",
            "label": "rare" if place in (3, 70) else "usual",
        }
        for place in range(100)
    ]
    dev = [
        {"text": "a sentence that nobody has seen before today", "label": "unseen"},
        {"text": odd[7]["text"], "label": "usual"},
    ]
    question, context = (
        "which of the two rivers is the longer one ?",
        "the danube is longer than the rhine , by much .",
    )
    pair = [
        {"a": question, "b": "the danube is longer .", "label": "yes"},
        {"a": "who came to the house that evening ?", "b": "ann .", "label": "no"},
    ]
    asked = [
        {"question": question, "context": context, "answers": {"text": ["the danube"], "answer_start": [0]}}
    ]
    words = [{"words": ["ada", "wrote", "it"], "tags": ["B-PER", "O", "O"]}] * 3
    files = {
        name: {"train": write_rows(folder / f"{name}.jsonl", rows)}
        for name, rows in {"odd": odd, "pair": pair, "asked": asked, "words": words}.items()
    }
    files["odd"]["dev"] = write_rows(folder / "odd_dev.jsonl", dev)
    tasks = {
        "odd": {
            "kind": "classification",
            "text_columns": ["text"],
            "labels": ["usual", "rare", "unseen", "never"],
        },
        "pair": {"kind": "classification", "text_columns": ["a", "b"], "labels": ["yes", "no"]},
        "asked": {"kind": "span", "text_columns": ["question", "context"], "label_column": "answers"},
        "words": {
            "kind": "token_classification",
            "text_columns": ["words"],
            "label_column": "tags",
            "labels": ["O", "B-PER", "I-PER"],
        },
    }
    return write_recipe(
        folder,
        tiny_encoder,
        {name: {"label_column": "label", **task, "files": files[name]} for name, task in tasks.items()},
    )


def test_small_mixture(small: Path) -> None:
    data, plan = opened(small)
    assert mixture_findings(data, plan) == [
        "odd/dev: 1 of 2 rows stand in odd/train too (row 2 is row 8 there); its score counts them as unseen",
        "asked/train: 1 of 2 texts stand in pair/train too (row 1 is row 1 there)",
        "words/train: 2 of 3 rows stand in it before (66.7%)",
        (
            "odd: 30 of its 100 training examples are seen in the run (0.30 epochs); "
            "train longer, or raise its rate"
        ),
        (
            "words: 1 of its 3 training examples are seen in the run (0.33 epochs); "
            "train longer, or raise its rate"
        ),
        (
            "odd: label 'unseen' never stands in train, but in dev 1 times; "
            "take it out of labels, or look at the data"
        ),
        (
            "odd: label 'never' never stands in train, nor anywhere else; "
            "take it out of labels, or look at the data"
        ),
        (
            "odd/train: 98.0% of its labels are 'usual': always answering it has this accuracy; "
            "look at another metric"
        ),
    ]


def test_plan_prints_them_unless_told_not_to(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(small)]) == 0
    said = capsys.readouterr().out
    assert "\n8 findings in the data:\n  odd/dev: 1 of 2 rows stand in odd/train too" in said
    assert main(["plan", str(small), "--skip_findings"]) == 0
    assert "findings in the data" not in capsys.readouterr().out


def test_hashes_do_not_depend_on_blocks(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = opened(small)
    for spec in data.specs:
        split = data.examples[spec.name]["train"].split
        (whole,) = hashed_blocks(split)
        with monkeypatch.context() as changed:
            changed.setattr("mtdnn_ds.data.cache.row_hashes._TOKENS_PER_BLOCK", 7)
            blocks = list(hashed_blocks(split))
        assert len(blocks) > 1 or split.num_rows == 1
        for name in ("rows", "row_hashes", "text_hashes", "text_rows", "text_lengths"):
            np.testing.assert_array_equal(
                np.concatenate([getattr(block, name) for block in blocks]), getattr(whole, name)
            )
