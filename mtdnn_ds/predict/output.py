"""Output files of predict: lines of JSON or CSV, and PartFile, which survives a killed run. Knows no model.

OUT.part holds what is written so far, OUT.progress.json how much of it counts: its first `bytes` bytes are
the answers to the first `windows` windows. Both are durable before the next window, and OUT appears, by a
rename, when all is there.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mtdnn_ds.config.errors import ConfigError, DataError
from mtdnn_ds.files import replace_file, sync

_DIGITS = 7  # of numbers; float32 has as many


def rounded(value: Any) -> Any:
    """Numbers with 7 significant digits, inside lists and dicts too."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value


def json_lines(ids: Sequence[Any], answers: Sequence[Mapping[str, Any]]) -> bytes:
    """{"id": ..., task: answer, ...} a line."""
    lines = []
    for own, of_row in zip(ids, answers, strict=True):
        row = {"id": own, **rounded(dict(of_row))}
        lines.append(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    return "".join(lines).encode()


def csv_lines(ids: Sequence[Any], answers: Sequence[Mapping[str, Any]]) -> tuple[bytes, bytes]:
    """The header, and the rows under it: id, TASK.label, TASK.probabilities.NAME, TASK.score ...

    Lists are JSON in their cell.
    """
    if not ids:
        return b"", b""

    flat = [_flat(rounded(dict(of_row))) for of_row in answers]
    rows = [[own, *cells.values()] for own, cells in zip(ids, flat, strict=True)]
    return _csv([["id", *flat[0]]]), _csv(rows)


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            cells |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            cells[prefix + name] = json.dumps(value, ensure_ascii=False)
        else:
            cells[prefix + name] = value
    return cells


def refuse_existing(output: Path, setting: str = "--output") -> None:
    """Raises ConfigError if a finished output is there, or its folder is not."""
    if output.exists():
        raise ConfigError(f"{setting} {output}: is there already; give another name, or delete it")
    if not output.parent.is_dir():
        raise ConfigError(f"{setting} {output}: there is no folder {output.parent}; make it")


class PartFile:
    """The output while it is written, by one process. Must be closed."""

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        """`identity`: what must be the same for a killed run to go on (input, model, flags).

        Raises ConfigError naming what differs.
        """
        refuse_existing(output)
        self.output = output
        self.part = output.with_name(output.name + ".part")
        self.record = output.with_name(output.name + ".progress.json")
        self.identity = dict(identity)

        self.windows = 0
        self.counts = {"rows": 0, "bad": 0, "truncated": 0}
        self.goes_on = self.record.exists()
        num_bytes = 0
        if self.goes_on:
            num_bytes = self._read_record()
        self._file = self._open()

        if self._file.seek(0, os.SEEK_END) < num_bytes:
            self._file.close()
            raise DataError(f"{self.part}: is shorter than {self.record} says; delete both to begin again")
        self._file.truncate(num_bytes)
        self._file.seek(num_bytes)

    def _open(self) -> BinaryIO:
        """The part file, which no other process then opens so."""
        try:
            file = self.part.open("r+b" if self.goes_on else "ab")
        except OSError as error:
            raise ConfigError(
                f"--output {self.output}: {self.part} cannot be written ({error.strerror})"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ConfigError(
                f"--output {self.output}: another process is writing it; wait for it, or give another name"
            ) from error
        return file

    def _read_record(self) -> int:
        """Take over what an earlier run has counted; how many bytes of the part file count."""
        try:
            record = json.loads(self.record.read_text())
            self.windows = int(record["windows"])
            counts, num_bytes = dict(record["counts"]), int(record["bytes"])
            theirs = dict(record["identity"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DataError(
                f"{self.record}: is damaged ({error}); delete it and {self.part} to begin again"
            ) from error
        self.counts |= counts

        ours = json.loads(json.dumps(self.identity))
        names = (*ours, *(set(theirs) - set(ours)))
        differing = [
            f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
            for name in names
            if ours.get(name) != theirs.get(name)
        ]
        if differing:
            raise ConfigError(
                f"--output {self.output}: a run that did not end left {self.part} of another call "
                f"({'; '.join(differing)}); repeat that call to go on, "
                f"or delete {self.record} and {self.part} to begin again"
            )
        return num_bytes

    def add(self, lines: bytes, *, rows: int, bad: int, truncated: int) -> None:
        """The answers to the next window; durable when this returns."""
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())

        self.windows += 1
        self.counts["rows"] += rows
        self.counts["bad"] += bad
        self.counts["truncated"] += truncated
        record = {
            "windows": self.windows,
            "bytes": self._file.tell(),
            "counts": self.counts,
            "identity": self.identity,
        }
        replace_file(self.record, json.dumps(record, indent=1) + "\n")
        sync(self.output.parent)

    def finish(self) -> None:
        """The output is whole: it gets its name."""
        refuse_existing(self.output)
        self.part.replace(self.output)
        sync(self.output.parent)
        self.record.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process go on with it."""
        self._file.close()
