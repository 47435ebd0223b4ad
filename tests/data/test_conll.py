"""Tagged words from .conll files and from list columns:
which lines are words, what is refused, and that both give the same rows.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mtdnn_ds.config.errors import DataError
from mtdnn_ds.data.rows.checked import CheckedRow, checked_rows
from mtdnn_ds.data.rows.readers import READERS
from mtdnn_ds.data.sources.names import place_of
from mtdnn_ds.data.sources.tables import iterate_rows
from mtdnn_ds.tasks.spec import Source, TaskSpec

LABELS = ("O", "B-per", "I-per", "B-loc", "I-loc")


def source_of(path: Path, text: str | bytes, **changes: Any) -> Source:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Source(
        **{**dict(format="conll", path=str(path), text_columns=("0",), label_column="-1"), **changes}
    )


def rows_of(
    source: Source, on_bad_row: Any = "refuse", skipped: Counter[str] | None = None
) -> list[CheckedRow]:
    spec = TaskSpec(name="ner", kind="token_classification", labels=LABELS, metrics=("entity_f1",), splits={})
    parse = READERS["token_classification"].parser(spec, source)
    return list(
        checked_rows(source, parse, on_bad_row=on_bad_row, skipped=Counter() if skipped is None else skipped)
    )


def test_sentences_end_at_blank_lines_and_the_number_is_that_of_their_first_line(tmp_path: Path) -> None:
    text = "-DOCSTART-\tO\n\nEli\tB-per\nsings\tO\n\t\n\n  \r\nin\tO\r\nBad Ems\tB-loc"
    source = source_of(tmp_path / "a.conll", "\ufeff" + text)
    assert list(iterate_rows(source)) == [
        (3, (["Eli", "sings"], ["B-per", "O"])),
        (8, (["in", "Bad Ems"], ["O", "B-loc"])),
    ]
    first, second = rows_of(source)
    assert (first.number, first.texts, first.extra) == (3, ("Eli", "sings"), {"tags": [1, 0]})
    assert (second.number, second.texts, second.extra) == (8, ("in", "Bad Ems"), {"tags": [0, 3]})


def test_columns_between_blanks_as_in_conll_2003(tmp_path: Path) -> None:
    text = (
        "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-per\n"
        "rejects VBZ B-VP O\n# NN B-NP O\n\n# NN B-NP O\n7 CD I-NP O\n"
    )
    rows = rows_of(source_of(tmp_path / "a.conll", text))
    assert [row.texts for row in rows] == [("EU", "rejects", "#"), ("#", "7")]
    assert rows[0].extra["tags"] == [1, 0, 0]


def test_comments_of_conll_u_are_left_out_and_words_that_begin_with_a_hash_are_not(tmp_path: Path) -> None:
    text = (
        "# newdoc\n# sent_id = 1\n# text = #nlp is O\n1\t#nlp\t_\tB-loc\n"
        "2\tis\t_\tO\n3\t#\t_\tO\n\n# sent_id = 2\n1\tEli\t_\tB-per\n"
    )
    columns = {"text_columns": ("1",), "label_column": "3"}
    assert [row.texts for row in rows_of(source_of(tmp_path / "a.conll", text, **columns))] == [
        ("#nlp", "is", "#"),
        ("Eli",),
    ]
    assert rows_of(source_of(tmp_path / "b.conll", "#nlp\tB-loc\n#\tO\n"))[0].texts == ("#nlp", "#")


def test_a_test_set_needs_no_tags(tmp_path: Path) -> None:
    words, tagged = "#nlp\nis\n\n# id 7 x\nEli\n", "#nlp\tO\nis\tB-loc\n\n# id 7\nEli\tO\n"
    for number, text in enumerate((words, tagged)):
        rows = rows_of(source_of(tmp_path / f"{number}.conll", text, label_column=None))
        assert [(row.texts, row.extra["tags"]) for row in rows] == [
            (("#nlp", "is"), [-1, -1]),
            (("Eli",), [-1]),
        ]


def test_bad_sentences_are_named_with_their_word(tmp_path: Path) -> None:
    text = b"a\tO\n\nb\tX\n\nc\n\nd\tO\ne\tO\tO\n\nf\t\n\ng\tO\n\xff\tO\n\nh\tB-pre\n"
    source = source_of(tmp_path / "a.conll", text)
    with pytest.raises(DataError) as raised:
        rows_of(source)
    assert str(raised.value) == (
        f"{place_of(source)}: 6 of 7 rows cannot be used; "
        "mend them, or leave them out with data.on_bad_row: skip\n"
        "  line 3: word 1 ('b'): unknown label 'X'; (known: B-loc, B-per, I-loc, I-per, O)\n"
        "  line 5: line 5 has 1 fields instead of 2\n"
        "  line 7: line 8 has 3 fields instead of 2\n"
        "  line 10: word 1 ('f'): the label is missing\n"
        "  line 12: line 13 is not valid UTF-8; convert the file, e.g. with iconv -t UTF-8\n"
        "  line 15: word 1 ('h'): unknown label 'B-pre'; "
        "did you mean 'B-per'? (known: B-loc, B-per, I-loc, I-per, O)"
    )
    skipped: Counter[str] = Counter()
    assert [row.texts for row in rows_of(source, "skip", skipped)] == [("a",)]
    assert skipped == {
        "unknown label": 2,
        "wrong number of fields": 2,
        "missing label": 1,
        "invalid UTF-8": 1,
    }


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("a O\n", {"label_column": "4"}, "no column 4; its lines have 2 fields, numbered from 0"),
        ("a\nb\n", {}, "no column beside the word's for the tag; its lines have 1 fields, numbered from 0"),
        ("\n\n", {}, "has no rows"),
        ("a O\n".encode("utf-16").decode("latin-1"), {}, "is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole(
    tmp_path: Path, text: str, columns: dict[str, Any], message: str
) -> None:
    source = source_of(tmp_path / "a.conll", text.encode("latin-1"), **columns)
    with pytest.raises(DataError, match=f"^{source.path}: {message}$"):
        rows_of(source)


def test_list_columns_give_the_same_rows_from_every_source(tmp_path: Path) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokens, tags = [["Eli", "\u200b", "sings"], ["Ems"]], [["B-per", "I-per", "O"], ["B-loc"]]
    columns = {"text_columns": ("tokens",), "label_column": "tags"}
    lines = (
        '{"tokens": ["Eli", "\\u200b", "sings"], "tags": ["B-per", "I-per", "O"]}\n'
        '{"tokens": ["Ems"], "tags": [3]}\n'
    )
    jsonl = source_of(tmp_path / "a.jsonl", lines, format="jsonl", **columns)
    pq.write_table(pa.table({"tags": tags, "tokens": tokens}), tmp_path / "a.parquet")
    # The dataset's own order of names is another one; rows carry the names.
    names = datasets.ClassLabel(names=["B-loc", "I-per", "O", "B-per"])
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(names)}
    )
    own_ids = [[names.str2int(tag) for tag in row] for row in tags]
    datasets.Dataset.from_dict({"tokens": tokens, "tags": own_ids}, features=features).save_to_disk(
        tmp_path / "saved"
    )
    sources = [
        jsonl,
        Source(format="parquet", path=str(tmp_path / "a.parquet"), **columns),  # type: ignore[arg-type]
        Source(format="datasets", path=str(tmp_path / "saved"), **columns),  # type: ignore[arg-type]
    ]
    for source in sources:
        assert [(row.number, row.texts, row.extra["tags"]) for row in rows_of(source)] == [
            (1, ("Eli", "\u200b", "sings"), [1, 2, 0]),
            (2, ("Ems",), [3]),
        ]


@pytest.mark.parametrize(
    ("tokens", "tags", "problem"),
    [
        ('"a b"', '["O"]', "column 'tokens' holds 'a b', not a list of words"),
        ("[]", "[]", "column 'tokens' has no word"),
        ('["", " "]', '["O", "O"]', "column 'tokens' has no word"),
        ('["a", null]', '["O", "O"]', "word 2: column 'tokens' holds None, not a text"),
        ('["a"]', '"O"', "column 'tags' holds 'O', not a list of tags"),
        ('["a", "b"]', '["O"]', "1 tags for 2 words"),
        ('["a"]', "[5]", "word 1 ('a'): unknown label 5; (known: B-loc, B-per, I-loc, I-per, O)"),
    ],
)
def test_bad_lists_are_refused(tmp_path: Path, tokens: str, tags: str, problem: str) -> None:
    line = f'{{"tokens": {tokens}, "tags": {tags}}}\n'
    source = source_of(
        tmp_path / "a.jsonl", line, format="jsonl", text_columns=("tokens",), label_column="tags"
    )
    with pytest.raises(DataError) as raised:
        rows_of(source)
    assert str(raised.value).splitlines()[1] == f"  line 1: {problem}"


def test_the_real_wnut_files(real_data: Path) -> None:
    counts = {}
    for split in ("train", "dev", "test"):
        source = Source(
            format="conll",
            path=str(real_data / f"WNUT17/{split}.conll"),
            text_columns=("0",),
            label_column="-1",
        )
        rows = [row for _, row in iterate_rows(source)]
        counts[split] = (
            len(rows),
            sum(len(words) for words, _ in rows),
            sum(tag.startswith("B-") for _, tags in rows for tag in tags),
        )
    # Counted with grep: lines with a tab and a tag, B- tags; sentences as in the data's README.
    assert counts == {"train": (3394, 62730, 1975), "dev": (1009, 15733, 836), "test": (1287, 23394, 1079)}
