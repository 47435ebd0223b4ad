"""Raw and checked rows: every real file in full,
every bad row with its exact message, every format the same rows, the generator.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtdnn_ds.config.errors import DataError
from mtdnn_ds.config.recipe import DataSettings
from mtdnn_ds.data.rows.checked import CheckedRow, checked_rows, texts_and_label
from mtdnn_ds.data.sources import generated
from mtdnn_ds.data.sources.tables import fingerprint, iterate_rows
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.resolve import builtin_task
from mtdnn_ds.tasks.spec import Kind, Source, TaskSpec

LABELS = ("negative", "positive")


def read(
    source: Source,
    *,
    kind: Kind = "classification",
    labels: tuple[str, ...] = LABELS,
    on_bad_row: Literal["refuse", "skip"] = "refuse",
) -> tuple[list[CheckedRow], dict[str, int]]:
    skipped: Counter[str] = Counter()
    spec = TaskSpec(name="mine", kind=kind, labels=labels, metrics=(), splits={"train": source})
    return list(
        checked_rows(source, texts_and_label(spec, source), on_bad_row=on_bad_row, skipped=skipped)
    ), dict(skipped)


def refusal(source: Source, **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        read(source, **options)
    return str(raised.value)


def text_file(path: Path, content: str | bytes, **changes: Any) -> Source:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    form = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl"}[path.suffix]
    options: dict[str, Any] = {
        "format": form,
        "path": str(path),
        "text_columns": ("text",),
        "label_column": "label",
        "quoted": form == "csv",
    }
    return Source(**{**options, **changes})


# Rows and class counts of the data as published (README of the shared folder;
# counted with `cut` and `sort | uniq -c`).
REAL_FILES = {
    ("cola", "train"): (8551, {0: 2528, 1: 6023}),
    ("cola", "dev"): (1043, {0: 322, 1: 721}),
    ("cola", "test"): (1063, None),
    ("sst2", "train"): (67349, {0: 29780, 1: 37569}),
    ("sst2", "dev"): (872, {0: 428, 1: 444}),
    ("mrpc", "train"): (3668, {0: 1194, 1: 2474}),
    ("mrpc", "dev"): (408, {0: 129, 1: 279}),
    ("mrpc", "test"): (1725, None),
    ("stsb", "train"): (5749, None),
    ("stsb", "dev"): (1500, None),
    ("stsb", "test"): (1379, None),
    ("qqp", "train"): (31868, {0: 20107, 1: 11761}),
    ("qqp", "dev"): (1000, {0: 623, 1: 377}),
    ("mnli", "train"): (9999, {0: 3408, 1: 3313, 2: 3278}),
    ("mnli", "dev"): (9815, {0: 3479, 1: 3123, 2: 3213}),
    ("mnli", "dev_mm"): (1000, {0: 346, 1: 319, 2: 335}),
    ("qnli", "train"): (19476, {0: 9768, 1: 9708}),
    ("qnli", "dev"): (5463, {0: 2702, 1: 2761}),
    ("rte", "train"): (2490, {0: 1249, 1: 1241}),
    ("rte", "dev"): (277, {0: 146, 1: 131}),
    ("rte", "test"): (3000, None),
    ("wnli", "train"): (635, {0: 323, 1: 312}),
    ("wnli", "dev"): (71, {0: 40, 1: 31}),
    ("snli", "train"): (9999, {0: 3327, 1: 3322, 2: 3350}),
    ("snli", "dev"): (9842, {0: 3329, 1: 3235, 2: 3278}),
    ("scitail", "dev"): (1304, {0: 647, 1: 657}),
    ("scitail", "test"): (2126, {0: 1284, 1: 842}),
}


def real_source(real_data: Path, task: str, split: str) -> Source:
    folder = {"snli": real_data / "SNLI", "scitail": real_data / "SciTail" / "tsv_format"}.get(
        task, real_data / "glue"
    )
    source = BUILTIN_TASKS[task].folder[split]
    return replace(source, path=str(folder / source.path))


@pytest.mark.parametrize(("task", "split"), REAL_FILES)
def test_real_files_parse_in_full(task: str, split: str, real_data: Path) -> None:
    num_rows, class_counts = REAL_FILES[task, split]
    spec = BUILTIN_TASKS[task]
    source = real_source(real_data, task, split)
    rows, skipped = read(source, kind=spec.kind, labels=spec.labels)
    assert (len(rows), skipped) == (num_rows, {})
    if class_counts is not None:
        assert Counter(int(row.label) for row in rows) == class_counts
    elif split == "test":
        assert all(math.isnan(row.label) for row in rows)
    else:
        assert all(0 <= row.label <= 5 for row in rows) and len({row.label for row in rows}) > 50
    # The number of a row is the line an editor shows.
    lines = Path(source.path).read_text(encoding="utf-8").split("\n")
    assert all(
        row.texts[0] in lines[row.number - 1] and row.texts[-1] in lines[row.number - 1]
        for row in rows[:: num_rows // 50]
    )


def test_mrpc_quotes_and_bom_are_read_as_they_are(real_data: Path) -> None:
    rows, _ = read(real_source(real_data, "mrpc", "train"), labels=BUILTIN_TASKS["mrpc"].labels)
    assert rows[0] == CheckedRow(
        number=2,
        texts=(
            (
                'Amrozi accused his brother, whom he called "the witness", '
                "of deliberately distorting his evidence."
            ),
            (
                'Referring to him as only "the witness", '
                "Amrozi accused his brother of deliberately distorting his evidence."
            ),
        ),
        label=1.0,
    )


def test_mnli_label_is_found_by_name_beside_five_annotators(tmp_path: Path) -> None:
    header = (
        "index\tpromptID\tpairID\tgenre\ts1b\ts2b\ts1p\ts2p\tsentence1\tsentence2\t"
        "label1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
    )
    row = "0\t-\t-\t-\t-\t-\t-\t-\tA\tB\tentailment\tneutral\tneutral\tentailment\tcontradiction\tneutral\n"
    source = text_file(
        tmp_path / "dev.tsv", header + row, text_columns=("sentence1", "sentence2"), label_column="gold_label"
    )
    assert read(source, labels=BUILTIN_TASKS["mnli"].labels)[0] == [CheckedRow(2, ("A", "B"), 1.0)]


def test_rows_without_gold_label_are_left_out_and_counted(tmp_path: Path) -> None:
    source = text_file(
        tmp_path / "a.tsv", "text\tlabel\nA\t-\nB\tneutral\nC\t-1\n", label_words={"-": "", "-1": ""}
    )
    assert read(source, labels=BUILTIN_TASKS["snli"].labels) == (
        [CheckedRow(3, ("B",), 1.0)],
        {"no gold label": 2},
    )


ROWS = [("fine film", "positive"), ('she said "no", twice', "negative"), ("línea\u2028dos, fin", "positive")]


def test_short_lines_of_qqp_are_left_out_and_counted(tmp_path: Path) -> None:
    """Its official files have some; lines that are too long are refused as anywhere."""
    folder = tmp_path / "QQP"
    folder.mkdir()
    header, good = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n", "1\t2\t3\tWhy?\tHow?\t0\n"
    (folder / "train.tsv").write_text(header + good + "4\t5\t6\tWhat is the\n" + good)
    source = builtin_task("qqp", DataSettings(glue_dir=str(tmp_path))).splits["train"]

    rows, skipped = read(source, labels=("not_duplicate", "duplicate"))
    assert [row.number for row in rows] == [2, 4]
    assert skipped == {"wrong number of fields": 1}

    (folder / "train.tsv").write_text(header + good + good.replace("\n", "\tmore\n"))
    assert "line 3: 7 fields instead of 6" in refusal(source)


def test_scitail_is_found_in_its_unpacked_archive(tmp_path: Path) -> None:
    files = tmp_path / "SciTailV1.1" / "tsv_format"
    files.mkdir(parents=True)
    (files / "scitail_1.0_train.tsv").write_text("Ice is cold\tIce is frozen\tentails\n")

    for folder in (files, files.parent):
        task = builtin_task("scitail", DataSettings(scitail_dir=str(folder)))
        assert task.splits["train"].path == str(files / "scitail_1.0_train.tsv")


def test_formats_give_the_same_rows(tmp_path: Path) -> None:
    quoted = [text.replace('"', '""') for text, _ in ROWS]
    csv = text_file(
        tmp_path / "a.csv",
        "label,text\r\n"
        + "".join(f'{label},"{text}"\r\n' for text, (_, label) in zip(quoted, ROWS, strict=True)),
    )
    tsv = text_file(
        tmp_path / "a.tsv",
        "\ufefflabel\ttext\n" + "".join(f"{label}\t{text}\n" for text, label in ROWS) + "\n\n",
    )
    jsonl = text_file(
        tmp_path / "a.jsonl",
        "".join(
            json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in ROWS
        ),
    )
    pq.write_table(
        pa.table({"label": [LABELS.index(label) for _, label in ROWS], "text": [text for text, _ in ROWS]}),
        tmp_path / "a.parquet",
    )
    parquet = Source(
        format="parquet", path=str(tmp_path / "a.parquet"), text_columns=("text",), label_column="label"
    )
    expected = [((text,), float(LABELS.index(label))) for text, label in ROWS]
    for source, first_number in ((csv, 2), (tsv, 2), (jsonl, 1), (parquet, 1)):
        rows, _ = read(source)
        assert [(row.texts, row.label) for row in rows] == expected
        assert [row.number for row in rows] == [first_number, first_number + 1, first_number + 2]


def test_quoted_record_over_two_lines_is_numbered_by_its_first(tmp_path: Path) -> None:
    source = text_file(tmp_path / "a.csv", 'text,label\n"one\ntwo",positive\nthree,bad\n')
    assert refusal(source) == (
        f"{tmp_path}/a.csv: 1 of 2 rows cannot be used; "
        "mend them, or leave them out with data.on_bad_row: skip\n"
        "  line 4: unknown label 'bad'; (known: negative, positive)"
    )


def test_every_bad_row_is_named_with_its_reason(tmp_path: Path) -> None:
    content = (
        b"text\tlabel\ngood\tpositive\n\tpositive\nx\tpositiv\ny\t\nz\na\tb\tc\n\xff\tpositive\n\ng\t2\n"
    )
    source = text_file(tmp_path / "a.tsv", content)
    assert refusal(source) == (
        f"{tmp_path}/a.tsv: 8 of 9 rows cannot be used; "
        "mend them, or leave them out with data.on_bad_row: skip\n"
        "  line 3: column 'text' is empty\n"
        "  line 4: unknown label 'positiv'; did you mean 'positive'? (known: negative, positive)\n"
        "  line 5: the label is missing\n"
        "  line 6: 1 fields instead of 2\n"
        "  line 7: 3 fields instead of 2\n"
        "  line 8: not valid UTF-8; convert the file, e.g. with iconv -t UTF-8\n"
        "  line 9: an empty line\n"
        "  line 10: unknown label '2'; (known: negative, positive)"
    )
    assert read(source, on_bad_row="skip") == (
        [CheckedRow(2, ("good",), 1.0)],
        {
            "empty text": 1,
            "unknown label": 2,
            "missing label": 1,
            "wrong number of fields": 2,
            "invalid UTF-8": 1,
            "empty line": 1,
        },
    )


def test_ten_bad_rows_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    message = refusal(text_file(tmp_path / "a.tsv", "text\tlabel\n" + "x\tno\n" * 1234))
    lines = message.split("\n")
    assert lines[0].endswith(
        "a.tsv: 1,234 of 1,234 rows cannot be used; mend them, or leave them out with data.on_bad_row: skip"
    )
    assert lines[10].startswith("  line 11: ") and lines[11:] == ["  ... and 1,224 more"]


@pytest.mark.parametrize(
    ("score", "detail"),
    [
        ("", "the score is missing"),
        ("high", "score 'high' is not a number"),
        ("nan", "score 'nan' is not a finite number"),
        ("-inf", "score '-inf' is not a finite number"),
        ("1e39", "score '1e39' is not a finite number"),  # infinite in float32
    ],
)
def test_bad_scores(score: str, detail: str, tmp_path: Path) -> None:
    source = text_file(tmp_path / "a.tsv", f"text\tlabel\nx\t1.5\nx\t{score}\n")
    assert refusal(source, kind="regression", labels=()).endswith(f"\n  line 3: {detail}")


def test_bad_json_rows(tmp_path: Path) -> None:
    lines = [
        '{"text": "x", "label": 1}',
        '{"text": "x"}',
        '{"text": 5, "label": 0}',
        '{"text": null, "label": 0}',
        "[1]",
        '{"text": ',
        '{"txet": "x", "label": 1}',
    ]
    assert refusal(text_file(tmp_path / "a.jsonl", "\n".join(lines))).split("\n")[1:] == [
        "  line 2: no key 'label'; (known: text)",
        "  line 3: column 'text' holds 5, not a text",
        "  line 4: column 'text' holds None, not a text",
        "  line 5: not a JSON object",
        "  line 6: not valid JSON (Expecting value, column 9)",
        "  line 7: no key 'text'; did you mean 'txet'? (known: label, txet)",
    ]


def test_open_csv_quote_is_found(tmp_path: Path) -> None:
    message = refusal(text_file(tmp_path / "a.csv", 'text,label\nx,positive\n"open,positive\ny,positive\n'))
    assert message.endswith(
        "\n  line 3: not valid CSV (unexpected end of data); is a double quote left open?"
    )


@pytest.mark.parametrize("on_bad_row", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "{path}: has no rows"),
        (b"text\tlabel\n", "{path}: has no rows"),
        (b"text\tlabl\nx\t1\n", "{path}: no column 'label'; did you mean 'labl'? (known: labl, text)"),
        (b"text\tlabel\tlabel\nx\t1\t0\n", "{path}: column 'label' stands twice"),
        ("text\tlabel\nx\t1\n".encode("utf-16"), "{path}: is UTF-16; save it as UTF-8"),
        (
            b"text\xff\tlabel\nx\t1\n",
            "{path}: line 1, the header: not valid UTF-8; convert the file, e.g. with iconv -t UTF-8",
        ),
    ],
)
def test_a_file_wrong_as_a_whole_is_refused_in_either_mode(
    content: bytes, expected: str, on_bad_row: str, tmp_path: Path
) -> None:
    assert refusal(text_file(tmp_path / "a.tsv", content), on_bad_row=on_bad_row) == expected.format(
        path=tmp_path / "a.tsv"
    )


def test_skipping_every_row_is_refused(tmp_path: Path) -> None:
    source = text_file(tmp_path / "a.tsv", "text\tlabel\nx\tno\n\tpositive\n")
    assert (
        refusal(source, on_bad_row="skip")
        == f"{tmp_path}/a.tsv: no usable row (1 left out: empty text; 1 left out: unknown label)"
    )


def test_columns_by_number(tmp_path: Path) -> None:
    source = text_file(
        tmp_path / "a.tsv", "1\tx\ty\n0\tz\tw\n", text_columns=("1", "-1"), label_column="0", header=False
    )
    assert read(source)[0] == [CheckedRow(1, ("x", "y"), 1.0), CheckedRow(2, ("z", "w"), 0.0)]
    assert (
        refusal(replace(source, label_column="3"))
        == f"{tmp_path}/a.tsv: no column 3; its lines have 3 fields, numbered from 0"
    )


@pytest.mark.parametrize(
    ("labels", "cells", "expected"),
    [
        (("negative", "positive"), ["1", "negative", "0", "positive"], [1, 0, 0, 1]),
        (("1", "2", "3"), ["1", "3", "2"], [0, 2, 1]),  # names that look like ids are names
        (("1", "0"), ["0", "1"], [1, 0]),
    ],
)
def test_labels_by_name_or_id(
    labels: tuple[str, ...], cells: list[str], expected: list[int], tmp_path: Path
) -> None:
    source = text_file(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"x\t{cell}\n" for cell in cells))
    assert [row.label for row in read(source, labels=labels)[0]] == expected


def test_an_id_is_not_taken_where_names_are_numbers(tmp_path: Path) -> None:
    source = text_file(tmp_path / "a.tsv", "text\tlabel\nx\t0\n")
    assert refusal(source, labels=("1", "2", "3")).endswith("  line 2: unknown label '0'; (known: 1, 2, 3)")


def test_parquet_ids_floats_and_nulls(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [1.0, 0.0, None]}), tmp_path / "a.parquet")
    source = Source(
        format="parquet", path=str(tmp_path / "a.parquet"), text_columns=("text",), label_column="label"
    )
    rows, skipped = read(source, on_bad_row="skip")
    assert ([row.label for row in rows], skipped) == ([1.0, 0.0], {"missing label": 1})
    assert refusal(source).endswith("\n  row 3: the label is missing")
    assert (
        refusal(replace(source, text_columns=("txt",)))
        == f"{source.path}: no column 'txt'; did you mean 'text'? (known: label, text)"
    )
    Path(source.path).write_bytes(b"PAR1 no")
    assert refusal(source).startswith(f"{source.path}: is not a readable parquet file (")


def test_class_label_columns_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    # The dataset's own order of names is the reverse of the task's.
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
    )
    dataset = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=features)
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "saved"))
    saved = Source(
        format="datasets",
        path=str(tmp_path / "saved"),
        split="train",
        text_columns=("text",),
        label_column="label",
    )
    words = {"-1": ""}
    assert read(replace(saved, label_words=words)) == (
        [CheckedRow(1, ("a",), 1.0), CheckedRow(2, ("b",), 0.0)],
        {"no gold label": 1},
    )
    assert refusal(saved).endswith("\n  row 3: unknown label -1; (known: negative, positive)")

    # load_dataset reads a local folder by the very same path as a hub repository.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    (tmp_path / "repo").mkdir()
    dataset.to_parquet(str(tmp_path / "repo" / "train.parquet"))
    hub = replace(saved, format="hub", path=str(tmp_path / "repo"), label_words=words)
    assert read(hub)[0] == read(replace(saved, label_words=words))[0]
    assert fingerprint(hub) == fingerprint(hub)


def test_hub_out_of_reach_says_what_to_do() -> None:
    source = builtin_task("rte", DataSettings.model_validate({})).splits["train"]
    message = refusal(source)
    assert message.startswith("nyu-mll/glue:rte:train: cannot be loaded from the Hugging Face hub (")
    assert message.endswith(
        "); check the name and the connection (private data: run hf auth login), or use local files:"
        " the data.*_dir settings for built-in tasks, files for your own"
    )


def test_fingerprint_is_of_the_content_not_of_the_file_times(tmp_path: Path) -> None:
    first = text_file(tmp_path / "a.tsv", "text\tlabel\nx\t1\n")
    second = text_file(tmp_path / "b.tsv", "text\tlabel\nx\t1\n")
    changed = text_file(tmp_path / "c.tsv", "text\tlabel\nx\t0\n")
    assert fingerprint(first) == fingerprint(second) != fingerprint(changed)


QUICKSTART = [name for name in BUILTIN_TASKS if name.startswith("quickstart")]


@pytest.mark.parametrize("task", QUICKSTART)
def test_quickstart_rows_are_valid_distinct_and_balanced(task: str) -> None:
    spec = BUILTIN_TASKS[task]
    train, skipped = read(spec.remote["train"], kind=spec.kind, labels=spec.labels)
    dev, _ = read(spec.remote["dev"], kind=spec.kind, labels=spec.labels)
    texts = [row.texts for row in train + dev]
    assert skipped == {} and len(set(texts)) == len(texts)
    assert len(train) == (
        80 if task == "quickstart_similarity" else 1500 if task == "quickstart_sentiment" else 2000
    )
    assert max(len(" ".join(row).split()) for row in texts) <= 36
    if spec.labels:
        counts = Counter(row.label for row in dev)
        assert len(counts) == len(spec.labels) and max(counts.values()) < 0.6 * len(dev)
    else:
        assert {0.0, 5.0} <= {row.label for row in train} and all(0 <= row.label <= 5 for row in train)


def test_quickstart_bytes_are_pinned() -> None:
    rows = [generated.generate(task, split) for task in QUICKSTART for split in ("train", "dev")]
    assert (
        hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        == "dce14cdc91d0182c53d5063764cc8db9391a6c8f5f03d131c70862922a844735"
    )


def test_unknown_generator_names_are_refused() -> None:
    with pytest.raises(DataError, match="unknown generated task 'quickstart_x'; "):
        generated.generate("quickstart_x", "train")
    with pytest.raises(DataError, match=r"no split 'devel'; did you mean 'dev'\?"):
        list(iterate_rows(replace(BUILTIN_TASKS["quickstart_sentiment"].remote["dev"], split="devel")))
