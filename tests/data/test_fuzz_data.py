"""Changed and torn data files of every kind and format:
refused with file and row, or prepared; never a traceback. Recipes are in config/test_fuzz.py.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.fuzzing import EXAMPLES, JSON_PIECES, changed, fuzz, refused_or_done, text_of_json, torn
from hypothesis import event, example, given
from hypothesis import strategies as st

from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.runs.setup import RunData, build_plan, prepare_run_data
from mtdnn_ds.tasks.resolve import resolve_tasks

pytestmark = pytest.mark.timeout(120 + EXAMPLES)  # of each test: an input that hangs fails it

SQUAD = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "Ada wrote it.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "Who?",
                            "answers": [{"text": "Ada", "answer_start": 0}],
                            "is_impossible": False,
                        }
                    ],
                }
            ],
        }
    ]
}
COQA = {
    "data": [
        {
            "id": "s",
            "story": "Ada wrote it.",
            "questions": [{"turn_id": 1, "input_text": "Who?"}],
            "answers": [
                {"turn_id": 1, "input_text": "Ada", "span_text": "Ada", "span_start": 0, "span_end": 3}
            ],
            "additional_answers": {"0": [{"turn_id": 1, "input_text": "Ada did"}]},
        }
    ]
}
QUAC = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "id": "p",
                    "context": "Ada wrote it. CANNOTANSWER",
                    "qas": [
                        {
                            "id": "1",
                            "question": "Who?",
                            "answers": [{"text": "Ada", "answer_start": 0}],
                            "orig_answer": {"text": "Ada", "answer_start": 0},
                            "yesno": "x",
                            "followup": "y",
                        }
                    ],
                }
            ],
        }
    ]
}
ROWS = [
    {
        "a": f"a {n}",
        "b": "b",
        "label": n % 2,
        "score": 0.5,
        "query": n // 2,
        "choices": ["x", "y"],
        "tokens": ["Ada", "x"],
        "tags": ["B-p", "O"],
        "answers": {"text": ["a"], "answer_start": [0]},
        "questions": ["Who?"],
        "said": {"input_text": ["a"], "answer_start": [0], "answer_end": [1]},
    }
    for n in range(4)
]
CLASSES = {"label_column": "label", "labels": ["0", "1"]}


def _parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


LINES = b"".join(text_of_json(row) + b"\n" for row in ROWS)
# name -> (the file's ending, a whole file, the task's settings)
DATA: dict[str, tuple[str, bytes, dict[str, Any]]] = {
    "csv": (
        "csv",
        b'a,b,label\nhello,you,0\n"x, y",z,1\n',
        {"kind": "classification", "text_columns": ["a", "b"], **CLASSES},
    ),
    "tsv": (
        "tsv",
        b"a\tlabel\nhello\t0\nyou\t1\n",
        {"kind": "classification", "text_columns": ["a"], **CLASSES},
    ),
    "numbered": (
        "tsv",
        b"hello\t0\nyou\t1\n",
        {"kind": "classification", "text_columns": ["0"], "label_column": "-1", "labels": ["0", "1"]},
    ),
    "jsonl": ("jsonl", LINES, {"kind": "regression", "text_columns": ["a", "b"], "label_column": "score"}),
    "similarity": (
        "jsonl",
        LINES,
        {"kind": "similarity", "text_columns": ["a", "b"], "label_column": "score"},
    ),
    "choices": (
        "jsonl",
        LINES,
        {
            "kind": "multiple_choice",
            "text_columns": ["a"],
            "choice_columns": ["choices"],
            "label_column": "label",
        },
    ),
    "ranking": ("jsonl", LINES, {"kind": "ranking", "text_columns": ["b", "a"], **CLASSES}),
    "grouped": (
        "jsonl",
        LINES,
        {
            "kind": "ranking",
            "text_columns": ["b", "a"],
            "group_column": "query",
            "objective": "pairwise",
            **CLASSES,
        },
    ),
    "words": (
        "jsonl",
        LINES,
        {
            "kind": "token_classification",
            "text_columns": ["tokens"],
            "label_column": "tags",
            "labels": ["O", "B-p", "I-p"],
        },
    ),
    "conll": (
        "conll",
        b"# id\nAda\tB-p\nwrote\tO\n\nit\tO\n",
        {"kind": "token_classification", "labels": ["O", "B-p", "I-p"]},
    ),
    "squad": ("json", text_of_json(SQUAD), {"kind": "span", "null_threshold": 0.0}),
    "spans": ("jsonl", LINES, {"kind": "span", "text_columns": ["b", "a"], "label_column": "answers"}),
    "coqa": ("json", text_of_json(COQA), {"kind": "conversational_span"}),
    "quac": ("json", text_of_json(QUAC), {"kind": "conversational_span"}),
    "turns": (
        "jsonl",
        LINES,
        {"kind": "conversational_span", "text_columns": ["questions", "a"], "label_column": "said"},
    ),
    "text": (
        "txt",
        b"One line.\nAnother one.\n\nA second document.\nIts end.\n",
        {"kind": "masked_lm", "next_sentence": True},
    ),
    "parquet": ("parquet", _parquet(ROWS), {"kind": "classification", "text_columns": ["a", "b"], **CLASSES}),
    "plain": (
        "parquet",
        _parquet(ROWS, compression="none", use_dictionary=False),
        {
            "kind": "token_classification",
            "text_columns": ["tokens"],
            "label_column": "tags",
            "labels": ["O", "B-p", "I-p"],
        },
    ),
}


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(DATA)))
    ending, whole, _ = DATA[name]
    if draw(st.integers(0, 3)) == 0:
        return name, draw(
            torn(
                [whole],
                JSON_PIECES
                if ending.startswith("json")
                else [b"\t", b",", b'"', b"\n", b"\xff", b"\x00", b"a" * 200_000],
            )
        )
    if ending == "json":
        return name, text_of_json(draw(changed([json.loads(whole)])))
    if ending == "jsonl":
        rows = draw(st.lists(st.one_of(st.sampled_from(ROWS), changed(ROWS)), min_size=1, max_size=3))
        return name, b"\n".join(text_of_json(row) for row in rows)
    if ending == "parquet":
        column = draw(st.sampled_from(["a", "b", "label", "tokens", "tags"]))
        typed = st.sampled_from(
            [
                st.integers(-3, 3),
                st.floats(),
                st.text(max_size=5),
                st.binary(max_size=5),
                st.booleans(),
                st.lists(st.text(max_size=3), max_size=3),
                st.dates(),
                st.decimals(0, 1),
            ]
        )
        cells = draw(
            draw(typed).flatmap(
                lambda cell: st.lists(st.one_of(st.none(), st.just(cell)), min_size=4, max_size=4)
            )
        )
        return name, _parquet([{**row, column: cell} for row, cell in zip(ROWS, cells, strict=True)])
    return name, draw(torn([whole], [line + b"\n" for line in whole.split(b"\n")]))


@given(file=data_files(), on_bad_row=st.sampled_from(["refuse", "skip"]))
@example(file=("parquet", DATA["parquet"][1][:200]), on_bad_row="skip")
@fuzz
def test_data_files(file: tuple[str, bytes], on_bad_row: str, tmp_path: Path, tiny_encoder: Path) -> None:
    name, content = file
    ending, _, task = DATA[name]
    event(name)
    (tmp_path / f"rows.{ending}").write_bytes(content)
    recipe = {
        "encoder": {"path": str(tiny_encoder), "max_length": 16},
        "tasks": {
            "task": {
                **task,
                "files": dict.fromkeys(("train", "dev", "test"), str(tmp_path / f"rows.{ending}")),
            }
        },
        "train": {"steps": 20},
        "data": {"cache_dir": str(tmp_path / "cache"), "on_bad_row": on_bad_row},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def read() -> RunData:
        settings = load_recipe(str(tmp_path / "recipe.yaml"), {})
        data = prepare_run_data(settings, resolve_tasks(settings))
        build_plan(settings, data)
        return data

    data = refused_or_done(read)  # fails on anything but a refusal in words
    assert data is None or data.train_sizes["task"] > 0
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_whole_files_are_taken(tmp_path: Path, tiny_encoder: Path) -> None:
    """What the inputs are changed from is in order: a refusal is the change's."""
    for name, (ending, content, task) in DATA.items():
        (tmp_path / f"rows.{ending}").write_bytes(content)
        recipe = {
            "encoder": {"path": str(tiny_encoder), "max_length": 16},
            "tasks": {f"my_{name}": {**task, "files": {"train": str(tmp_path / f"rows.{ending}")}}},
            "train": {"steps": 20},
            "data": {"cache_dir": str(tmp_path / "cache")},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        settings = load_recipe(str(tmp_path / "recipe.yaml"), {})
        assert prepare_run_data(settings, resolve_tasks(settings)).train_sizes[f"my_{name}"] >= 1
