"""What commands of pages work on in tests: recipes that train in a moment, and files of the names that pages
give. Not a test file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.glue_rows import cut_glue
from helpers.processes import ROOT
from mtdnn_ds.config.yaml_text import dump_yaml, parse_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """What small recipes and commands read."""

    encoder: Path
    official: Path  # official_files
    data: Path  # PATH/TO


def write_scratch(folder: Path, files: Files) -> None:
    """Everything that commands of pages name, but run folders."""
    for name in ("ds_configs", "launchers", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "runs").mkdir()
    (folder / "PATH/TO").mkdir(parents=True)
    for path in files.data.iterdir():
        (folder / "PATH/TO" / path.name).symlink_to(path)

    (folder / "recipes").mkdir()
    for path in (ROOT / "recipes").iterdir():
        target = folder / "recipes" / path.name
        if path.is_dir():
            target.symlink_to(path)
        else:
            target.write_text(small_recipe(path, files))


def small_recipe(path: Path, files: Files) -> str:
    """The recipe with a tiny encoder, two steps in each stage and small files in the official layouts."""
    recipe = parse_yaml(path.read_text(), str(path))
    recipe["encoder"] = {"path": str(files.encoder), "max_length": 64}
    recipe["batch"] = {"examples_per_step": 16, "max_tokens_per_micro_batch": 4096}
    recipe["optimizer"] = {**recipe.get("optimizer", {}), "name": "adamw"}
    recipe["data"] = {
        "glue_dir": str(files.data / "glue"),
        "snli_dir": str(files.official / "SNLI"),
        "scitail_dir": str(files.data / "scitail"),
        "wnut_dir": str(files.official / "WNUT17"),
        "squad_dir": str(files.data / "squad"),
        "coqa_dir": str(files.official / "CoQA"),
        "quac_dir": str(files.official / "QuAC"),
        "cache_dir": str(files.data / "cache"),
    }

    # A stage that says nothing of its length has the recipe's.
    for part in (recipe, *recipe.get("stages", [])):
        if part is recipe or "train" in part:
            kept = {name: value for name, value in part.get("train", {}).items() if name == "freeze"}
            part["train"] = {**kept, "steps": 2}
    return dump_yaml(recipe)


def write_data(folder: Path, official_files: Path) -> None:
    """PATH/TO: files of the names that pages give."""
    cut_glue(official_files / "glue", folder / "glue", train_rows=60, dev_rows=16)
    for split in ("train", "dev"):
        add_second_candidates(folder / f"glue/QNLI/{split}.tsv")
    for name in ("SNLI", "WNUT17"):
        (folder / name).symlink_to(official_files / name)
    (folder / "squad").mkdir()
    for split, part in (
        ("train-v1.1", "v1.1-partA"),
        ("dev-v1.1", "v1.1-partB"),
        ("train-v2.0", "v2.0-sample"),
    ):
        (folder / f"squad/{split}.json").symlink_to(official_files / f"SQuAD/dev-{part}.json")
    (folder / "squad/dev-v2.0.json").symlink_to(official_files / "SQuAD/dev-v2.0-sample.json")
    (folder / "scitail").mkdir()
    for animal, split in (("dog", "train"), ("cat", "dev"), ("horse", "test")):
        pairs = [
            f"A {animal} number {n} runs.\tAn animal runs.\t{('neutral', 'entails')[n % 2]}"
            for n in range(40)
        ]
        (folder / f"scitail/scitail_1.0_{split}.tsv").write_text("\n".join(pairs) + "\n")

    texts = [f"a {word} film with {number} songs" for number, word in enumerate(("fine", "dull", "long"))]
    tables = {
        "texts.txt": texts,
        "texts.csv": ["id,text", *(f"{number},{text}" for number, text in enumerate(texts))],
        "reviews.csv": ["text", *texts],
        "pairs.tsv": [
            "key\tleft\tright",
            *(f"{number}\t{text}\t{texts[0]}" for number, text in enumerate(texts)),
        ],
        "pairs.csv": [
            "id,text_a,text_b",
            *(f"{number},{text},{texts[0]}" for number, text in enumerate(texts)),
        ],
        # A node on which nothing is missing.
        "installed.txt": (ROOT / "requirements-lowest.txt").read_text().splitlines(),
        "A.txt": ["The harbour was closed.", "It rained.", "", "The ships went on for years.", ""] * 20,
    }
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    pq.write_table(pa.table({"text": texts}), folder / "large.parquet")

    (folder / "canonical_data").mkdir()
    for split in ("train", "dev"):
        (folder / f"canonical_data/cola_{split}.tsv").write_text(
            "0\t1\tThe dog barks.\n1\t0\tDog the barks.\n"
        )
    cola = {"data_format": "PremiseOnly", "task_type": "Classification", "n_class": 2, "metric_meta": ["ACC"]}
    (folder / "glue_task_def.yml").write_text(json.dumps({"cola": cola}))


def add_second_candidates(path: Path) -> None:
    """Each question of a QNLI file once more, with the other label: qnli_ranking needs candidates of both."""
    other = {"entailment": "not_entailment", "not_entailment": "entailment"}
    head, *rows = path.read_text().splitlines()
    cells = [row.split("\t") for row in rows]
    again = ["\t".join([*row[:3], other[row[3]]]) for row in cells]
    path.write_text("\n".join([head, *rows, *again]) + "\n")
