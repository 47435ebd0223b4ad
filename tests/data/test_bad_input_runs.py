"""Bad data files, damaged checkpoints and runs that do not fit:
refused with file, row and what to do, and nothing is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers.processes import ROOT, run_command, write_json

from mtdnn_ds.checkpoint.find import find_checkpoint, open_checkpoint, resume_from
from mtdnn_ds.checkpoint.manifest import write_manifest
from mtdnn_ds.checkpoint.weights import read_weights
from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import CheckpointError, ConfigError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.runs.load import load_weights
from mtdnn_ds.runs.setup import build_plan, prepare_run_data, run_model, settings_dict
from mtdnn_ds.runs.state import RunState, check_fit
from mtdnn_ds.tasks.resolve import resolve_tasks

MODEL_IS_BUILT = "attention back end "  # which a run says, on stdout
CANNOT_BE_USED = "rows cannot be used; mend them, or leave them out with data.on_bad_row: skip"
SCORES = {"kind": "regression", "labels": None}
TABLE = b"text\tlabel\n"
ROW = '{"text": "fine", "label": "yes"}\n'


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")
    return sink.getvalue().to_pybytes()


def damaged_parquet() -> bytes:
    """A whole footer behind pages that are not."""
    content = bytearray(parquet(pa.table({"text": ["fine"] * 9, "label": ["yes"] * 9})))
    content[4:40] = bytes(36)
    return bytes(content)


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")]
)

# name -> (file, content, changes of the task, message)
FILES: dict[str, tuple[str, bytes | str, dict[str, Any], str]] = {
    "missing column": (
        "a.tsv",
        "text\tlabl\nfine\tyes\n",
        {},
        "FILE: no column 'label'; did you mean 'labl'? (known: labl, text)",
    ),
    "missing text column": (
        "a.csv",
        "txt,label\nfine,yes\n",
        {},
        "FILE: no column 'text'; did you mean 'txt'? (known: label, txt)",
    ),
    "missing parquet column": (
        "a.parquet",
        parquet(pa.table({"text": ["x"], "lable": ["no"]})),
        {},
        "FILE: no column 'label'; did you mean 'lable'?",
    ),
    "column twice": ("a.tsv", "text\tlabel\tlabel\nfine\tyes\tno\n", {}, "FILE: column 'label' stands twice"),
    "missing column number": (
        "a.tsv",
        "fine\tyes\n",
        {"text_columns": ["0"], "label_column": "5"},
        "FILE: no column 5; its lines have 2 fields, numbered from 0",
    ),
    "missing key": (
        "a.jsonl",
        '{"txt": "fine", "label": "yes"}\n',
        {},
        "line 1: no key 'text'; did you mean 'txt'? (known: label, txt)",
    ),
    "unknown label": (
        "a.tsv",
        TABLE + b"fine\tyse\n",
        {},
        "line 2: unknown label 'yse'; did you mean 'yes'? (known: no, yes)",
    ),
    "label id outside": ("a.tsv", TABLE + b"fine\t2\n", {}, "line 2: unknown label '2'; (known: no, yes)"),
    "label that is a list": (
        "a.jsonl",
        '{"text": "fine", "label": ["yes"]}\n',
        {},
        "line 1: unknown label ['yes']; did you mean 'yes'? (known: no, yes)",
    ),
    "missing label": ("a.tsv", TABLE + b"fine\t\n", {}, "line 2: the label is missing"),
    "null label": ("a.jsonl", '{"text": "fine", "label": null}\n', {}, "line 1: the label is missing"),
    "empty text": (
        "a.tsv",
        TABLE + b"fine\tyes\n \tno\n",
        {},
        "FILE: 1 of 2 " + CANNOT_BE_USED + "\n  line 3: column 'text' is empty",
    ),
    "text that is a number": (
        "a.jsonl",
        '{"text": 5, "label": "yes"}\n',
        {},
        "line 1: column 'text' holds 5, not a text",
    ),
    "half a character": (
        "a.jsonl",
        '{"text": "fine \\ud83d", "label": "yes"}\n',
        {},
        "line 1: column 'text' holds U+D83D, half of a character's two-part code",
    ),
    "NaN score": ("a.tsv", TABLE + b"fine\tnan\n", SCORES, "line 2: score 'nan' is not a finite number"),
    "infinite score": (
        "a.jsonl",
        '{"text": "fine", "label": -Infinity}\n',
        SCORES,
        "line 1: score -inf is not a finite number",
    ),
    "score beyond float32": (
        "a.tsv",
        TABLE + b"fine\t1e39\n",
        SCORES,
        "line 2: score '1e39' is not a finite number",
    ),
    "score of 400 digits": (
        "a.jsonl",
        '{"text": "fine", "label": ' + "7" * 400 + "}\n",
        SCORES,
        "line 1: score " + "7" * 57 + "... is not a finite number",
    ),
    "unparsable score": ("a.tsv", TABLE + b"fine\t3,5\n", SCORES, "line 2: score '3,5' is not a number"),
    "missing score": ("a.tsv", TABLE + b"fine\t\n", SCORES, "line 2: the score is missing"),
    "invalid UTF-8": (
        "a.tsv",
        TABLE + b"caf\xe9\tyes\n",
        {},
        "line 2: not valid UTF-8; convert the file, e.g. with iconv -t UTF-8",
    ),
    "invalid UTF-8 in jsonl": (
        "a.jsonl",
        ROW.encode() + b'{"text": "caf\xe9", "label": "yes"}\n',
        {},
        "line 2: not valid UTF-8",
    ),
    "invalid UTF-8 in the header": (
        "a.csv",
        b"text,label,caf\xe9\nfine,yes,\n",
        {},
        "FILE: line 1, the header: not valid UTF-8; convert the file",
    ),
    "invalid UTF-8 in parquet": (
        "a.parquet",
        parquet(pa.table({"text": NOT_UTF8, "label": ["yes", "no"]})),
        {},
        "row 2: column 'text' holds b'\\xff\\xfe', not a text",
    ),
    "UTF-16": ("a.tsv", "text\tlabel\nfine\tyes\n".encode("utf-16"), {}, "FILE: is UTF-16; save it as UTF-8"),
    "too many fields": ("a.tsv", TABLE + b"fine\tyes\tno\n", {}, "line 2: 3 fields instead of 2"),
    "too few fields": ("a.csv", "text,label\nfine\n", {}, "line 2: 1 fields instead of 2"),
    "empty line inside": ("a.tsv", TABLE + b"fine\tyes\n\nbad\tno\n", {}, "line 3: an empty line"),
    "open quote": (
        "a.csv",
        'text,label\n"fine,yes\nbad,no\n',
        {},
        "line 2: not valid CSV (unexpected end of data); is a double quote left open?",
    ),
    "header only": ("a.tsv", TABLE, {}, "FILE: has no rows"),
    "empty tsv": ("a.tsv", "", {}, "FILE: has no rows"),
    "empty jsonl": ("a.jsonl", "", {}, "FILE: has no rows"),
    "jsonl of empty lines": ("a.jsonl", "\n\n", {}, "FILE: has no rows"),
    "parquet without rows": (
        "a.parquet",
        parquet(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())})),
        {},
        "FILE: has no rows",
    ),
    "not JSON": (
        "a.jsonl",
        ROW + '{"text": "x", label: 1}\n',
        {},
        "line 2: not valid JSON (Expecting property name enclosed in double quotes, column 15)",
    ),
    "JSON cut off": (
        "a.jsonl",
        ROW + ROW[:12],
        {},
        "FILE: 1 of 2 " + CANNOT_BE_USED + "\n  line 2: not valid JSON (",
    ),
    "JSON that is no object": ("a.jsonl", ROW + '["fine", "yes"]\n', {}, "line 2: not a JSON object"),
    "JSON without an end": (
        "a.jsonl",
        ROW + "[" * 200_000 + "\n",
        {},
        "line 2: JSON that is nested too deeply, or holds a number of too many digits",
    ),
    "number of 5000 digits": (
        "a.jsonl",
        '{"text": "fine", "label": ' + "1" * 5000 + "}\n",
        {},
        "line 1: JSON that is nested too deeply, or holds a number of too many digits",
    ),
    "not parquet": (
        "a.parquet",
        "text,label\nfine,yes\n",
        {},
        "FILE: is not a readable parquet file (Parquet magic bytes not found in footer.",
    ),
    "empty parquet": (
        "a.parquet",
        "",
        {},
        "FILE: is not a readable parquet file (Parquet file size is 0 bytes)",
    ),
    "damaged parquet": ("a.parquet", damaged_parquet(), {}, "FILE: is damaged after row 0 ("),
}

# name -> (files of the folder, split names of the task, message)
SAVED: dict[str, tuple[dict[str, str], dict[str, str] | None, str]] = {
    "no dataset": (
        {"train.csv": "text,label\n"},
        {"train": "train"},
        "tasks.mine.dataset=FOLDER: not a folder written by datasets' save_to_disk",
    ),
    "list of splits is not JSON": (
        {"dataset_dict.json": "splits"},
        {"train": "train"},
        "tasks.mine.dataset=FOLDER: its dataset_dict.json is not readable; save the dataset again",
    ),
    "list of splits is another thing": (
        {"dataset_dict.json": "[]"},
        {"train": "train"},
        "tasks.mine.dataset=FOLDER: its dataset_dict.json is not readable",
    ),
    "no such split": (
        {"dataset_dict.json": '{"splits": ["train"]}'},
        {"train": "trian"},
        "tasks.mine.splits.train=trian: FOLDER has no split 'trian'; did you mean 'train'?",
    ),
    "splits without rows": (
        {"dataset_dict.json": '{"splits": ["train"]}'},
        {"train": "train"},
        "FOLDER:train: cannot be loaded as a saved dataset (FileNotFoundError: ",
    ),
    "state alone": (
        {"state.json": "{}"},
        None,
        "FOLDER: cannot be loaded as a saved dataset (FileNotFoundError: ",
    ),
}


def write_recipe(folder: Path, encoder: Path, tasks: Mapping[str, Any], **data: str) -> Path:
    recipe = {
        "encoder": {"path": str(encoder), "max_length": 32},
        "tasks": {
            name: {key: value for key, value in task.items() if value is not None}
            for name, task in tasks.items()
        },
        "batch": {"examples_per_step": 4, "max_tokens_per_micro_batch": 256},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 2, "save_every": 1, "keep_last": 2},
        "data": {"cache_dir": str(folder / "cache"), **data},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def classification(train: Path | None, **changes: Any) -> dict[str, Any]:
    files = None if train is None else {"train": str(train)}
    return {
        "kind": "classification",
        "files": files,
        "text_columns": ["text"],
        "label_column": "label",
        "labels": ["no", "yes"],
        **changes,
    }


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that must be refused says on stderr."""
    capsys.readouterr()
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and "Traceback" not in text
    return text


def prepared_folders(cache: Path) -> list[str]:
    """What the cache holds beside locks: nothing half-built may stay."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.is_dir() else []


@pytest.mark.parametrize(("file", "content", "changes", "message"), FILES.values(), ids=list(FILES))
def test_bad_data_file(
    file: str,
    content: bytes | str,
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    tiny_encoder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / file, content)
    recipe = write_recipe(tmp_path, tiny_encoder, {"mine": classification(path, **changes)})
    text = refusal(["prepare", "--recipe", str(recipe)], capsys).replace(str(path), "FILE")
    assert message in text
    assert text.startswith("error: FILE: ")
    assert prepared_folders(tmp_path / "cache") == []


@pytest.mark.parametrize(("files", "splits", "message"), SAVED.values(), ids=list(SAVED))
def test_bad_saved_dataset(
    files: dict[str, str],
    splits: dict[str, str] | None,
    message: str,
    tmp_path: Path,
    tiny_encoder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    for name, content in files.items():
        write(folder / name, content)
    recipe = write_recipe(
        tmp_path, tiny_encoder, {"mine": classification(None, dataset=str(folder), splits=splits)}
    )
    assert message in refusal(["prepare", "--recipe", str(recipe)], capsys).replace(str(folder), "FOLDER")
    assert prepared_folders(tmp_path / "cache") == []


def test_all_bad_files_come_in_one_message(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (
        write(tmp_path / name, content)
        for name, content in (
            ("first.tsv", TABLE + b"fine\tyes\nbad\tmaybe\nbad\n"),
            ("second.jsonl", ROW + "{\n"),
            ("third.parquet", "not parquet"),
        )
    )
    tasks = {
        "one": classification(
            None,
            files={"train": str(write(tmp_path / "good.tsv", TABLE + b"fine\tyes\n")), "dev": str(first)},
        ),
        "two": classification(second),
        "three": classification(third),
    }
    recipe = write_recipe(tmp_path, tiny_encoder, tasks)
    lines = refusal(["prepare", "--recipe", str(recipe)], capsys).splitlines()
    assert lines[:5] == [
        f"error: {first}: 2 of 3 {CANNOT_BE_USED}",
        "  line 3: unknown label 'maybe'; (known: no, yes)",
        "  line 4: 1 fields instead of 2",
        f"error: {second}: 1 of 2 {CANNOT_BE_USED}",
        "  line 2: not valid JSON (Expecting property name enclosed in double quotes, column 2)",
    ]
    assert lines[5].startswith(f"error: {third}: is not a readable parquet file (") and len(lines) == 6
    assert [name.rsplit("-", 1)[0] for name in prepared_folders(tmp_path / "cache")] == ["one-train"]


def test_bad_rows_are_skipped_and_counted_if_asked(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path / "a.tsv", TABLE + b"fine\tyes\nbad\tmaybe\nbad\nb\xe4d\tno\n\tno\nalso\tmaybe\nlast\tno\n"
    )
    recipe = write_recipe(tmp_path, tiny_encoder, {"mine": classification(path)}, on_bad_row="skip")
    assert main(["prepare", "--recipe", str(recipe)]) == 0
    text = capsys.readouterr().out
    assert (
        "; left out 1 rows: empty text; left out 1 rows: invalid UTF-8; "
        "left out 2 rows: unknown label; left out 1 rows: wrong number of fields"
    ) in text
    assert text.splitlines()[-1] == f"1 splits of 1 tasks, 2 rows (5 left out), ready in {tmp_path / 'cache'}"


def test_skipping_every_row_is_refused(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.tsv", TABLE + b"bad\tmaybe\n\tno\n")
    recipe = write_recipe(tmp_path, tiny_encoder, {"mine": classification(path)}, on_bad_row="skip")
    message = f"error: {path}: no usable row (1 left out: empty text; 1 left out: unknown label)\n"
    assert refusal(["prepare", "--recipe", str(recipe)], capsys) == message


@pytest.mark.parametrize("verb", ["tasks", "prepare", "train"])
def test_glue_folder_without_the_tasks_file(
    verb: str, tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_encoder, {"cola": {}}, glue_dir=str(tmp_path))
    arguments = [
        verb,
        "--recipe",
        str(recipe),
        *(["--output_dir", str(tmp_path / "run")] if verb == "train" else []),
    ]
    message = (
        f"tasks.cola: data.glue_dir={tmp_path} has no file CoLA/train.tsv; "
        "put it there, or unset data.glue_dir to use the hub"
    )
    assert f"error: {message}\n" in refusal(arguments, capsys)
    assert not (tmp_path / "run").exists()


def test_cache_folder_that_cannot_be_made(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.tsv", TABLE + b"fine\tyes\n")
    tasks = {"one": classification(path), "two": classification(path)}
    recipe = write_recipe(tmp_path, tiny_encoder, tasks, cache_dir=str(path / "cache"))
    message = (
        f"error: data.cache_dir={path}/cache: cannot be written (Not a directory); give a folder that can\n"
    )
    assert refusal(["prepare", "--recipe", str(recipe)], capsys) == message


def test_encoder_folder_without_a_tokenizer(
    tmp_path: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tiny_encoder / "config.json", tmp_path / "config.json")
    path = write(tmp_path / "a.tsv", TABLE + b"fine\tyes\n")
    recipe = write_recipe(tmp_path, tmp_path, {"mine": classification(path)})
    message = (
        f"error: encoder.path={tmp_path}: its tokenizer has no words, only special tokens; "
        "put tokenizer.json beside config.json"
    )
    assert message in refusal(["prepare", "--recipe", str(recipe)], capsys)


# Checkpoints


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """recipe.yaml, its data, and run/, trained for two steps with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("bad_input")
    tasks = {}
    for name, labels in (("first", ["no", "yes"]), ("second", ["low", "middle", "high"])):
        rows = [
            json.dumps({"text": f"sentence {number} of {name}", "label": labels[number % len(labels)]})
            for number in range(12)
        ]
        files = {
            "train": str(write(folder / f"{name}_train.jsonl", "\n".join(rows))),
            "dev": str(write(folder / f"{name}_dev.jsonl", "\n".join(rows[:6]))),
        }
        tasks[name] = classification(None, files=files, labels=labels)
    write_recipe(folder, tiny_encoder, tasks)
    ended = run_command(["-m", "mtdnn_ds", *train_arguments(folder), "--output_dir", str(folder / "run")])
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert MODEL_IS_BUILT in ended.stdout
    return folder


def train_arguments(folder: Path) -> list[str]:
    return [
        "train",
        "--recipe",
        str(folder / "recipe.yaml"),
        "--deepspeed_config",
        str(ROOT / "ds_configs/zero2_fp32.json"),
    ]


@pytest.fixture
def checkpoints(run_files: Path, tmp_path: Path) -> Path:
    """A copy of the run's checkpoints folder, to be damaged."""
    return shutil.copytree(run_files / "run" / "checkpoints", tmp_path / "run" / "checkpoints")


SHARD = "mp_rank_00_model_states.pt"


def truncate(step: Path) -> None:
    write(step / SHARD, (step / SHARD).read_bytes()[:1000])


def flip_a_byte(step: Path) -> None:
    content = bytearray((step / SHARD).read_bytes())
    content[len(content) // 2] ^= 1
    write(step / SHARD, bytes(content))


def edit_manifest(text: str) -> Callable[[Path], None]:
    def edit(step: Path) -> None:
        write(step / "manifest.json", text)

    return edit


# name -> (damage, what is said of the checkpoint)
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated shard": (truncate, f"{SHARD} has 1000 bytes instead of "),
    "flipped byte": (flip_a_byte, f"{SHARD} is damaged (its sha256 differs from the manifest's)"),
    "missing shard": (lambda step: (step / SHARD).unlink(), f"{SHARD} is missing"),
    "missing run state": (lambda step: (step / "run_state.json").unlink(), "run_state.json is missing"),
    "missing manifest": (
        lambda step: (step / "manifest.json").unlink(),
        "not a whole checkpoint (manifest.json is missing)",
    ),
    "manifest cut off": (edit_manifest('{"format": 1, "fil'), "manifest.json is not readable"),
    "manifest of another kind": (edit_manifest("[]"), "manifest.json is not readable"),
    "manifest with a list": (edit_manifest('{"files": ["a"]}'), "manifest.json is not readable"),
    "manifest without sizes": (edit_manifest('{"files": {"a": {}}}'), "manifest.json is not readable"),
    "manifest of nothing": (edit_manifest('{"files": {}}'), "manifest.json does not list run_state.json"),
}


@pytest.mark.distributed
@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_checkpoint(
    damage: Callable[[Path], None], message: str, checkpoints: Path, said: list[str]
) -> None:
    damage(checkpoints / "step_2")

    found = resume_from("auto", checkpoints.parent)
    assert found is not None and (found.path, found.step) == (checkpoints / "step_1", 1)
    (note,) = said
    assert note.startswith(f"{checkpoints}/step_2: {message}") and note.endswith("; trying the one before")

    with pytest.raises(CheckpointError) as asked_for:
        resume_from(str(checkpoints / "step_2"), checkpoints.parent)
    assert str(asked_for.value).startswith(f"{checkpoints}/step_2: {message}")

    damage(checkpoints / "step_1")
    with pytest.raises(CheckpointError) as all_damaged:
        find_checkpoint(checkpoints)
    newest, oldest, advice = all_damaged.value.problems
    assert newest.startswith(f"{checkpoints}/step_2: {message}") and oldest.startswith(
        f"{checkpoints}/step_1: {message}"
    )
    assert advice == (
        f"{checkpoints}: no checkpoint is whole; "
        "start again in an empty --output_dir, or restore one from a backup"
    )


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        (
            "FOLDER/none",
            (
                "--resume FOLDER/none: there is no such folder; "
                "give auto, none, a run folder or a folder checkpoints/step_N of one"
            ),
        ),
        (
            "FOLDER/checkpoints/step_9",
            "--resume FOLDER/checkpoints/step_9: there is no such folder; give auto, none, a run folder",
        ),
        ("FOLDER/file", "--resume FOLDER/file: there is no such folder; give auto, none, a run folder"),
        (
            "FOLDER",
            "--resume FOLDER: no checkpoint there; give a run folder or a folder checkpoints/step_N of one",
        ),
    ],
)
def test_resume_from_nothing(resume: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "file", "")
    with pytest.raises(CheckpointError) as caught:
        resume_from(resume.replace("FOLDER", str(tmp_path)), tmp_path)
    (problem,) = caught.value.problems
    assert message in problem.replace(str(tmp_path), "FOLDER")


def fit(folder: Path, saved: Mapping[str, Any], overrides: Mapping[str, str]) -> None:
    """Whether a run of `folder`'s recipe with `overrides`,
    on one rank under ZeRO 2, may go on from the saved state.
    """
    recipe = load_recipe(str(folder / "recipe.yaml"), overrides)
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    plan = build_plan(recipe, data)
    topology = {"world_size": 1, "zero_stage": 2, "precision": "fp32"}
    check_fit(
        "step_2",
        saved,
        RunState(step=0, recipe=settings_dict(recipe), plan=plan.state_dict(0), topology=topology),
        plan,
    )


# name -> (changed settings, message)
CHANGES: dict[str, tuple[dict[str, str], str]] = {
    "learning rate": (
        {"optimizer.lr": "2e-3"},
        "step_2: optimizer.lr was 0.001 when it was saved and is 0.002 now",
    ),
    "optimizer": (
        {"optimizer.name": "deepspeed_adamw"},
        "step_2: optimizer.name was 'adamw' when it was saved and is 'deepspeed_adamw' now",
    ),
    "schedule": (
        {"schedule.name": "cosine"},
        "step_2: schedule.name was 'linear' when it was saved and is 'cosine' now",
    ),
    "examples a step": (
        {"batch.examples_per_step": "8"},
        "step_2: batch.examples_per_step was 4 when it was saved and is 8 now",
    ),
    "seed": ({"train.seed": "7"}, "step_2: train.seed was 0 when it was saved and is 7 now"),
    "steps": ({"train.steps": "9"}, "step_2: train.steps was 2 when it was saved and is 9 now"),
    "rates": (
        {"mixture.rates": "uniform"},
        "step_2: mixture.rates was 'proportional' when it was saved and is 'uniform' now",
    ),
    "tasks": (
        {"tasks": "first"},
        "step_2: tasks.second.kind was 'classification' when it was saved and is None now",
    ),
    "dropout of a task": (
        {"tasks.first.dropout": "0.5"},
        "step_2: tasks.first.dropout was None when it was saved and is 0.5 now",
    ),
    "sequence length": (
        {"encoder.max_length": "64"},
        "step_2: encoder.max_length was 32 when it was saved and is 64 now",
    ),
}


@pytest.mark.distributed
@pytest.mark.parametrize(("overrides", "message"), CHANGES.values(), ids=list(CHANGES))
def test_recipe_changed_between_checkpoint_and_resume(
    overrides: dict[str, str], message: str, run_files: Path
) -> None:
    saved = open_checkpoint(run_files / "run" / "checkpoints" / "step_2").run_state
    with pytest.raises(CheckpointError) as caught:
        fit(run_files, saved, overrides)
    *problems, advice = caught.value.problems
    if "tasks" in overrides:  # every setting of the lost task is listed
        assert message in problems and all(
            problem.startswith("step_2: tasks.second.") for problem in problems
        )
    else:
        assert problems == [message]
    assert advice == (
        "resume with the saved values (they are in the run folder's recipe.yaml), "
        "or start a new run in another --output_dir"
    )


@pytest.mark.distributed
def test_another_precision_is_refused_with_both(run_files: Path, checkpoints: Path) -> None:
    file = checkpoints / "step_2" / "run_state.json"
    state = json.loads(file.read_text())
    write_json(
        file,
        {**state, "topology": {**state["topology"], "world_size": 4, "zero_stage": 3, "precision": "bf16"}},
    )
    (checkpoints / "step_2" / "manifest.json").unlink()
    write_manifest(checkpoints / "step_2")
    with pytest.raises(
        CheckpointError, match=r"step_2: topology\.precision was 'bf16' when it was saved and is 'fp32' now"
    ) as caught:
        fit(
            run_files,
            open_checkpoint(checkpoints / "step_2").run_state,
            {"batch.max_tokens_per_micro_batch": "512"},
        )
    assert (
        len(caught.value.problems) == 2
    )  # ranks, ZeRO stage and micro-batches may change; the last line says what to do


@pytest.mark.distributed
def test_settings_that_change_no_number_are_free(run_files: Path, tmp_path: Path) -> None:
    saved = open_checkpoint(run_files / "run" / "checkpoints" / "step_2").run_state
    free = {
        "train.eval_every": "1",
        "train.save_every": "0",
        "train.keep_last": "9",
        "encoder.attention": "padded",
        "data.cache_dir": str(tmp_path),
    }
    fit(run_files, saved, free)
    with pytest.raises(CheckpointError) as caught:
        fit(run_files, saved, {**free, "train.seed": "1"})
    assert len(caught.value.problems) == 2  # the seed and the advice: none of the free ones is counted


@pytest.fixture
def changed_data(run_files: Path) -> Iterator[None]:
    """One word of the training data is another while the test runs."""
    file = run_files / "first_train.jsonl"
    before = file.read_text()
    write(file, before.replace("sentence 3", "sentence 4"))
    yield
    write(file, before)


@pytest.mark.distributed
@pytest.mark.usefixtures("changed_data")
def test_changed_training_data_is_refused(run_files: Path) -> None:
    saved = open_checkpoint(run_files / "run" / "checkpoints" / "step_2").run_state
    with pytest.raises(CheckpointError) as caught:
        fit(run_files, saved, {})
    fingerprint, advice = caught.value.problems
    assert fingerprint.startswith(
        f"plan.fingerprint: checkpoint '{saved['plan']['fingerprint']}', this run '"
    )
    assert "resume with its tasks, data, mixture, seed and examples_per_step" in advice


# Run folders and weights


@pytest.mark.distributed
def test_a_used_output_folder_is_not_written_over(
    run_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "file", "notes")
    for folder, message in (
        (
            run_files / "run",
            "is not empty; add --resume auto to go on with that run, or give another --output_dir",
        ),
        (tmp_path / "file", "is a file; give a folder"),
    ):
        before = contents(folder)
        assert (
            refusal([*train_arguments(run_files), "--output_dir", str(folder)], capsys)
            == f"error: --output_dir {folder}: {message}\n"
        )
        assert contents(folder) == before


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file but the lock, which every command that may write takes."""
    files = (path for path in [folder, *folder.rglob("*")] if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["none"],
            (
                "error: --run_dir FOLDER/none: not a run folder (recipe.yaml is missing); "
                "give the --output_dir of a training run\n"
            ),
        ),
        (
            ["broken", "--checkpoint", "best/average"],
            "error: FOLDER/broken/recipe.yaml: encoder is missing; write at least encoder.path\n",
        ),
        (
            ["run"],
            (
                "error: FOLDER/run/checkpoints: no checkpoint there yet; "
                "train first, or give --checkpoint best/average\n"
            ),
        ),
        (
            ["run", "--checkpoint", "step_3"],
            (
                "error: --checkpoint step_3: not in FOLDER/run; did you mean 'step_2'? "
                "(known: best/average, best/first, latest, step_2)\n"
            ),
        ),
        (
            ["run", "--checkpoint", "best/averge"],
            "error: --checkpoint best/averge: not in FOLDER/run; did you mean 'best/average'? (known: ",
        ),
        (
            ["run", "--checkpoint", "last"],
            "error: --checkpoint last: not in FOLDER/run; did you mean 'latest'? (known: ",
        ),
        (
            ["run", "--checkpoint", "step_2"],
            "error: FOLDER/run/checkpoints/step_2: not a whole checkpoint (manifest.json is missing)\n",
        ),
    ],
)
def test_evaluate_of_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (
        "broken/best/average",
        "run/best/average",
        "run/best/first",
        *(["run/checkpoints/step_2"] if "--checkpoint" in arguments else []),
    ):
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path / "broken/recipe.yaml", "tasks: [cola]\ntrain: {steps: 1}\n")
    write(tmp_path / "run/recipe.yaml", "encoder: {path: e}\ntasks: [cola]\ntrain: {steps: 1}\n")
    for name in ("broken/best/average", "run/best/average", "run/best/first"):
        write(tmp_path / name / "model.safetensors", "")
    run, *flags = arguments
    assert message in refusal(["evaluate", str(tmp_path / run), *flags], capsys).replace(
        str(tmp_path), "FOLDER"
    )


@pytest.mark.distributed
def test_evaluate_of_damaged_checkpoints(
    checkpoints: Path, run_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(run_files / "run" / "recipe.yaml", checkpoints.parent)
    truncate(checkpoints / "step_1")
    truncate(checkpoints / "step_2")
    lines = refusal(["evaluate", str(checkpoints.parent)], capsys).splitlines()
    assert [line.split(f" {SHARD}")[0] for line in lines[:2]] == [
        f"error: {checkpoints}/step_{step}:" for step in (2, 1)
    ]
    assert lines[2].startswith(f"error: {checkpoints}: no checkpoint is whole; ") and len(lines) == 3


@pytest.mark.distributed
def test_damaged_weights_file(run_files: Path, tmp_path: Path) -> None:
    best = shutil.copytree(run_files / "run" / "best" / "average", tmp_path / "average")
    write(best / "model.safetensors", (best / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError) as caught:
        read_weights(best)
    assert str(caught.value).startswith(f"{best}/model.safetensors: is damaged (")
    assert str(caught.value).endswith("); give another --checkpoint")


@pytest.mark.distributed
def test_weights_that_do_not_fit(run_files: Path) -> None:
    recipe = load_recipe(str(run_files / "recipe.yaml"), {"tasks": "first"})
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    model = run_model(recipe, data, device=torch.device("cpu"), compute_dtype=torch.float32)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    best = run_files / "run" / "best" / "average"
    weights: dict[str, Any] = dict(read_weights(best))
    lost = next(name for name in weights if name.endswith("LayerNorm.weight"))
    weights["extra"] = weights.pop(lost)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, weights, best)
    first, second, *others = caught.value.problems
    assert (first, second) == (f"{best}: {lost} is missing", f"{best}: extra is not part of this model")
    assert any(
        "is (5, 32) there and (2, 32) in the model" in problem for problem in others
    )  # 2 + 3 labels against 2
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.distributed
def test_tokenizer_of_another_encoder(run_files: Path, tmp_path: Path, tiny_encoder: Path) -> None:
    other = shutil.copytree(tiny_encoder, tmp_path / "other")
    write_json(other / "config.json", {**json.loads((other / "config.json").read_text()), "vocab_size": 100})
    flags = {
        "encoder.path": str(other),
        "encoder.tokenizer": str(tiny_encoder),
        "encoder.random_init": "true",
    }
    recipe = load_recipe(str(run_files / "recipe.yaml"), flags)
    data = prepare_run_data(recipe, resolve_tasks(recipe))
    with pytest.raises(ConfigError) as caught:
        run_model(recipe, data, device=torch.device("cpu"), compute_dtype=torch.float32)
    assert str(caught.value) == (
        f"encoder.tokenizer={tiny_encoder}: has 30,522 tokens, "
        f"and the encoder {other} knows 100; use the encoder's own"
    )


# Whole commands


def refused_command(arguments: list[str]) -> str:
    """stderr of a real `python -m mtdnn_ds ...` that must end with exit code 2 before a model is built."""
    ended = run_command(["-m", "mtdnn_ds", *arguments], fresh=True)
    assert ended.returncode == 2, ended.stderr[-4000:]
    assert "Traceback" not in ended.stderr
    assert MODEL_IS_BUILT not in ended.stdout
    return ended.stderr


@pytest.mark.distributed
def test_command_with_everything_wrong(run_files: Path, tmp_path: Path) -> None:
    json_file = write_json(tmp_path / "ds.json", {"zero_optimization": {"stge": 2}})
    write(tmp_path / "used", "notes")
    arguments = [
        "train",
        "--recipe",
        str(run_files / "recipe.yaml"),
        "--deepspeed_config",
        str(json_file),
        "--output_dir",
        str(tmp_path / "used"),
    ]
    text = refused_command([*arguments, "--optimizer.lr", "fast", "--train.setps", "3"])
    for message in (
        "unknown setting '--train.setps'; did you mean '--train.steps'?",
        "--optimizer.lr fast: must be a number",
        f"{json_file}: unknown key 'zero_optimization.stge'; did you mean 'stage'?",
        f"--output_dir {tmp_path}/used: is a file; give a folder",
    ):
        assert f"error: {message}" in text


@pytest.mark.distributed
def test_command_with_bad_data(tmp_path: Path, tiny_encoder: Path) -> None:
    path = write(tmp_path / "a.tsv", TABLE + b"fine\tyes\nbad\tyse\n")
    write_recipe(tmp_path, tiny_encoder, {"mine": classification(path)})
    text = refused_command([*train_arguments(tmp_path), "--output_dir", str(tmp_path / "run")])
    assert (
        f"error: {path}: 1 of 2 {CANNOT_BE_USED}\n"
        "  line 3: unknown label 'yse'; did you mean 'yes'? (known: no, yes)\n"
    ) in text
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_command_that_resumes_with_another_recipe(run_files: Path) -> None:
    run = run_files / "run"
    before = contents(run)
    text = refused_command(
        [*train_arguments(run_files), "--output_dir", str(run), "--resume", "auto", "--optimizer.lr", "5e-4"]
    )
    assert (
        f"error: {run}/checkpoints/step_2: optimizer.lr was 0.001 when it was saved and is 0.0005 now\n"
        in text
    )
    assert contents(run) == before
