"""An mt-dnn task definition and its data files as a recipe, with all that is not carried over.

Trains nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.config.load import load_recipe
from mtdnn_ds.config.text_files import read_text
from mtdnn_ds.config.yaml_text import dump_yaml, parse_yaml
from mtdnn_ds.mt_dnn.data_files import COLUMNS, find_files, write_rows
from mtdnn_ds.mt_dnn.definition import Finding
from mtdnn_ds.mt_dnn.task_def import ImportedTask, encoder_of, longest, translate
from mtdnn_ds.tasks.resolve import resolve_tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedRecipe:
    """What was written, and what was not carried over."""

    path: Path
    tasks: tuple[str, ...]  # of the recipe, by our names
    num_definitions: int
    rows: Path | None  # folder of converted rows, where there are any
    findings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Conversion:
    """Where rows come from and go.

    Converted ones go to `aside` first, and are named by where they will be.
    """

    data: Path
    rows: Path
    aside: Path
    tokenizer: Any
    findings: list[Finding]
    problems: list[str] = field(default_factory=list)


def import_task_def(
    *, task_def: str, data: str, output: str, encoder: str | None, decode_with: str | None
) -> ImportedRecipe:
    """Write the recipe `output`, and rows that had to be converted to a folder beside it.

    `data`: folder of TASK_SPLIT.tsv; `encoder`: in place of the definition's; `decode_with`: a tokenizer for
    files that have only token ids. Nothing is left behind when it fails. Raises ConfigError, DataError.
    """
    target = Path(output)
    rows = target.with_suffix("").with_name(f"{target.stem}_rows")
    _check_paths(target, rows, Path(data))
    definitions = parse_yaml(read_text(task_def, "task definition"), task_def)
    tasks, findings = translate(definitions, task_def)

    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{rows.name}.", dir=target.parent))
    try:
        conversion = _Conversion(
            data=Path(data), rows=rows, aside=aside, tokenizer=_tokenizer(decode_with), findings=findings
        )
        settings = _settings_of(tasks, conversion)
        path = encoder or encoder_of(definitions, findings)
        listed = [str(finding) for finding in findings]
        if not settings:
            raise ConfigError([f"{task_def}: no task can be carried over", *listed])

        if any(aside.iterdir()):
            os.replace(aside, rows)
        try:
            _write_recipe(target, _recipe(settings, path, longest(definitions)), task_def, listed)
        except BaseException:
            shutil.rmtree(rows, ignore_errors=True)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)

    return ImportedRecipe(
        path=target,
        tasks=tuple(settings),
        num_definitions=len(definitions),
        rows=rows if rows.is_dir() else None,
        findings=tuple(listed),
    )


def _check_paths(target: Path, rows: Path, data: Path) -> None:
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


def _settings_of(tasks: list[ImportedTask], conversion: _Conversion) -> dict[str, Any]:
    """Each task's settings with its files; without tasks that have none to train on.

    Raises DataError for bad lines.
    """
    settings = {}
    for task in tasks:
        sources = _find_sources(task, conversion)
        if "train" in sources:
            settings[task.name] = {**task.settings, **_file_settings(task, sources, conversion)}
        else:
            conversion.findings.append(
                Finding(
                    key=task.theirs,
                    value="(the task)",
                    why="has no training file",
                    instead="the task is left out",
                )
            )

    if conversion.problems:
        raise DataError(conversion.problems)
    return settings


def _find_sources(task: ImportedTask, conversion: _Conversion) -> dict[str, list[Path]]:
    """Our split -> the files to read, with a finding for each that is missing or has only token ids."""
    sources: dict[str, list[Path]] = {}
    for ours, theirs in task.splits.items():
        for split in theirs:
            text, prepared = find_files(conversion.data, task.theirs, split)
            source, why, instead = text, "", ""
            if text is None and prepared is None:
                why, instead = f"{task.theirs}_{split}.tsv is not there", "left out"
            elif text is None and conversion.tokenizer is None:
                assert prepared is not None
                why = f"{prepared.name} has only token ids, and no texts"
                instead = "left out; put the .tsv beside it, or give --decode_with TOKENIZER"
            elif text is None:
                assert prepared is not None
                source = prepared
                why = f"{prepared.name} has only token ids: capitals, spaces and what was cut off are lost"
                instead = "texts are decoded from them"

            if why:
                key = f"{task.theirs}.split_names"
                conversion.findings.append(Finding(key=key, value=split, why=why, instead=instead))
            if source is not None:
                sources.setdefault(ours, []).append(source)
    return sources


def _file_settings(
    task: ImportedTask, sources: dict[str, list[Path]], conversion: _Conversion
) -> dict[str, Any]:
    """`files` and columns.

    Texts that one TSV holds, and documents, are read where they are; all else is converted.
    """
    firsts = {split: str(files[0]) for split, files in sources.items()}
    if task.form == "documents":
        return {"files": firsts}

    are_single_tsv = all(len(files) == 1 and files[0].suffix == ".tsv" for files in sources.values())
    if task.form == "texts" and are_single_tsv:
        columns = [str(2 + place) for place in range(task.num_texts)]
        return {"files": firsts, "text_columns": columns, "label_column": "1"}

    settings: dict[str, Any] = {"files": _converted(task, sources, conversion)}
    if task.form == "texts":
        settings["text_columns"] = [f"text{place}" for place in range(1, task.num_texts + 1)]
    return {**settings, **COLUMNS[task.form]}


def _converted(task: ImportedTask, sources: dict[str, list[Path]], conversion: _Conversion) -> dict[str, str]:
    """Our split -> the file of its rows; bad lines become problems, those of all tasks in one error."""
    files = {}
    for split, paths in sources.items():
        name = f"{task.name}_{split}.jsonl"
        has_labels = not split.startswith("test")
        try:
            write_rows(
                paths,
                task,
                conversion.aside / name,
                tokenizer=conversion.tokenizer,
                with_labels=has_labels,
            )
        except DataError as error:
            conversion.problems.extend(error.problems)
        files[split] = str(conversion.rows / name)
    return files


def _recipe(tasks: dict[str, Any], encoder: str, max_length: int) -> dict[str, Any]:
    """With what its paper trains with, which are flags of its training script, and in no task definition; the
    weight decay, which the paper does not name, is the one in its authors' code.
    """
    return {
        "encoder": {"path": encoder, "max_length": max_length},
        "tasks": tasks,
        "mixture": {"rates": "proportional", "mixing": "per_step"},
        "batch": {"examples_per_step": 32, "max_tokens_per_micro_batch": max(8192, 4 * max_length)},
        "optimizer": {"name": "adamax", "lr": 5e-5, "weight_decay": 0.01},
        "train": {"epochs": 5},
    }


def _write_recipe(target: Path, recipe: dict[str, Any], task_def: str, listed: list[str]) -> None:
    """Write aside, load what was written as a run would, then rename."""
    head = [
        f"Made of mt-dnn's {task_def} by import-task-def. Optimizer, batch and length of training are those "
        "of its paper.",
        *listed,
    ]
    comments = "".join(f"# {line}\n" for text in head for line in text.splitlines())

    aside = target.with_name(f".{target.stem}.new{target.suffix}")
    try:
        aside.write_text(comments + "\n" + dump_yaml(recipe), encoding="utf-8")
        resolve_tasks(load_recipe(str(aside), {}))
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
