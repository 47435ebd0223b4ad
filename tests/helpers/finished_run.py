"""One small finished run with GLUE's test files in official layout, an entity task and a task with hostile
texts, for tests of what comes after training. Not a test file.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml

from helpers.glue_rows import cut_glue
from helpers.processes import run_command, write_json, zero_config

HOSTILE = (
    "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"
)
WITH_TEST = ("CoLA", "MRPC", "RTE", "STS-B")  # whose official test files are in ../shared/data
STSB_ROWS = 1_379  # of the official test set


def write_glue(shared_glue: Path, folder: Path) -> Path:
    """Cuts of all train and dev files, the official test files where there are any, and test files of MNLI
    and AX in official layout and length.
    """
    glue = cut_glue(shared_glue, folder, train_rows=60, dev_rows=40)
    for name in WITH_TEST:
        shutil.copy(shared_glue / name / "test.tsv", glue / name / "test.tsv")
    dev = (shared_glue / "STS-B/dev.tsv").read_text().split("\n")
    (glue / "STS-B/dev.tsv").write_text("\n".join(dev[: 1 + STSB_ROWS]) + "\n")
    pairs = [
        f"a {word} reads\tsomebody reads {number}"
        for number, word in enumerate(("man", "woman", "child", "poet", "king"))
    ]
    for file, rows in (("test_matched", 9_796), ("test_mismatched", 9_847)):
        head = (
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
            "sentence1_parse\tsentence2_parse\tsentence1\tsentence2"
        )
        lines = [head, *("\t".join([str(row), *["-"] * 7, pairs[row % 5]]) for row in range(rows))]
        (glue / f"MNLI/{file}.tsv").write_text("\n".join(lines) + "\n")
    (glue / "diagnostic").mkdir()
    lines = ["index\tsentence1\tsentence2", *(f"{row}\t{pairs[row % 5]}" for row in range(1_104))]
    (glue / "diagnostic/diagnostic.tsv").write_text("\n".join(lines) + "\n")
    return glue


def write_stsb_dev_as_test(shared_glue: Path, glue: Path) -> list[float]:
    """Make the first 1,379 rows of STS-B's dev set its test file; returns their scores."""
    rows = [
        line.split("\t") for line in (shared_glue / "STS-B/dev.tsv").read_text().split("\n")[: 1 + STSB_ROWS]
    ]
    (glue / "STS-B").mkdir(parents=True)
    (glue / "STS-B/test.tsv").write_text("\n".join("\t".join(row[:9]) for row in rows) + "\n")
    return [float(row[9]) for row in rows[1:]]


def train_finished_run(folder: Path, encoder: Path, official_files: Path) -> Path:
    """A run of 12 steps with three evaluations in `folder`/run."""
    glue = write_glue(official_files / "glue", folder / "glue")
    sentences = re.split(r"\n\s*\n", (official_files / "WNUT17/train.conll").read_text())
    (folder / "wnut").mkdir()
    for split, first in (("train", 0), ("dev", 60), ("test", 90)):
        (folder / f"wnut/{split}.conll").write_text("\n\n".join(sentences[first : first + 30]) + "\n\n")
    words = ("late", "broken", "fine")
    for split in ("train", "dev"):
        rows = [
            f'"{HOSTILE.replace(chr(34), chr(34) * 2)} parcel {row} is {words[row % 3]}",{words[row % 3]}'
            for row in range(24)
        ]
        (folder / f"shop_{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    shop = {
        "kind": "classification",
        "labels": list(words),
        "text_columns": ["text"],
        "label_column": "label",
        "files": {split: str(folder / f"shop_{split}.csv") for split in ("train", "dev")},
    }
    tasks = {name: {} for name in ("cola", "mrpc", "stsb", "rte", "mnli", "wnut17", "quickstart_sentiment")}
    recipe = {
        "encoder": {"path": str(encoder), "max_length": 48},
        "tasks": {**tasks, "shop": shop},
        "mixture": {"rates": "uniform"},
        "batch": {"examples_per_step": 16, "max_tokens_per_micro_batch": 4096},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 12, "seed": 3, "eval_every": 4, "save_every": 6},
        "board": {"text": True, "embeddings": 8},
        "data": {"cache_dir": str(folder / "cache"), "glue_dir": str(glue), "wnut_dir": str(folder / "wnut")},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    deepspeed = write_json(folder / "zero1.json", zero_config(1))
    words_of_command = [
        "train",
        "--recipe",
        str(folder / "recipe.yaml"),
        "--deepspeed_config",
        str(deepspeed),
        "--output_dir",
        str(folder / "run"),
    ]
    ended = run_command(["-m", "mtdnn_ds", *words_of_command], OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return folder / "run"
