"""`import-task-def`: an mt-dnn task definition and its data files as a recipe, with everything that is not carried over. Trains nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.yaml_text import dump_yaml, parse_yaml, read_text
from mtdnn_ds.mt_dnn.task_def import Finding, ImportedTask, encoder_of, longest, translate
from mtdnn_ds.tasks.resolve import resolve_tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class _Import:
    """What is being written, and where. Converted rows go to `aside` first, and are named by where they will be."""

    data: Path
    rows: Path
    aside: Path
    tokenizer: Any
    findings: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def run(*, task_def: str, data: str, output: str, encoder: str | None, decode_with: str | None) -> int:
    """Write the recipe `output`, and rows that had to be converted to a folder beside it; returns the exit code. Raises ConfigError, DataError."""
    target, rows = Path(output), Path(output).with_suffix("").with_name(f"{Path(output).stem}_rows")
    _refuse(target, rows, Path(data))
    definitions = parse_yaml(read_text(task_def, "task definition"), task_def)
    tasks, findings = translate(definitions, task_def)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{rows.name}.", dir=target.parent))
    try:
        work = _Import(
            data=Path(data), rows=rows, aside=aside, tokenizer=_tokenizer(decode_with), findings=findings
        )
        settings = {task.name: values for task in tasks if (values := _with_files(task, work)) is not None}
        if work.problems:
            raise DataError(work.problems)
        path = encoder or encoder_of(definitions, findings)
        listed = [str(finding) for finding in findings]
        if not settings:
            raise ConfigError([f"{task_def}: no task can be carried over", *listed])
        recipe = _recipe(settings, path, longest(definitions))
        if any(aside.iterdir()):
            os.replace(aside, rows)
        try:
            _write(target, task_def, recipe, listed)
        except BaseException:
            shutil.rmtree(rows, ignore_errors=True)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(
        f"{len(listed)} things of {task_def} are not carried over as they stand:"
        if listed
        else f"all of {task_def} is carried over"
    )
    print("".join(f"  {line}\n" for line in listed), end="")
    print(
        f"wrote {target}: {len(settings)} of {len(definitions)} tasks ({', '.join(settings)})"
        + (f"; converted rows in {rows}" if rows.is_dir() else "")
    )
    print(f"train it with: deepspeed launchers/train.py --recipe {target}")
    return 0


def _refuse(target: Path, rows: Path, data: Path) -> None:
    problems = [
        f"--output {path}: is there already; give another name, or move it away"
        for path in (target, rows)
        if path.exists()
    ]
    if target.suffix not in (".yaml", ".yml"):
        problems.append(f"--output {target}: a recipe is a YAML file; write {target.with_suffix('.yaml')}")
    if not data.is_dir():
        problems.append(
            f"--data {data}: no such folder; give the one with TASK_SPLIT.tsv, as mt-dnn's canonical_data"
        )
    if problems:
        raise ConfigError(problems)


def _tokenizer(decode_with: str | None) -> Any:
    if decode_with is None:
        return None
    from mtdnn_ds.config.encoder_path import resolve_encoder_path
    from mtdnn_ds.data.cache.tokenize import load_tokenizer

    return load_tokenizer(resolve_encoder_path(decode_with))


def _with_files(task: ImportedTask, work: _Import) -> dict[str, Any] | None:
    """A task's settings with its files; None if it has none to train on."""
    from mtdnn_ds.mt_dnn.data_files import COLUMNS, find_files

    sources: dict[str, list[Path]] = {}
    for ours, theirs in task.splits.items():
        for split in theirs:
            text, prepared = find_files(work.data, task.theirs, split)
            source = text or (prepared if work.tokenizer is not None else None)
            if source is None:
                why = "has only token ids, and no texts" if prepared else "is not there"
                instead = (
                    "left out; put the .tsv beside it, or give --decode_with TOKENIZER"
                    if prepared
                    else "left out"
                )
                name = prepared.name if prepared else f"{task.theirs}_{split}.tsv"
                work.findings.append(
                    Finding(
                        key=f"{task.theirs}.split_names", value=split, why=f"{name} {why}", instead=instead
                    )
                )
                continue
            if source.suffix == ".json":
                why = f"{source.name} has only token ids: capitals, spaces and what was cut off are lost"
                work.findings.append(
                    Finding(
                        key=f"{task.theirs}.split_names",
                        value=split,
                        why=why,
                        instead="texts are decoded from them",
                    )
                )
            sources.setdefault(ours, []).append(source)
    if "train" not in sources:
        work.findings.append(
            Finding(
                key=task.theirs,
                value="(the task)",
                why="has no training file",
                instead="the task is left out",
            )
        )
        return None
    plain = task.form == "texts" and all(len(of) == 1 and of[0].suffix == ".tsv" for of in sources.values())
    if plain or task.form == "documents":
        files = {split: str(of[0]) for split, of in sources.items()}
        columns = (
            {"text_columns": [str(2 + place) for place in range(task.num_texts)], "label_column": "1"}
            if plain
            else {}
        )
        return {**task.settings, "files": files, **columns}
    texts = (
        {"text_columns": [f"text{place}" for place in range(1, task.num_texts + 1)]}
        if task.form == "texts"
        else {}
    )
    return {**task.settings, "files": _converted(task, sources, work), **texts, **COLUMNS[task.form]}


def _converted(task: ImportedTask, sources: dict[str, list[Path]], work: _Import) -> dict[str, str]:
    from mtdnn_ds.mt_dnn.data_files import write_rows

    files = {}
    for split, of in sources.items():
        name = f"{task.name}_{split}.jsonl"
        try:
            write_rows(
                of,
                task,
                work.aside / name,
                tokenizer=work.tokenizer,
                with_labels=not split.startswith("test"),
            )
        except DataError as error:
            work.problems.extend(error.problems)
        files[split] = str(work.rows / name)
    return files


def _recipe(tasks: dict[str, Any], encoder: str, max_length: int) -> dict[str, Any]:
    """With the settings that mt-dnn's paper trains with: they are flags of its train.py, and in no task definition."""
    return {
        "encoder": {"path": encoder, "max_length": max_length},
        "tasks": tasks,
        "mixture": {"rates": "proportional", "mixing": "per_step"},
        "batch": {"examples_per_step": 32, "max_tokens_per_micro_batch": max(8192, 4 * max_length)},
        "optimizer": {"name": "adamax", "lr": 5e-5, "weight_decay": 0.0},
        "train": {"epochs": 5},
    }


def _write(target: Path, task_def: str, recipe: dict[str, Any], listed: list[str]) -> None:
    """Write aside, load what was written as a run would, then rename."""
    head = [
        f"Made of mt-dnn's {task_def} by import-task-def. Optimizer, batch and length of training are those of its paper.",
        *listed,
    ]
    aside = target.with_name(f".{target.stem}.new{target.suffix}")
    comments = "".join(f"# {line}\n" for text in head for line in text.splitlines())
    try:
        aside.write_text(comments + "\n" + dump_yaml(recipe), encoding="utf-8")
        resolve_tasks(load_recipe(str(aside), {}))
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
