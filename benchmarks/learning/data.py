"""The study's data folders: links to the official files, under names that the tasks read.

MNLI, QNLI and SST-2 are trained on but never scored, so of their development files only the first rows are
copied; SciTail's public parts take the names of official splits.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError

ROWS_NOT_SCORED = 64
_SMALL = ("CoLA", "MRPC", "RTE", "STS-B")
_LARGE = {"MNLI": ("dev_matched.tsv", "dev_mismatched.tsv"), "QNLI": ("dev.tsv",), "SST-2": ("dev.tsv",)}


def glue_folder(data: Path, folder: Path) -> Path:
    """GLUE with whole development files of the small tasks and the first rows of the others'."""
    made = folder / "glue"
    for task in _SMALL:
        for file in _files(data / "glue" / task):
            _link(file, made / task / file.name)

    for task, cut in _LARGE.items():
        for file in _files(data / "glue" / task):
            if file.name in cut:
                _head(file, made / task / file.name)
            elif file.name == "train.tsv":
                _link(file, made / task / file.name)
    return made


def scitail_folder(data: Path, folder: Path) -> Path:
    """SciTail without its training file: trained on the test file, scored on the development file.

    No premise stands in both.
    """
    made, files = folder / "scitail", data / "SciTail" / "tsv_format"
    _link(files / "scitail_1.0_test.tsv", made / "scitail_1.0_train.tsv")
    _link(files / "scitail_1.0_dev.tsv", made / "scitail_1.0_dev.tsv")
    return made


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"--data: there is no {folder}; docs/learning.md says what the folder holds")
    return sorted(folder.glob("*.tsv"))


def _link(source: Path, link: Path) -> None:
    if not source.is_file():
        raise ConfigError(f"--data: there is no {source}; docs/learning.md says what the folder holds")
    if link.resolve() == source.resolve():  # another table's, perhaps being trained now
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(source.resolve())


def _head(source: Path, copy: Path) -> None:
    """The header and the first rows."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with source.open(encoding="utf-8") as lines:
        copy.write_text("".join(itertools.islice(lines, 1 + ROWS_NOT_SCORED)), encoding="utf-8")
