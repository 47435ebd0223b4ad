"""The prepared cache: equal to transformers' own tokenisation,
the same from every kind of source, built once, whole or not there.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.cached_rows import file_spec, write_roberta_tokenizer

from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.cache import build as cache
from mtdnn_ds.data.cache.build import PreparedSplit, prepare
from mtdnn_ds.data.cache.tokenize import kept_lengths, load_tokenizer
from mtdnn_ds.data.ragged import ragged_ranges
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec


def glue_specs(official_files: Path, *names: str) -> tuple[TaskSpec, ...]:
    tasks = list(names)
    recipe = {
        "encoder": {"path": "x"},
        "train": {"steps": 1},
        "tasks": tasks,
        "data": {"glue_dir": str(official_files / "glue")},
    }
    return resolve_tasks(Recipe.model_validate(recipe))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def unpacked(split: PreparedSplit, rows: np.ndarray, max_length: int) -> list[tuple[list[int], list[int]]]:
    input_ids, token_type_ids, lengths = split.gather(rows, max_length)
    assert (input_ids.dtype, token_type_ids.dtype, lengths.dtype) == (np.int64, np.int64, np.int32)
    ends = np.cumsum(lengths)
    assert len(input_ids) == len(token_type_ids) == ends[-1]
    return [
        (input_ids[end - length : end].tolist(), token_type_ids[end - length : end].tolist())
        for end, length in zip(ends, lengths, strict=True)
    ]


def theirs(
    tokenizer: Any, texts: list[tuple[str, ...]], max_length: int
) -> list[tuple[list[int], list[int]]]:
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length, padding=False)
    types = encoded.get("token_type_ids") or [[0] * len(ids) for ids in encoded["input_ids"]]
    return list(zip(encoded["input_ids"], types, strict=True))


@pytest.mark.parametrize(("task", "columns"), [("rte", (1, 2)), ("mrpc", (3, 4)), ("cola", (3,))])
def test_gather_equals_transformers_on_real_rows(
    task: str, columns: tuple[int, ...], official_files: Path, minilm: Path, tmp_path: Path
) -> None:
    specs = glue_specs(official_files, task)
    split = prepare(specs, tokenizer_path=str(minilm), cache_dir=str(tmp_path), splits=["dev"])[task]["dev"]
    lines = Path(specs[0].splits["dev"].path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    fields = [line.split("\t") for line in (lines if task == "cola" else lines[1:])]
    texts = [tuple(row[column] for column in columns) for row in fields]
    order = np.random.default_rng(0).permutation(split.num_rows)[:250]
    tokenizer = load_tokenizer(str(minilm))
    for max_length in (16, 64, 128):
        ours = unpacked(split, order, max_length)
        assert ours == theirs(tokenizer, [texts[row] for row in order], max_length)
        assert split.lengths(max_length).dtype == np.int32
        assert split.lengths(max_length)[order].tolist() == [len(ids) for ids, _ in ours]


def random_pairs(count: int, words: list[str]) -> list[tuple[str, str]]:
    """Lengths 0 < n <= 24, a third of them ties."""
    generator = np.random.default_rng(7)
    pairs = []
    for index in range(count):
        first, second = generator.integers(1, 25, size=2)
        second = first if index % 3 == 0 else second
        pairs.append((" ".join(generator.choice(words, first)), " ".join(generator.choice(words, second))))
    return pairs


@pytest.mark.parametrize("kind", ["bert", "roberta", "roberta truncating left"])
def test_truncation_equals_transformers_on_random_lengths(kind: str, minilm: Path, tmp_path: Path) -> None:
    if kind == "bert":
        path, words = minilm, ["the", "cat", "sat", "river", "bank"]
    else:
        path, words = (
            write_roberta_tokenizer(tmp_path / "tok", truncation_side="left" if "left" in kind else "right"),
            ["a", "b", "cd"],
        )
    pairs = random_pairs(300, words)
    rows = [{"a": first, "b": second, "label": 0} for first, second in pairs]
    spec = file_spec(write_rows(tmp_path / "rows.jsonl", rows), texts=("a", "b"))
    split = prepare([spec], tokenizer_path=str(path), cache_dir=str(tmp_path / "cache"))["mine"]["train"]
    tokenizer = load_tokenizer(str(path))
    for max_length in (8, 9, 16, 21, 64):
        assert unpacked(split, np.arange(300), max_length) == theirs(tokenizer, pairs, max_length)
    with pytest.raises(
        ConfigError, match=r"^encoder.max_length=3: \d special tokens leave no room for text; raise it$"
    ):
        split.lengths(3)


def test_kept_lengths_by_hand() -> None:
    first, second = kept_lengths(np.array([3, 7, 9, 5, 6, 2]), np.array([9, 9, 7, 5, 6, 2]), 9)
    assert first.tolist() == [3, 4, 5, 4, 4, 2]
    assert second.tolist() == [6, 5, 4, 5, 5, 2]
    assert ragged_ranges(np.array([5, 0, 9]), np.array([2, 3, 0])).tolist() == [5, 6, 0, 1, 2]


def test_tokenizers_own_padding_and_truncation_are_off(minilm: Path, tmp_path: Path) -> None:
    assert json.loads((minilm / "tokenizer.json").read_text())["padding"]["strategy"] == {"Fixed": 128}
    spec = file_spec(
        write_rows(tmp_path / "rows.jsonl", [{"text": "cat " * 300, "label": 1}, {"text": "cat", "label": 0}])
    )
    split = prepare([spec], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "cache"))["mine"]["train"]
    assert split.lengths(512).tolist() == [302, 3]


def test_sources_are_interchangeable(official_files: Path, minilm: Path, tmp_path: Path) -> None:
    import datasets

    (mrpc,) = glue_specs(official_files, "mrpc")
    lines = Path(mrpc.splits["dev"].path).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    rows = [
        dict(zip(("label", "s1", "s2"), (int(f[0]), f[3], f[4]), strict=True))
        for f in (line.split("\t") for line in lines[1:])
    ]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["s1", "label", "s2"])
        writer.writeheader()
        writer.writerows(rows)
    write_rows(tmp_path / "rows.jsonl", rows)
    columns = {name: [row[name] for row in rows] for name in ("s2", "label", "s1")}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=100)
    datasets.DatasetDict({"validation": datasets.Dataset.from_dict(columns)}).save_to_disk(
        str(tmp_path / "saved")
    )
    user = {
        "kind": "classification",
        "text_columns": ["s1", "s2"],
        "label_column": "label",
        "labels": ["not_equivalent", "equivalent"],
    }
    tasks = {
        form: {**user, "files": {"train": str(tmp_path / f"rows.{form}")}}
        for form in ("csv", "jsonl", "parquet")
    }
    tasks["saved"] = {**user, "dataset": str(tmp_path / "saved"), "splits": {"train": "validation"}}
    specs = resolve_tasks(
        Recipe.model_validate({"encoder": {"path": "x"}, "train": {"steps": 1}, "tasks": tasks})
    )
    prepared = prepare([mrpc, *specs], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "cache"))
    reference = prepared["mrpc"]["dev"]
    expected = reference.gather(np.arange(408), 128)
    assert reference.num_rows == 408 and reference.labels.tolist() == [row["label"] for row in rows]
    for name in tasks:
        split = prepared[name]["train"]
        assert np.array_equal(split.labels, reference.labels)
        assert all(
            np.array_equal(ours, known)
            for ours, known in zip(split.gather(np.arange(408), 128), expected, strict=True)
        )


@pytest.fixture
def small(tmp_path: Path) -> TaskSpec:
    return file_spec(
        write_rows(
            tmp_path / "rows.jsonl",
            [
                {"text": f"sentence number {index} " * (index % 7 + 1), "label": index % 2}
                for index in range(50)
            ],
        )
    )


def test_second_call_reuses_and_says_so(
    small: TaskSpec, minilm: Path, tmp_path: Path, said: list[str]
) -> None:
    cache_dir = tmp_path / "cache"
    first = prepare([small], tokenizer_path=str(minilm), cache_dir=str(cache_dir))["mine"]["train"]
    (folder,) = (path for path in cache_dir.iterdir() if path.is_dir())
    assert folder.name.startswith("mine-train-")
    assert said[0] == f"preparing mine/train from {tmp_path}/rows.jsonl ..."
    assert said[1].startswith("prepared mine/train: 50 rows, ") and said[1].endswith(
        f" s, cached in {folder}"
    )
    before = (folder / "tokens.arrow").stat()
    said.clear()
    second = prepare([small], tokenizer_path=str(minilm), cache_dir=str(cache_dir), build=False)["mine"][
        "train"
    ]
    after = (folder / "tokens.arrow").stat()
    assert said == [f"1 splits with 50 rows from the cache in {cache_dir}"]
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.gather(np.arange(50), 64)[0], first.gather(np.arange(50), 64)[0])
    assert second.source_rows.tolist() == list(range(1, 51))


def test_key_follows_content_columns_labels_and_tokenizer_only(
    small: TaskSpec, minilm: Path, tmp_path: Path
) -> None:
    def key(spec: TaskSpec, tokenizer: Path = minilm, **options: Any) -> str:
        return prepare([spec], tokenizer_path=str(tokenizer), cache_dir=str(tmp_path / "cache"), **options)[
            "mine"
        ]["train"].fingerprint

    first = key(small)
    path = Path(small.splits["train"].path)
    os.utime(path, (1, 1))
    moved = path.rename(tmp_path / "moved.jsonl")
    assert key(file_spec(moved)) == first
    assert key(replace(file_spec(moved), labels=("yes", "no"))) != first
    assert key(file_spec(moved), on_bad_row="skip") != first
    assert key(file_spec(moved), write_roberta_tokenizer(tmp_path / "tok")) != first
    moved.write_text(moved.read_text() + '{"text": "one more", "label": 1}\n')
    assert key(file_spec(moved)) != first


def test_rows_of_several_record_batches_are_gathered(
    small: TaskSpec, minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare([small], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "whole"))["mine"]["train"]
    monkeypatch.setattr(cache, "ROWS_PER_BATCH", 8)
    parts = prepare([small], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "parts"))["mine"]["train"]
    assert (len(whole.shards), len(parts.shards)) == (1, 7)
    rows = np.random.default_rng(1).integers(0, 50, size=200)
    assert unpacked(parts, rows, 12) == unpacked(whole, rows, 12)
    assert np.array_equal(parts.lengths(12), whole.lengths(12)) and np.array_equal(parts.labels, whole.labels)
    assert parts.gather(np.empty(0, dtype=np.int64), 12)[0].shape == (0,)


def test_tokens_are_memory_mapped(small: TaskSpec, minilm: Path, tmp_path: Path) -> None:
    split = prepare([small], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "cache"))["mine"]["train"]
    assert not split.shards[0].tokens.flags.owndata and split.shards[0].tokens.dtype == np.uint16
    (file,) = (tmp_path / "cache").glob("*/tokens.arrow")
    assert str(file) in Path("/proc/self/maps").read_text()


def test_missing_cache_without_build_names_the_split(small: TaskSpec, minilm: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError,
        match=r"^mine/train: .* is not prepared; one process per cache folder must prepare it first$",
    ):
        prepare([small], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "cache"), build=False)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["cut", "garbled", "no meta"])
def test_damaged_cache_is_noticed_and_built_again(
    damage: str, small: TaskSpec, minilm: Path, tmp_path: Path, said: list[str]
) -> None:
    options: dict[str, Any] = {"tokenizer_path": str(minilm), "cache_dir": str(tmp_path / "cache")}
    expected = prepare([small], **options)["mine"]["train"].gather(np.arange(50), 64)[0].copy()
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    size = (folder / "tokens.arrow").stat().st_size
    if damage == "cut":
        os.truncate(folder / "tokens.arrow", size - 100)
    elif damage == "garbled":
        (folder / "tokens.arrow").write_bytes(b"\0" * size)
    else:
        (folder / "meta.json").unlink()
    with pytest.raises(RuntimeError, match="is not prepared"):
        prepare([small], build=False, **options)
    said.clear()
    again = prepare([small], **options)["mine"]["train"]
    assert said[0].startswith(f"mine/train: the cache in {folder} is damaged (") and said[0].endswith(
        "); building it again"
    )
    assert np.array_equal(again.gather(np.arange(50), 64)[0], expected)


KILLED_BUILD = """
import os, signal, sys
from mtdnn_ds.data.cache import build as cache
from mtdnn_ds.data.cache.build import prepare
from helpers.cached_rows import file_spec
from pathlib import Path
cache.ROWS_PER_BATCH = 8
original = cache.record_batch
def dies(block, tokenizer, schema, reader):
    if block[0].number > 24:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(block, tokenizer, schema, reader)
cache.record_batch = dies
prepare([file_spec(Path(sys.argv[1]))], tokenizer_path=sys.argv[2], cache_dir=sys.argv[3])
"""


def test_killed_build_leaves_nothing_usable_and_is_cleaned_up(
    small: TaskSpec, minilm: Path, tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    arguments = [small.splits["train"].path, str(minilm), str(tmp_path / "cache")]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BUILD, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = (path.name for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert ".building-" in left
    with pytest.raises(RuntimeError, match="is not prepared"):
        prepare([small], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "cache"), build=False)
    split = prepare([small], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "cache"))["mine"]["train"]
    assert split.num_rows == 50
    assert [path.name for path in (tmp_path / "cache").iterdir() if ".building-" in path.name] == []


BUILD = """
import sys
from pathlib import Path
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.monitor.console import speaking
from helpers.cached_rows import file_spec
with speaking():
    prepared = prepare([file_spec(Path(sys.argv[1]))], tokenizer_path=sys.argv[2], cache_dir=sys.argv[3])
print(prepared["mine"]["train"].num_rows)
"""


def test_concurrent_builders_agree(small: TaskSpec, minilm: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    arguments = [
        sys.executable,
        "-c",
        BUILD,
        small.splits["train"].path,
        str(minilm),
        str(tmp_path / "cache"),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    builders = [
        subprocess.Popen(arguments, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    output = [builder.communicate()[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert [text.strip().split("\n")[-1] for text in output] == ["50", "50"]
    assert sum("prepared mine/train" in text for text in output) == 1


def test_problems_of_all_splits_come_at_once(minilm: Path, tmp_path: Path) -> None:
    specs = [
        file_spec(write_rows(tmp_path / f"{name}.jsonl", [{"text": "", "label": 0}]), name=name)
        for name in ("one", "two")
    ]
    with pytest.raises(DataError) as raised:
        prepare(specs, tokenizer_path=str(minilm), cache_dir=str(tmp_path / "cache"))
    assert [problem.split(":")[0] for problem in raised.value.problems] == [
        f"{tmp_path}/one.jsonl",
        f"{tmp_path}/two.jsonl",
    ]
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_skipped_rows_are_counted_and_said_every_time(minilm: Path, tmp_path: Path, said: list[str]) -> None:
    spec = file_spec(
        write_rows(
            tmp_path / "rows.jsonl",
            [{"text": "", "label": 0}, {"text": "x", "label": 1}, {"text": "y", "label": 7}],
        )
    )
    for _ in range(2):
        said.clear()
        split = prepare(
            [spec], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "cache"), on_bad_row="skip"
        )["mine"]["train"]
        assert split.skipped == {"empty text": 1, "unknown label": 1}
        assert split.source_rows.tolist() == [2] and split.labels.tolist() == [1.0]
        assert any(
            line.endswith("; left out 1 rows: empty text; left out 1 rows: unknown label") for line in said
        )


def test_missing_tokenizer_is_a_config_error(small: TaskSpec, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"^encoder.path=.*/empty: no tokenizer can be loaded \("):
        prepare([small], tokenizer_path=str(tmp_path / "empty"), cache_dir=str(tmp_path / "cache"))


def test_gather_has_no_loop_over_examples(minilm: Path, tmp_path: Path) -> None:
    rows = [
        {"a": f"the {index} cat sat on the mat " * (1 + index % 3), "b": "a cat", "label": 0}
        for index in range(2000)
    ]
    spec = file_spec(write_rows(tmp_path / "rows.jsonl", rows), texts=("a", "b"))
    split = prepare([spec], tokenizer_path=str(minilm), cache_dir=str(tmp_path / "cache"))["mine"]["train"]
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> Any:
        nonlocal calls
        calls += 1
        return count

    def lines_run(num_rows: int) -> int:
        nonlocal calls
        calls = 0
        sys.settrace(count)
        split.gather(np.arange(num_rows), 64)
        sys.settrace(None)
        return calls

    few, many = lines_run(10), lines_run(2000)
    assert few == many
