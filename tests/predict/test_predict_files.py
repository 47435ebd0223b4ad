"""predict and embed on files: every format, ids and order, bad rows,
resuming after a kill, ranks, refusals. Answers are checked in test_predict.py.
"""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.processes import ROOT, run_command, run_ranks
from scipy.stats import pearsonr
from sklearn.metrics import matthews_corrcoef

from mtdnn_ds import MultiTaskModel
from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.predict.embed_files import embed_file
from mtdnn_ds.predict.files import OutputSummary, predict_file
from mtdnn_ds.predict.output import PartFile
from mtdnn_ds.predict.table import open_table

ROWS = [
    {"id": f"r{n}", "sentence1": f"the {n} ships " * (1 + n % 5), "sentence2": f'a red, "quoted" horse {n}'}
    for n in range(18)
]


@pytest.fixture(scope="module")
def model(all_kinds_run: Path) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(str(all_kinds_run))


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".tsv":
        path.write_text(
            "\n".join(
                "\t".join(map(str, cells)) for cells in [list(rows[0]), *(row.values() for row in rows)]
            )
            + "\n"
        )
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


def run(
    model: MultiTaskModel,
    source: Path,
    output: Path,
    *,
    columns: str | None = None,
    ids: str | None = None,
    **settings: Any,
) -> OutputSummary:
    table = open_table(str(source), text_columns=columns, id_column=ids)
    return predict_file(model, table, output, **{"asked": None, **settings})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_keeps_ids_and_order(suffix: str, model: MultiTaskModel, tmp_path: Path) -> None:
    written = run(model, write(tmp_path / f"in{suffix}"), tmp_path / "out.jsonl", window_rows=5)
    assert written == OutputSummary(rows=18, bad=0, truncated=0, went_on=0)
    found = lines(tmp_path / "out.jsonl")
    expected = model.predict(
        [(row["sentence1"], row["sentence2"]) for row in ROWS],
        tasks=["mrpc", "ranking", "rte", "similar", "stsb"],
    )
    assert [each.pop("id") for each in found] == [row["id"] for row in ROWS]
    assert [list(each) for each in found] == [["mrpc", "ranking", "rte", "similar", "stsb"]] * 18
    np.testing.assert_allclose(
        [each["stsb"]["score"] for each in found], [each["stsb"]["score"] for each in expected], atol=2e-5
    )
    assert [each["mrpc"]["label"] for each in found] == [each["mrpc"]["label"] for each in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"in{suffix}", "out.jsonl"]


def test_official_dev_files_are_answered_as_evaluated(
    model: MultiTaskModel, all_kinds_run: Path, tmp_path: Path
) -> None:
    """Metrics of the written files, computed here,
    are those that the run's evaluation has in metrics.jsonl.
    """
    glue, evaluation = (
        all_kinds_run.parent / "glue",
        [line["eval"] for line in lines(all_kinds_run / "metrics.jsonl") if "eval" in line][-1],
    )
    found: dict[str, list[Any]] = {}
    for task, folder, columns in (("stsb", "STS-B", None), ("rte", "RTE", None), ("cola", "CoLA", "3")):
        run(
            model,
            glue / folder / "dev.tsv",
            tmp_path / f"{task}.jsonl",
            columns=columns,
            asked=(model.task_names.index(task),),
        )
        found[task] = [each[task] for each in lines(tmp_path / f"{task}.jsonl")]
    gold = {
        folder: [row.split("\t") for row in (glue / folder / "dev.tsv").read_text().splitlines()]
        for folder in ("STS-B", "RTE", "CoLA")
    }
    scores = [answer["score"] for answer in found["stsb"]]
    assert pearsonr(scores, [float(row[-1]) for row in gold["STS-B"][1:]]).statistic == pytest.approx(
        evaluation["stsb"]["pearson"], abs=1e-4
    )
    right = [answer["label"] == row[3] for answer, row in zip(found["rte"], gold["RTE"][1:], strict=True)]
    assert np.mean(right) == pytest.approx(evaluation["rte"]["accuracy"])
    classes = [("unacceptable", "acceptable").index(answer["label"]) for answer in found["cola"]]
    assert matthews_corrcoef([int(row[1]) for row in gold["CoLA"]], classes) == pytest.approx(
        evaluation["cola"]["matthews"], abs=1e-6
    )
    assert [each["id"] for each in lines(tmp_path / "rte.jsonl")] == [row[0] for row in gold["RTE"][1:]]


def test_lines_of_text_and_tables_without_a_header(model: MultiTaskModel, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a red horse\n" + "so on " * 60 + "\n")
    assert run(model, tmp_path / "in.txt", tmp_path / "out.jsonl").truncated == 1
    found = lines(tmp_path / "out.jsonl")
    assert [each["id"] for each in found] == [1, 2] and list(found[0]) == ["id", "cola", "colours", "tags"]
    (tmp_path / "in.csv").write_text("7,a red horse,x\n8,two dogs,y\n")
    run(model, tmp_path / "in.csv", tmp_path / "two.jsonl", columns="1", ids="0")
    assert [each["id"] for each in lines(tmp_path / "two.jsonl")] == ["7", "8"]
    assert lines(tmp_path / "two.jsonl")[0]["cola"]["label"] == found[0]["cola"]["label"]


def test_csv_has_a_column_for_every_value(model: MultiTaskModel, tmp_path: Path) -> None:
    run(
        model,
        write(tmp_path / "in.csv"),
        tmp_path / "out.csv",
        asked=(model.task_names.index("mrpc"), model.task_names.index("stsb")),
        window_rows=7,
    )
    with (tmp_path / "out.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        "id",
        "mrpc.label",
        "mrpc.probabilities.not_equivalent",
        "mrpc.probabilities.equivalent",
        "stsb.score",
    ]
    assert len(rows) == 18 and all(
        float(row[2]) + float(row[3]) == pytest.approx(1, abs=1e-6) for row in rows
    )


def test_words_in_jsonl_have_entities(model: MultiTaskModel, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"words": ["a", "red", "hat"]}, {"words": ["dogs"]}])
    run(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [each["tags"]["words"] for each in lines(tmp_path / "out.jsonl")] == [
        ["a", "red", "hat"],
        ["dogs"],
    ]


def test_bad_rows_are_all_named_or_left_out(model: MultiTaskModel, tmp_path: Path) -> None:
    rows = [{**row, "sentence2": "" if n in (3, 4) else row["sentence2"]} for n, row in enumerate(ROWS)]
    source = write(tmp_path / "in.csv", rows)
    with source.open("a") as file:
        file.write("r18,only one\n")
    with pytest.raises(DataError) as refused:
        run(model, source, tmp_path / "out.jsonl")
    assert str(refused.value).splitlines() == [
        f"--input {source}: 3 of 19 rows cannot be used; mend them, or leave them out with --on_bad_row skip",
        "  line 5: column 'sentence2' is empty",
        "  line 6: column 'sentence2' is empty",
        "  line 20: 2 fields instead of 3",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    assert run(model, source, tmp_path / "out.jsonl", skips_bad=True, window_rows=2).bad == 3
    assert [each["id"] for each in lines(tmp_path / "out.jsonl")] == [
        f"r{n}" for n in range(18) if n not in (3, 4)
    ]


def test_a_killed_run_goes_on_to_the_same_bytes(
    model: MultiTaskModel, all_kinds_run: Path, tmp_path: Path
) -> None:
    """Killed when the lines of its third window are on the disk, and its record is not:
    a window has three fsyncs.
    """
    source, output = write(tmp_path / "in.csv"), tmp_path / "out.jsonl"
    run(model, source, tmp_path / "whole.jsonl", window_rows=4)
    died = run_command(
        [str(ROOT / "tests/workers/predict_and_die.py"), *map(str, (all_kinds_run, source, output, 7))]
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not output.exists()
    kept = json.loads((tmp_path / "out.jsonl.progress.json").read_text())
    assert kept["windows"] == 2 and (tmp_path / "out.jsonl.part").stat().st_size > kept["bytes"]
    with pytest.raises(
        ConfigError, match=r"\(window_rows was 4 and is 5\); repeat that call to go on, or delete"
    ):
        run(model, source, output, window_rows=5)
    assert run(model, source, output, window_rows=4) == OutputSummary(
        rows=18, bad=0, truncated=0, went_on=4 * kept["windows"]
    )
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.jsonl", "whole.jsonl"]
    with pytest.raises(ConfigError, match="is there already; give another name, or delete it"):
        run(model, source, output, window_rows=4)


@pytest.mark.distributed
def test_two_ranks_write_the_bytes_of_one(model: MultiTaskModel, all_kinds_run: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl")
    run(model, source, tmp_path / "one.jsonl", window_rows=4)
    flags = ["--input", str(source), "--output", str(tmp_path / "two.jsonl"), "--window_rows", "4"]
    said = run_ranks(["-m", "mtdnn_ds", "predict", str(all_kinds_run), *flags], 2)
    assert f"18 rows answered in {tmp_path / 'two.jsonl'}" in said
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    first = PartFile(tmp_path / "out.jsonl", {"input": "a"})
    with pytest.raises(ConfigError, match="another process is writing it"):
        PartFile(tmp_path / "out.jsonl", {"input": "a"})
    first.close()


def test_damaged_records_are_named(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "out.jsonl", {"input": "a"})
    part.add(b"{}\n", rows=1, bad=0, truncated=0)
    part.close()
    (tmp_path / "out.jsonl.part").write_bytes(b"")
    with pytest.raises(DataError, match=r"out.jsonl.part: is shorter than .*progress.json says"):
        PartFile(tmp_path / "out.jsonl", {"input": "a"})
    (tmp_path / "out.jsonl.progress.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        PartFile(tmp_path / "out.jsonl", {"input": "a"})


def test_embeddings_of_a_file(model: MultiTaskModel, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv")
    expected = model.embed([(row["sentence1"], row["sentence2"]) for row in ROWS], "mean")
    for name in ("out.npy", "out.parquet"):
        table = open_table(str(source), text_columns=None, id_column=None)
        assert embed_file(model, table, tmp_path / name, pooling="mean", window_rows=5).rows == 18
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)
    read = pq.ParquetFile(tmp_path / "out.parquet")
    assert read.num_row_groups == 4
    assert read.read()["id"].to_pylist() == [row["id"] for row in ROWS]
    np.testing.assert_allclose(np.array(read.read()["embedding"].to_pylist()), expected, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.npy", "out.parquet"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["predict", "--input", "IN", "--output", "OUT.xlsx"],
            "--output OUT.xlsx: unknown file type '.xlsx'; use .jsonl, .csv",
        ),
        (
            ["predict", "--input", "IN", "--output", "OUT.csv", "--max_tokens", "0"],
            "--max_tokens 0: must be a whole number, at least 1",
        ),
        (
            ["predict", "--input", "IN", "--output", "OUT.csv", "--text_columns", "sentense1,sentence2"],
            "did you mean 'sentence1'?",
        ),
        (
            ["predict", "--input", "IN", "--output", "OUT.csv", "--id_column", "idd"],
            "no column 'idd'; did you mean 'id'?",
        ),
        (
            ["predict", "--input", "IN", "--output", "OUT.csv", "--task", "rta"],
            "--task rta: the model has no task 'rta'; did you mean 'rte'?",
        ),
        (
            ["predict", "--input", "IN", "--output", "OUT.csv", "--task", "rte", "--text_columns", "id"],
            "task rte (reads two texts): cannot read an input of 'id'",
        ),
        (["predict", "--input", "nope.csv", "--output", "OUT.csv"], "--input nope.csv: no such file"),
        (
            ["predict", "--input", "IN", "--output", "OUT.csv", "--on_bad_row", "skp"],
            "--on_bad_row skp: unknown; did you mean 'skip'?",
        ),
        (
            ["embed", "--input", "IN", "--output", "OUT.csv"],
            "--output OUT.csv: unknown file type '.csv'; use .npy, .parquet",
        ),
        (
            ["embed", "--input", "IN", "--output", "OUT.npy", "--pooling", "maen"],
            "--pooling maen: unknown; did you mean 'mean'?",
        ),
        (
            ["embed", "--input", "IN", "--output", "OUT.npy", "--id_column", "id"],
            "--id_column: has no effect on a .npy",
        ),
    ],
)
def test_wrong_flags(
    arguments: list[str],
    said: str,
    all_kinds_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("IN.csv"))
    verb, *rest = ["IN.csv" if word == "IN" else word for word in arguments]
    assert main([verb, str(all_kinds_run), *rest]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["IN.csv"]
