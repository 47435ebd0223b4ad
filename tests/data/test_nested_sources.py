"""Questions from SQuAD's, CoQA's and QuAC's files and from tables:
real files parse, and every bad question is refused with its place.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.question_tasks import CONTEXT, span_task, squad, talk_task, task, write

from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.data.rows.checked import CheckedRow, checked_rows
from mtdnn_ds.data.rows.readers import reader_of
from mtdnn_ds.tasks.layout import ANSWER_TYPES
from mtdnn_ds.tasks.spec import TaskSpec


def rows_of(spec: TaskSpec, split: str = "train", on_bad_row: Any = "refuse") -> list[CheckedRow]:
    source = spec.splits[split]
    return list(
        checked_rows(source, reader_of(spec).parser(spec, source), on_bad_row=on_bad_row, skipped=Counter())
    )


def question(text: str = "Who?", answer: str = "Ada", start: Any = 0, **more: Any) -> dict[str, Any]:
    return {"id": "q", "question": text, "answers": [{"text": answer, "answer_start": start}], **more}


# SQuAD


def test_real_squad_files_parse(real_data: Path) -> None:
    for name, num_rows, num_unanswerable in (
        ("dev-v1.1-partA", 5169, 0),
        ("dev-v1.1-partB", 5401, 0),
        ("dev-v2.0-sample", 1494, 769),
    ):
        rows = rows_of(span_task(real_data / f"SQuAD/{name}.json"))
        assert (len(rows), sum(row.label == 0 for row in rows)) == (num_rows, num_unanswerable)
        for row in rows:
            start, end = row.extra["answer_start"], row.extra["answer_end"]
            assert row.texts[1] == row.extra["context"]
            assert (
                row.extra["context"][start:end] == row.extra["answers"][0].strip()
                if row.label
                else (start, end) == (-1, -1)
            )
    first = rows_of(span_task(real_data / "SQuAD/dev-v1.1-partB.json"))[0]
    assert (first.texts[0], first.label, first.extra["id"]) == (
        "Which NFL team represented the AFC at Super Bowl 50?",
        1.0,
        "56be4db0acb8001400a502ec",
    )
    assert first.extra["answers"] == ["Denver Broncos"] * 3 and first.extra["answer_start"] == 177


def test_bad_questions_are_refused_with_their_place(tmp_path: Path) -> None:
    path = write(
        tmp_path / "train.json",
        squad(
            question(),
            question("  "),
            question(answer="1843", start=30),
            question(answer="Babbage"),
            question(start="0"),
            {"id": "no_answers", "question": "When?"},
            {"id": "none", "question": "When?", "answers": [], "is_impossible": False},
            question(is_impossible=True),
            question(answer=" "),
            "When?",
        ),
    )
    with pytest.raises(DataError) as caught:
        rows_of(span_task(path))
    place = "article 1 (Ada), paragraph 1, question"
    assert str(caught.value).splitlines() == [
        f"{path}: 9 of 10 rows cannot be used; mend them, or leave them out with data.on_bad_row: skip",
        f"  question 2: {place} 2 (q): column 'question' is empty",
        f"  question 3: {place} 3 (q): at 30 stands ' 184', not the answer '1843'; it stands at 31",
        (
            f"  question 4: {place} 4 (q): at 0 stands 'Ada wro', not the answer 'Babbage'; "
            "it stands nowhere in the context"
        ),
        f"  question 5: {place} 5 (q): the answer starts at '0', which is not a whole number",
        f"  question 6: {place} 6 (no_answers): no key 'answers'; (known: id, question)",
        f"  question 7: {place} 7 (none): has no answer, and is_impossible is false",
        f"  question 8: {place} 8 (q): is_impossible, and yet has the answer 'Ada'",
        f"  question 9: {place} 9 (q): column 'answer' is empty",
        f"  question 10: {place} 10: not a JSON object",
    ]
    assert [row.number for row in rows_of(span_task(path), on_bad_row="skip")] == [1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not valid JSON (Expecting property name enclosed in double quotes, line 1, column 2)"),
        ("[1]", "must be a JSON object whose key 'data' holds a list of articles"),
        ('{"data": []}', "has no rows"),
        (b'{"data": "\xff"}', "not valid UTF-8 at byte 10; convert the file, e.g. with iconv -t UTF-8"),
    ],
)
def test_a_broken_file_is_refused(content: str | bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        rows_of(span_task(path))
    assert str(caught.value) == f"{path}: {problem}"


def test_a_part_without_its_key_is_one_bad_row(tmp_path: Path) -> None:
    path = write(
        tmp_path / "train.json",
        {"data": [{"title": "A"}, {"title": "B", "paragraphs": [{"context": "x"}, {"qas": [question()]}]}]},
    )
    with pytest.raises(DataError) as caught:
        rows_of(span_task(path))
    assert str(caught.value).splitlines()[1:] == [
        "  question 1: article 1 (A): no key 'paragraphs'; (known: title)",
        "  question 2: article 2 (B), paragraph 1: no key 'qas'; (known: context)",
        "  question 3: article 2 (B), paragraph 2, question 1 (q): no key 'context'; (known: qas)",
    ]


def test_tables_in_hugging_faces_layout_give_the_same_rows(tmp_path: Path) -> None:
    records = [
        {
            "question": "Who?",
            "context": CONTEXT,
            "answers": {"text": ["Ada", "Ada wrote"], "answer_start": [0, 0]},
        },
        {"question": "Where?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "train.parquet")
    two = question()
    two["answers"].append({"text": "Ada wrote", "answer_start": 0})
    nested = rows_of(
        span_task(write(tmp_path / "train.json", squad(two, {"question": "Where?", "answers": []})))
    )
    for name in ("train.jsonl", "train.parquet"):
        rows = rows_of(
            span_task(tmp_path / name, text_columns=["question", "context"], label_column="answers")
        )
        assert [(row.texts, row.label, row.extra | {"id": ""}) for row in rows] == [
            (row.texts, row.label, row.extra | {"id": ""}) for row in nested
        ]
    (tmp_path / "bad.jsonl").write_text(json.dumps({**records[0], "answers": "Ada"}) + "\n")
    with pytest.raises(
        DataError, match=r"  line 1: 'answers' holds 'Ada', not \{text: \[...\], answer_start: \[...\]\}"
    ):
        rows_of(
            span_task(tmp_path / "bad.jsonl", text_columns=["question", "context"], label_column="answers")
        )


def test_a_test_split_needs_no_answers(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", squad(question()))
    test = write(tmp_path / "test.json", squad({"id": "t", "question": "When?"}))
    spec = task({"kind": "span", "files": {"train": str(train), "test": str(test)}})
    (row,) = rows_of(spec, "test")
    assert row.texts == ("When?", CONTEXT) and row.label != row.label and row.extra["answers"] == []


# CoQA and QuAC


def test_real_coqa_files_parse(real_data: Path) -> None:
    spec = task({}, {"coqa_dir": str(real_data / "CoQA")}, name="coqa")
    train, dev = rows_of(spec), rows_of(spec, "dev")
    assert Counter(ANSWER_TYPES[int(row.label)] for row in (*train, *dev)) == {
        "span": 28,
        "no": 3,
        "unknown": 1,
    }
    found = [row.extra["context"][row.extra["answer_start"] : row.extra["answer_end"]] for row in dev]
    # The third's answer is "no": the span is what supports it.
    assert found[:5] == [
        "white",
        "in a barn",
        "Cotton wasn't alone",
        "with her mommy and 5 other sisters",
        "orange with beautiful white",
    ]
    assert dev[0].texts[0] == "What color was Cotton?"
    assert (
        dev[3].texts[0] == "Where did she live? in a barn Did she live alone? no Who did she live with?"
    )  # the last two turns
    assert dev[1].extra["answers"] == ["in a barn", "in a barn", "in a barn", "in a barn near"]
    assert ANSWER_TYPES[int(train[13].label)] == "unknown" and train[13].extra["answer_start"] == -1


def test_real_quac_files_parse(real_data: Path) -> None:
    spec = task({"history_turns": 1}, {"quac_dir": str(real_data / "QuAC")}, name="quac")
    train, dev = rows_of(spec), rows_of(spec, "dev")
    assert (len(train), len(dev)) == (39, 41)
    second = dev[1]  # yesno is y: a span all the same
    assert ANSWER_TYPES[int(second.label)] == "yes" and not second.extra["is_free"]
    span = second.extra["context"][second.extra["answer_start"] : second.extra["answer_end"]]
    assert span == "in November she gave birth to her daughter Sofia." and len(second.extra["answers"]) == 4
    assert second.texts[0] == (
        "what happened in 1983? "
        "In May 1983, she married Nikos Karvelas, a composer, did they have any children?"
    )
    assert (ANSWER_TYPES[int(dev[2].label)], dev[2].extra["answers"]) == ("unknown", ["CANNOTANSWER"] * 4)
    assert dev[2].extra["id"] == "C_5ab583f64dbb47b995cf59328ea0af43_1_q#2"


STORY = "Ada wrote a program. Babbage built the engine."


def coqa(**changes: Any) -> dict[str, Any]:
    story = {
        "id": "s",
        "story": STORY,
        "questions": [
            {"input_text": "Who wrote?", "turn_id": 1},
            {"input_text": "Did she build?", "turn_id": 2},
        ],
        "answers": [
            {"span_start": 0, "span_end": 9, "span_text": "Ada wrote", "input_text": "Ada", "turn_id": 1},
            {
                "span_start": 21,
                "span_end": 46,
                "span_text": "Babbage built the engine.",
                "input_text": "No",
                "turn_id": 2,
            },
        ],
    }
    return {"version": "1.0", "data": [{**story, **changes}]}


def test_an_answer_without_support_is_looked_for_in_the_whole_story(tmp_path: Path) -> None:
    answers = [
        {
            "span_start": -1,
            "span_end": -1,
            "span_text": "unknown",
            "input_text": "it was Babbage",
            "turn_id": 1,
        },
        {"span_start": -1, "span_end": -1, "span_text": "unknown", "input_text": "yes", "turn_id": 2},
    ]
    first, second = rows_of(talk_task(write(tmp_path / "train.json", coqa(answers=answers))))
    assert STORY[first.extra["answer_start"] : first.extra["answer_end"]] == "Babbage"
    assert (second.label, second.extra["answer_start"], second.extra["answer_end"]) == (
        ANSWER_TYPES.index("yes"),
        0,
        len(STORY),
    )


def test_bad_conversations_are_refused_with_their_place(tmp_path: Path) -> None:
    good = coqa()["data"][0]
    wrong_place = {**good["answers"][0], "span_start": 1}
    nowhere = {"span_start": -1, "span_end": -1, "input_text": "seven", "turn_id": 2}
    quac = {
        "title": "T",
        "paragraphs": [
            {"id": "C", "context": "x y", "qas": [{"id": "C_q#0", "question": "x?", "answers": []}]}
        ],
    }
    data = [
        {**good, "answers": [wrong_place, nowhere]},
        {**good, "answers": good["answers"][:1]},
        {"id": "no_story"},
        {**good, "additional_answers": {"0": [{"input_text": "Ada"}]}},
        quac,
    ]
    with pytest.raises(DataError) as caught:
        rows_of(talk_task(write(tmp_path / "train.json", {"data": data})))
    assert str(caught.value).splitlines()[1:] == [
        (
            "  question 1: conversation 1 (s), question 1: at 1 stands 'da wrote ', "
            "not the answer 'Ada wrote'; it stands at 0"
        ),
        (
            "  question 2: conversation 1 (s), question 2: the answer 'seven' has no span, "
            "and no word in common with the story"
        ),
        "  question 3: conversation 2 (s): 2 questions and 1 answers of one person",
        "  question 4: conversation 3 (no_story): no key 'story'; (known: id)",
        "  question 5: conversation 4 (s): 2 questions and 1 answers of one person",
        (
            "  question 6: conversation 5, paragraph 1 (C), question 1 (C_q#0): no key 'orig_answer'; "
            "did you mean 'answers'? (known: answers, id, question)"
        ),
    ]


def without_place(rows: list[CheckedRow]) -> list[Any]:
    return [(row.texts, row.label, row.extra | {"id": ""}) for row in rows]


def test_conversations_as_on_the_hub_give_the_same_rows(official_files: Path, tmp_path: Path) -> None:
    """Tables made of the official files as the hub's own conversion made them;
    the hub's CoQA has one person's answers.
    """
    columns = {"input_text": "input_text", "answer_start": "span_start", "answer_end": "span_end"}
    rows = [
        {
            "story": story["story"],
            "questions": [each["input_text"] for each in story["questions"]],
            "answers": {
                ours: [each[theirs] for each in story["answers"]] for ours, theirs in columns.items()
            },
        }
        for story in json.loads((official_files / "CoQA/coqa-train-v1.0.json").read_text())["data"]
    ]
    (tmp_path / "coqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = talk_task(tmp_path / "coqa.jsonl", text_columns=["questions", "story"], label_column="answers")
    official = task({}, {"coqa_dir": str(official_files / "CoQA")}, name="coqa")
    assert without_place(rows_of(spec)) == without_place(rows_of(official))

    records = []
    for section in json.loads((official_files / "QuAC/val_v0.2.json").read_text())["data"]:
        for paragraph in section["paragraphs"]:
            asked = paragraph["qas"]
            lists = [(key, ours) for key, ours in (("text", "texts"), ("answer_start", "answer_starts"))]
            records.append(
                {
                    "context": paragraph["context"],
                    "questions": [each["question"] for each in asked],
                    "answers": {
                        ours: [[answer[key] for answer in each["answers"]] for each in asked]
                        for key, ours in lists
                    },
                    "orig_answers": {
                        ours: [each["orig_answer"][key] for each in asked] for key, ours in lists
                    },
                    "yesnos": [["y", "n", "x"].index(each["yesno"]) for each in asked],
                }
            )
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "quac.parquet")
    official = task({}, {"quac_dir": str(official_files / "QuAC")}, name="quac")
    (builtin,) = [task({}, name="quac")]
    table = talk_task(
        tmp_path / "quac.parquet", text_columns=["questions", "context"], label_column="answers"
    )
    # The built-in hub task reads two columns more than a table of a user's own.
    source = replace(table.splits["train"], more_columns=builtin.splits["train"].more_columns)
    rows = rows_of(replace(table, splits={"train": source}))
    assert without_place(rows) == without_place(rows_of(official, "dev"))
    assert [row.texts[1] for row in rows_of(table)] == [row.texts[1] for row in rows]


# Settings


def test_settings_of_questions_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", squad(question()))
    with pytest.raises(ConfigError) as caught:
        span_task(
            path,
            text_columns=["question", "context"],
            label_column="answers",
            history_turns=1,
            labels=["a", "b"],
        )
    assert caught.value.problems == (
        "tasks.mine.labels: a span has no label names; remove the key",
        "tasks.mine.text_columns: has no effect on JSON files, whose layout names their parts; remove it",
        "tasks.mine.label_column: has no effect on JSON files, whose layout names their parts; remove it",
        "tasks.mine.history_turns: has no effect on a span; it belongs to conversational_span; remove it",
    )


def test_built_in_tasks_of_questions() -> None:
    spec = task({}, name="squad_v2")
    assert (spec.splits["dev"].path, spec.splits["dev"].split, spec.splits["dev"].label_column) == (
        "rajpurkar/squad_v2",
        "validation",
        "answers",
    )
    assert spec.options == {"stride": None, "max_answer_tokens": 30, "null_threshold": 0.0}
    assert task({"null_threshold": -1.5}, name="squad_v2").options["null_threshold"] == -1.5
    assert task({}, name="squad").options["null_threshold"] is None
    assert task({}, name="coqa").splits["train"].nested and task({}, name="quac").metrics == ("quac_f1",)
