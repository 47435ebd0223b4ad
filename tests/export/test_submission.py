"""GLUE: the table with its averaging, the leaderboard's zip from a real run,
and the check that refuses broken ones.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.finished_run import write_stsb_dev_as_test
from helpers.processes import run_command
from scipy.stats import pearsonr

from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.export.check_submission import check_submission
from mtdnn_ds.export.submission import (
    official_lines,
    specs_with_tests,
    submission_contents,
    submission_parts,
    write_submission,
)
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.glue import GLUE_FILES, glue_score, glue_scores, glue_table
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.spec import Source, TaskSpec

# Test rows as the leaderboard has them, not as the code does.
ROWS = {
    "CoLA.tsv": 1063,
    "SST-2.tsv": 1821,
    "MRPC.tsv": 1725,
    "STS-B.tsv": 1379,
    "QQP.tsv": 390965,
    "MNLI-m.tsv": 9796,
    "MNLI-mm.tsv": 9847,
    "QNLI.tsv": 5463,
    "RTE.tsv": 3000,
    "WNLI.tsv": 146,
    "AX.tsv": 1104,
}
UNTRAINED = {
    "SST-2.tsv": "1",
    "QQP.tsv": "0",
    "QNLI.tsv": "not_entailment",
    "WNLI.tsv": "0",
}  # of the finished run


# The table


def leaderboard_row(cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli):  # type: ignore[no-untyped-def]
    """A row of the leaderboard, in its order of metrics, as an evaluation."""
    percent = {
        "cola": {"matthews": cola},
        "sst2": {"accuracy": sst2},
        "mrpc": {"f1": mrpc[0], "accuracy": mrpc[1]},
        "stsb": {"pearson": stsb[0], "spearman": stsb[1]},
        "qqp": {"f1": qqp[0], "accuracy": qqp[1]},
        "mnli": {"accuracy": mnli[0], "accuracy_mm": mnli[1]},
        "qnli": {"accuracy": qnli},
        "rte": {"accuracy": rte},
        "wnli": {"accuracy": wnli},
    }
    return {
        task: {metric: value / 100 for metric, value in values.items()} for task, values in percent.items()
    }


BERT_LARGE = leaderboard_row(
    60.5, 94.9, (89.3, 85.4), (87.6, 86.5), (72.1, 89.3), (86.7, 85.9), 92.7, 70.1, 65.1
)
MT_DNN = leaderboard_row(62.5, 95.6, (91.1, 88.2), (89.5, 88.8), (72.7, 89.6), (86.7, 86.0), 93.1, 81.4, 65.1)


@pytest.mark.parametrize(("row", "score"), [(BERT_LARGE, 80.5), (MT_DNN, 82.7)])
def test_the_score_is_that_of_the_published_rows(row: dict[str, dict[str, float]], score: float) -> None:
    assert round(100 * glue_score(glue_scores(row)), 1) == score
    # By hand: BERT-large's (60.5 + 94.9 + 87.35 + 87.05 + 80.7 + 86.3 + 92.7 + 70.1 + 65.1) / 9 = 724.7 / 9
    assert glue_scores(BERT_LARGE)["mnli"] == pytest.approx(0.863) and 100 * glue_score(
        glue_scores(BERT_LARGE)
    ) == pytest.approx(724.7 / 9)


def test_the_table_stands_in_the_leaderboards_order() -> None:
    table = glue_table({"snli": {"accuracy": 0.5}, **dict(reversed(MT_DNN.items()))})
    assert table is not None
    header, row = (line.split() for line in table.splitlines())
    assert header == ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "m/mm", "QNLI", "RTE", "WNLI", "score"]
    assert row == [
        "62.5",
        "95.6",
        "91.1/88.2",
        "89.5/88.8",
        "72.7/89.6",
        "86.7/86.0",
        "93.1",
        "81.4",
        "65.1",
        "82.7",
    ]


def test_missing_tasks_and_metrics_are_said() -> None:
    part = {task: values for task, values in MT_DNN.items() if task in ("rte", "qnli", "mnli")}
    table = glue_table({**part, "mnli": {"accuracy": 0.8}, "mrpc": {"accuracy": 0.9}})
    assert table is not None
    assert table.splitlines()[1].split() == [
        "-",
        "-",
        "-/90.0",
        "-",
        "-",
        "80.0/-",
        "93.1",
        "81.4",
        "-",
        "84.8",
    ]  # (80 + 93.1 + 81.4) / 3
    assert (
        "average of 3 of 9 tasks, not the GLUE score; missing: CoLA, SST-2, MRPC, STS-B, QQP, WNLI" in table
    )
    assert "mrpc is not averaged: it was scored without f1" in table
    assert "mnli has no accuracy_mm: its score is the other set's alone" in table
    assert glue_table({"snli": {"accuracy": 0.9}}) is None


def test_label_words_stand_in_the_order_of_the_heads_classes() -> None:
    for file in GLUE_FILES:
        labels = BUILTIN_TASKS[file.task].labels
        assert file.words in (labels, ("0", "1") if len(labels) == 2 else labels), file.name
    assert [file.name for file in GLUE_FILES if not file.words] == ["STS-B.tsv"]


def test_most_frequent_labels_are_those_of_the_dev_sets(real_data: Path) -> None:
    columns = {
        "CoLA": ("dev", 1),
        "SST-2": ("dev", 1),
        "MRPC": ("dev", 0),
        "MNLI": ("dev_matched", -1),
        "QNLI": ("dev", -1),
        "RTE": ("dev", -1),
        "WNLI": ("dev", -1),
    }
    for folder, (file, column) in columns.items():
        rows = (
            (real_data / f"glue/{folder}/{file}.tsv")
            .read_text(encoding="utf-8-sig")
            .splitlines()[folder != "CoLA" :]
        )
        ((label, _),) = Counter(row.split("\t")[column] for row in rows if row).most_common(1)
        assert {known.most_frequent for known in GLUE_FILES if known.name.startswith(folder)} == {label}, (
            folder
        )


# The zip of a run


@pytest.fixture(scope="module")
def submitted(
    finished_run: Path, official_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[float], str]:
    """Two zips of one run: official test files;
    and STS-B's dev rows, whose scores are known, in place of its test rows.
    """
    folder = tmp_path_factory.mktemp("submitted")
    scores = write_stsb_dev_as_test(official_files / "glue", folder / "glue")
    commands = [
        ["submit", str(finished_run), "--output", str(folder / "official.zip")],
        ["submit", str(finished_run), "--output", str(folder / "official.zip"), "--fill_missing"],
        [
            "submit",
            str(finished_run),
            "--output",
            str(folder / "dev.zip"),
            "--fill_missing",
            "--glue_dir",
            str(folder / "glue"),
        ],
        ["submit", "--check", str(folder / "official.zip")],
        ["evaluate", str(finished_run), "--checkpoint", "best/stsb"],
    ]
    code = (
        "import sys, json; from mtdnn_ds.cli import main; "
        "print('codes', [main(words) for words in json.loads(sys.argv[1])])"
    )
    ended = run_command(["-c", code, json.dumps(commands)], OMP_NUM_THREADS="1")
    assert "codes [2, 0, 0, 0, 0]" in ended.stdout, ended.stdout[-3000:] + ended.stderr[-3000:]
    return folder, scores, ended.stdout + ended.stderr


def read_zip(path: Path) -> dict[str, list[list[str]]]:
    with zipfile.ZipFile(path) as archive:
        return {
            name: [line.split("\t") for line in archive.read(name).decode().splitlines()]
            for name in archive.namelist()
        }


@pytest.mark.distributed
def test_the_zip_of_a_run_has_every_row_of_the_official_test_files(
    submitted: tuple[Path, list[float], str],
) -> None:
    folder, _, said = submitted
    files = read_zip(folder / "official.zip")
    assert {name: len(rows) - 1 for name, rows in files.items()} == ROWS
    for name, rows in files.items():
        assert rows[0] == ["index", "prediction"]
        assert [row[0] for row in rows[1:]] == [str(index) for index in range(ROWS[name])]
    assert check_submission(folder / "official.zip") == [] and "official.zip: can be handed in" in said
    for name, label in UNTRAINED.items():
        assert {row[1] for row in files[name][1:]} == {label}
        assert f"{name}: filled with {label}: " in said and f"error: {name}: " in said
    assert len({row[1] for row in files["STS-B.tsv"][1:]}) > 500, "scores, not one answer"
    assert all(0 <= float(row[1]) <= 5 for row in files["STS-B.tsv"][1:])
    # MNLI's rows repeat five pairs: equal rows have equal answers, and AX has those of MNLI's head.
    answers = [
        {row[1] for row in files[name][1 + pair :: 5]}
        for pair in range(5)
        for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv")
    ]
    assert all(len(of_pair) == 1 for of_pair in answers)
    assert [answers[3 * pair] for pair in range(5)] == [answers[3 * pair + 2] for pair in range(5)]


@pytest.mark.distributed
def test_written_scores_are_the_evaluations(
    submitted: tuple[Path, list[float], str], finished_run: Path
) -> None:
    folder, scores, said = submitted
    rows = read_zip(folder / "dev.zip")["STS-B.tsv"][1:]
    best = json.loads((finished_run / "best/stsb/best.json").read_text())["metrics"]["pearson"]
    assert float(pearsonr([float(row[1]) for row in rows], scores).statistic) == pytest.approx(best, abs=1e-5)
    assert f"CoLA.tsv: filled with 1: its test file {folder}/glue/CoLA/test.tsv is not there" in said
    assert "GLUE, on the dev sets:" in said and "average of 5 of 9 tasks, not the GLUE score" in said


def test_a_run_without_glue_has_nothing_to_submit() -> None:
    spec = TaskSpec(name="snli", kind="classification", labels=("a", "b"), metrics=("accuracy",), splits={})
    with pytest.raises(ConfigError, match="none of this run's tasks is one of GLUE's"):
        submission_parts([spec], None, fill_missing=True)


def test_tests_out_of_order_are_refused(tmp_path: Path) -> None:
    (tmp_path / "WNLI").mkdir()
    (tmp_path / "WNLI/test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n2\tc\td\n1\te\tf\n")
    spec = TaskSpec(
        name="wnli",
        kind="classification",
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        splits={},
    )
    parts = submission_parts([spec], str(tmp_path), fill_missing=True)
    assert parts.predicted == {
        "WNLI.tsv": Source(
            format="tsv",
            path=str(tmp_path / "WNLI/test.tsv"),
            text_columns=("sentence1", "sentence2"),
            label_column=None,
            quoted=False,
        )
    }
    with pytest.raises(DataError) as error:
        official_lines(parts)
    assert list(error.value.problems) == [
        (
            f"{tmp_path}/WNLI/test.tsv: line 3: its index is '2', not 1; "
            "give the official test file, in its order"
        ),
        f"{tmp_path}/WNLI/test.tsv: has 3 rows, the official test set has 146; give that one with --glue_dir",
    ]


def test_rows_that_cannot_be_read_are_answered_too(
    tmp_path: Path, tiny_encoder: Path, said: list[str]
) -> None:
    (tmp_path / "WNLI").mkdir()
    rows = [f"{row}\tfirst\t{'' if row == 1 else 'second'}" for row in range(146)]
    (tmp_path / "WNLI/test.tsv").write_text("\n".join(["index\tsentence1\tsentence2", *rows]) + "\n")
    wnli = TaskSpec(
        name="wnli",
        kind="classification",
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        splits={},
    )
    parts = submission_parts([wnli], str(tmp_path), fill_missing=True)
    (spec,) = specs_with_tests([wnli], parts)
    prepared = prepare(
        [spec],
        tokenizer_path=str(tiny_encoder),
        cache_dir=str(tmp_path / "cache"),
        on_bad_row="skip",
    )
    examples = make_examples(spec, prepared["wnli"]["test"], max_length=16)
    data = RunData(specs=(spec,), layout=head_layout([spec]), examples={"wnli": {"test": examples}})
    contents = submission_contents(parts, data, {"WNLI.tsv": np.ones(145)}, official_lines(parts))
    assert contents["WNLI.tsv"].decode().splitlines() == [
        "index\tprediction",
        "0\t1",
        "1\t0",
        *(f"{row}\t1" for row in range(2, 146)),
    ]
    assert "WNLI.tsv: rows that cannot be read are filled with 0: 1 with empty text" in said
    assert check_submission(contents) == []


# Broken zips


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "old.zip").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"--output .*old.zip: is there already; remove it, or give another --output"
    ):
        write_submission(tmp_path / "old.zip", {})
    assert (tmp_path / "old.zip").read_text() == "mine"


def good_files() -> dict[str, bytes]:
    return dict(_good_files())


@cache
def _good_files() -> dict[str, bytes]:
    words = {
        "MNLI-m.tsv": "neutral",
        "MNLI-mm.tsv": "contradiction",
        "AX.tsv": "entailment",
        "QNLI.tsv": "entailment",
        "RTE.tsv": "not_entailment",
    }
    lines = {
        name: ["index\tprediction", *(f"{row}\t{words.get(name, '1')}" for row in range(rows))]
        for name, rows in ROWS.items()
    }
    return {name: "".join(f"{line}\n" for line in of_file).encode() for name, of_file in lines.items()}


def changed(name: str, line: int, text: str) -> dict[str, bytes]:
    """Good files with one line (1 is the header) replaced."""
    files = good_files()
    lines = files[name].decode().split("\n")
    lines[line - 1] = text
    return {**files, name: "\n".join(lines).encode()}


def without(name: str) -> dict[str, bytes]:
    return {other: content for other, content in good_files().items() if other != name}


BROKEN = {
    "wrong count": (
        {**good_files(), "RTE.tsv": good_files()["RTE.tsv"].removesuffix(b"2999\tnot_entailment\n")},
        ["RTE.tsv: has 2,999 rows, the test set has 3,000"],
    ),
    "index not in order": (
        changed("WNLI.tsv", 5, "4\t1"),
        ["WNLI.tsv, line 5: its index is '4', not 3; rows go from 0 on in the order of the test set"],
    ),
    "label word": (
        changed("QNLI.tsv", 2, "0\tneutral"),
        ["QNLI.tsv, line 2: 'neutral' is not a label of this task (entailment, not_entailment)"],
    ),
    "label id": (
        changed("MNLI-m.tsv", 3, "1\t2"),
        ["MNLI-m.tsv, line 3: '2' is not a label of this task (entailment, neutral, contradiction)"],
    ),
    "header": (
        changed("CoLA.tsv", 1, "id\tlabel"),
        ["CoLA.tsv, line 1: the header is 'id\\tlabel', not 'index<tab>prediction'"],
    ),
    "no number": (changed("STS-B.tsv", 10, "8\tnan"), ["STS-B.tsv, line 10: 'nan' is not a number"]),
    "out of range": (
        changed("STS-B.tsv", 11, "9\t5.01"),
        ["STS-B.tsv, line 11: 5.01 is not between 0 and 5"],
    ),
    "missing file": (without("AX.tsv"), ["AX.tsv is missing"]),
    "extra file": (
        {**good_files(), "SNLI.tsv": b"index\tprediction\n"},
        ["SNLI.tsv does not belong to a submission"],
    ),
    "in a folder": (
        {**without("MRPC.tsv"), "glue/MRPC.tsv": good_files()["MRPC.tsv"]},
        [
            "MRPC.tsv is missing",
            "glue/MRPC.tsv does not belong to a submission; files stand at the top of the zip, in no folder",
        ],
    ),
    "encoding": (
        changed("SST-2.tsv", 4, "2\t1")
        | {"SST-2.tsv": good_files()["SST-2.tsv"].replace(b"\n3\t1\n", b"\n3\t\xff\n")},
        ["SST-2.tsv, line 5: is not UTF-8"],
    ),
    "byte order mark": (
        {**good_files(), "MRPC.tsv": b"\xef\xbb\xbf" + good_files()["MRPC.tsv"]},
        ["MRPC.tsv, line 1: begins with a byte order mark; write plain UTF-8"],
    ),
    "fields": (
        changed("AX.tsv", 2, "0,entailment"),
        ["AX.tsv, line 2: has 1 fields instead of 2: '0,entailment'"],
    ),
    "line ends": (
        {**good_files(), "WNLI.tsv": good_files()["WNLI.tsv"].replace(b"\n", b"\r\n")},
        ["WNLI.tsv, line 1: ends with a carriage return; end lines with a newline alone"],
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_zips_are_refused_with_their_reasons(
    broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, reasons = BROKEN[broken]
    write_submission(tmp_path / "broken.zip", files)
    assert check_submission(tmp_path / "broken.zip") == [
        f"{tmp_path}/broken.zip: {reason}" for reason in reasons
    ]
    assert main(["submit", "--check", str(tmp_path / "broken.zip")]) == 2
    assert capsys.readouterr().err == "".join(
        f"error: {tmp_path}/broken.zip: {reason}\n" for reason in reasons
    )


def test_good_files_pass(tmp_path: Path) -> None:
    write_submission(tmp_path / "good.zip", good_files())
    assert check_submission(tmp_path / "good.zip") == []


def test_names_that_stand_twice_and_damaged_zips_are_refused(tmp_path: Path) -> None:
    twice = tmp_path / "twice.zip"
    write_submission(twice, good_files())
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("RTE.tsv", "index\tprediction\n")
    assert check_submission(twice) == [f"{twice}: RTE.tsv stands in it 2 times"]
    shutil.copy(twice, tmp_path / "cut.zip")
    (tmp_path / "cut.zip").write_bytes(twice.read_bytes()[:-100])
    assert any(
        "is not a whole, unencrypted zip file" in problem
        for problem in check_submission(tmp_path / "cut.zip")
    )
    assert check_submission(tmp_path / "none.zip")[0] == f"{tmp_path}/none.zip: no such file"


def test_many_problems_are_counted(tmp_path: Path) -> None:
    problems = check_submission(
        {
            **good_files(),
            "WNLI.tsv": b"index\tprediction\n" + b"".join(b"%d\tyes\n" % row for row in range(146)),
        }
    )
    assert len(problems) == 21 and problems[-1] == "WNLI.tsv: ... and 126 more problems"


def test_flags_of_submit_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["submit"]) == 2 and "--run_dir: is missing" in capsys.readouterr().err
    assert main(["submit", "--check", "a.zip", "--fill_missing", "--output", "b.zip"]) == 2
    assert "--check: only looks at a zip; remove --output, --fill_missing" in capsys.readouterr().err
    assert main(["submit", str(tmp_path)]) == 2 and "not a run folder" in capsys.readouterr().err
