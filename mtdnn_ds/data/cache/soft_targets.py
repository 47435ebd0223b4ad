"""Soft targets: what teachers answer on a task's training examples, stored by example, and their mean.

Runs no model.

Teachers are finished runs (train/distillation/teachers.py).

    CACHE_DIR/TASK-train-KEY.soft.safetensors
        outputs (K, O) float32, offsets (E + 1,) int64: example e has rows offsets[e] : offsets[e + 1]
    CACHE_DIR/TASK-train-KEY.soft.safetensors.lock
        held by the process that writes it

A file is written aside, synced and renamed, so it is either whole or not there. Outputs are kept as the
teacher gave them: the temperature and the other teachers come in when they are read.

Shape legend: E examples of a task, K their supervised rows, O outputs of the task's term.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.data.ragged import ragged_ranges
from mtdnn_ds.files import sync
from mtdnn_ds.tasks.layout import Answer

log = logging.getLogger(__name__)

VERSION = 1  # raise it when the same teacher's outputs on the same examples would be stored otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsByExample:
    """Numbers for every supervised row of every example: a teacher's outputs, or soft targets."""

    values: np.ndarray  # (K, O) float32
    offsets: np.ndarray  # (E + 1,) int64


def soft_key(identity: Mapping[str, Any]) -> str:
    """A name for outputs that `identity`, made of plain values, decides."""
    return hashlib.sha256(json.dumps([VERSION, dict(identity)], sort_keys=True).encode()).hexdigest()


def soft_file(cache_dir: str, task: str, key: str) -> Path:
    """Where the outputs of one teacher for one task are stored."""
    return Path(cache_dir).expanduser() / f"{task}-train-{key[:16]}.soft.safetensors"


def read_outputs(file: Path) -> RowsByExample | None:
    """The stored outputs, or None if they are not there, or damaged, which is said."""
    if not file.is_file():
        return None
    try:
        arrays = load_file(file)
        return RowsByExample(values=arrays["outputs"], offsets=arrays["offsets"])
    except (OSError, SafetensorError, KeyError) as error:
        log.info(f"{file}: is damaged ({error}); computing it again")
        return None


def write_outputs(file: Path, outputs: RowsByExample) -> None:
    """Store outputs; a kill at any point leaves the file whole or not there.

    Raises ConfigError if it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{file}.lock"):
            # We hold the lock, so the writer of a leftover is dead.
            for leftover in file.parent.glob(f"{file.name}.building-*"):
                leftover.unlink()

            aside = file.with_name(f"{file.name}.building-{os.getpid()}")
            save_file({"outputs": np.ascontiguousarray(outputs.values), "offsets": outputs.offsets}, aside)
            sync(aside)
            aside.replace(file)
            sync(file.parent)
    except OSError as error:
        raise ConfigError(
            f"data.cache_dir={file.parent}: cannot be written ({error.strerror}); give a folder that can"
        ) from error


def soft_targets(answer: Answer, teachers: Sequence[RowsByExample], temperature: float) -> RowsByExample:
    """The mean of the teachers' answers.

    An answer is probabilities at `temperature` over a row's outputs ("classes") or over an example's rows
    ("rows"), or the score itself ("number"). A teacher that reads fewer tokens has fewer rows of an example's
    tokens: the mean is over those that all teachers have.
    """
    common_E = np.min([np.diff(teacher.offsets) for teacher in teachers], axis=0)
    offsets = np.concatenate(([0], np.cumsum(common_E)))
    answers = [_answer(answer, _first_rows(teacher, common_E), offsets, temperature) for teacher in teachers]
    return RowsByExample(values=np.stack(answers).mean(axis=0).astype(np.float32), offsets=offsets)


def _first_rows(outputs: RowsByExample, common_E: np.ndarray) -> np.ndarray:
    return outputs.values[ragged_ranges(outputs.offsets[:-1], common_E)].astype(np.float64)


def _answer(answer: Answer, values_KO: np.ndarray, offsets: np.ndarray, temperature: float) -> np.ndarray:
    """One teacher's: (K, O) float64."""
    if answer == "number":
        return values_KO

    scaled_KO = values_KO / temperature
    if answer == "classes":
        exp_KO = np.exp(scaled_KO - scaled_KO.max(axis=1, keepdims=True))
        return exp_KO / exp_KO.sum(axis=1, keepdims=True)

    assert answer == "rows"  # every example has some
    sizes_E = np.diff(offsets)
    exp_KO = np.exp(scaled_KO - np.repeat(np.maximum.reduceat(scaled_KO, offsets[:-1]), sizes_E, axis=0))
    return exp_KO / np.repeat(np.add.reduceat(exp_KO, offsets[:-1]), sizes_E, axis=0)
