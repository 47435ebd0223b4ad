"""mt-dnn's task definitions (experiments/*/*_task_def.yml) in our terms, key by key. Opens no data file.

What a definition says is either carried into a task's settings or named in a Finding: the key, its value, why
not, and what we do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.mt_dnn.definition import LEFT_OUT, Definition, Finding, type_problems
from mtdnn_ds.mt_dnn.names import (
    ENCODERS,
    FORMATS,
    FORMS_OF_KIND,
    KEYS,
    NO_ENCODERS,
    NO_FORMATS,
    NO_TYPES,
    SETTINGS,
    TYPES,
    Form,
    our_splits,
)
from mtdnn_ds.mt_dnn.task_settings import labels_of, metrics_of, note_losses, other_settings
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedTask:
    """One task: the settings that follow from its definition, and what its files are to be read with."""

    name: str  # ours
    theirs: str  # the name in the definition, with which file names begin
    settings: dict[str, Any]
    form: Form
    num_texts: int  # of form texts
    labels: tuple[str, ...]  # theirs, in class-id order
    splits: Mapping[str, tuple[str, ...]]  # our split -> theirs; only train may have several


def translate(definitions: object, source: str) -> tuple[list[ImportedTask], list[Finding]]:
    """The tasks of a definition file that ours has a kind for, and everything that is not carried over.

    `source` names the file in errors. Raises ConfigError.
    """
    if not isinstance(definitions, dict) or not definitions:
        raise ConfigError(f"{source}: a task definition is a mapping of task names to their keys")

    problems: list[str] = []
    findings: list[Finding] = []
    tasks = []
    for name, all_keys in definitions.items():
        if not isinstance(all_keys, dict):
            problems.append(
                f"{source}: {name}: a task is a mapping of keys (data_format, task_type, ...), "
                f"not {all_keys!r}"
            )
            continue

        keys = {str(key): value for key, value in all_keys.items() if value is not None}
        wrong = type_problems(f"{source}: {name}", keys)
        if wrong:
            problems += wrong
            continue

        task = _task(Definition(name=str(name), keys=keys, findings=findings), source, problems)
        if task is not None:
            tasks.append(task)
    if problems:
        raise ConfigError(problems)

    names = [task.name for task in tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            f"{source}: two tasks would be called {', '.join(repeated)} here; rename one of them"
        )
    return tasks, findings


def encoder_of(definitions: Mapping[str, Any], findings: list[Finding]) -> str:
    """The hub name of the encoder that the definitions are for: BERT's, where they do not say."""
    named = {}  # encoder_type -> the last task that names it
    for name, keys in definitions.items():
        if isinstance(keys, dict) and "encoder_type" in keys:
            named[str(keys["encoder_type"])] = name

    for encoder_type, name in named.items():
        if encoder_type in ENCODERS:
            continue
        why = "ours has no such encoder"
        if encoder_type not in NO_ENCODERS:
            why = f"unknown{did_you_mean(encoder_type, ENCODERS)}"
        instead = "ours begins with BERT; give --encoder"
        findings.append(Finding(key=f"{name}.encoder_type", value=encoder_type, why=why, instead=instead))

    known = [encoder_type for encoder_type in named if encoder_type in ENCODERS]
    for other in known[1:]:
        findings.append(
            Finding(
                key=f"{named[other]}.encoder_type",
                value=other,
                why=f"a run has one encoder, {known[0]}",
                instead="give --encoder for another",
            )
        )
    return ENCODERS[known[0] if known else "BERT"]


def longest(definitions: Mapping[str, Any]) -> int:
    """Tokens of a sequence: the largest max_seq_len, or what mt-dnn's prepro_std cuts at."""
    tasks = [keys for keys in definitions.values() if isinstance(keys, dict)]
    lengths = [int(keys["max_seq_len"]) for keys in tasks if "max_seq_len" in keys]
    return max(lengths, default=512)


def _task(definition: Definition, source: str, problems: list[str]) -> ImportedTask | None:
    """One task in our terms; None, with a finding or a problem, where it cannot be carried over."""
    keys, name = definition.keys, definition.name
    for key in keys:
        if key not in KEYS:
            instead = f"here it is the setting {SETTINGS[key]}" if key in SETTINGS else "left out"
            definition.add_finding(key, f"unknown key{did_you_mean(key, KEYS)}", instead)

    missing = [key for key in ("data_format", "task_type") if key not in keys]
    if missing:
        which = "it" if len(missing) == 1 else "them"
        problems.append(f"{source}: {name}: {' and '.join(missing)} missing; mt-dnn needs {which} too")
        return None
    if not _is_known(definition):
        return None

    kind, losses = TYPES[str(keys["task_type"])]
    form, num_texts = FORMATS[str(keys["data_format"])]
    if kind == "span":
        form = "span"

    theirs = tuple(str(label) for label in dict.fromkeys(keys.get("labels") or ()))
    labels = labels_of(definition, kind, theirs)
    if labels is None:
        return None
    settings: dict[str, Any] = {"kind": kind}
    if labels:
        settings["labels"] = list(labels)
    metrics = metrics_of(definition, kind, len(labels))
    if metrics:
        settings["metrics"] = metrics
    settings |= other_settings(definition, kind, num_texts)
    note_losses(definition, kind, losses)
    if "max_seq_len" in keys:
        definition.add_finding(
            "max_seq_len", "a run has one length", "encoder.max_length is the largest of all tasks"
        )

    splits = _splits(definition)
    return ImportedTask(
        name=_our_name(definition),
        theirs=name,
        settings=settings,
        form=form,
        num_texts=num_texts or 2,
        labels=theirs or labels,
        splits=splits,
    )


def _is_known(definition: Definition) -> bool:
    """Whether ours has the task's type and format, and the two fit."""
    task_type, data_format = str(definition.keys["task_type"]), str(definition.keys["data_format"])
    if task_type not in TYPES:
        hint = did_you_mean(task_type, [*TYPES, *NO_TYPES])
        definition.add_finding("task_type", NO_TYPES.get(task_type, f"unknown{hint}"), LEFT_OUT)
        return False

    if data_format not in FORMATS:
        why = f"unknown{did_you_mean(data_format, FORMATS)}"
        if data_format in NO_FORMATS:
            why = "mt-dnn's own prepro_std.py has no reader for it"
        definition.add_finding("data_format", why, LEFT_OUT)
        return False

    kind, form = TYPES[task_type][0], FORMATS[data_format][0]
    if form not in FORMS_OF_KIND[kind]:
        definition.add_finding("data_format", f"does not fit task_type {task_type}", LEFT_OUT)
        return False
    return True


def _splits(definition: Definition) -> dict[str, tuple[str, ...]]:
    """{our split: theirs}, with a finding for each that is none."""
    names = definition.keys.get("split_names") or ("train", "dev", "test")
    splits, left_out = our_splits([str(split) for split in names])
    for split in left_out:
        definition.findings.append(
            Finding(
                key=f"{definition.name}.split_names",
                value=split,
                why="neither a train, a dev nor a test split",
                instead="left out",
            )
        )
    return splits


def _our_name(definition: Definition) -> str:
    """The task's name, changed where it is that of a built-in task."""
    name = definition.name
    if name not in BUILTIN_TASKS:
        return name

    ours = f"mtdnn_{name}"
    definition.findings.append(
        Finding(
            key=name,
            value="(its name)",
            why="is a built-in task of ours, with files of its own",
            instead=f"called {ours} here",
        )
    )
    return ours
