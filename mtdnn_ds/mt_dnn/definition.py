"""One task of an mt-dnn definition: its keys, checked by type, and what is not carried over. No meanings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LEFT_OUT = "the task is left out"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something of a definition that is not carried over as it stands."""

    key: str  # TASK.KEY
    value: object
    why: str
    instead: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}: {self.why}; {self.instead}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Definition:
    """One task's keys, and the list of what is not carried over, of all tasks of the file."""

    name: str
    keys: Mapping[str, Any]
    findings: list[Finding]

    def add_finding(self, key: str, why: str, instead: str) -> None:
        """Notes that the value of one of the keys is not carried over as it stands."""
        value = self.keys.get(key)
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        self.findings.append(Finding(key=f"{self.name}.{key}", value=value, why=why, instead=instead))


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _are_names(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(name, str | int | float) and str(name) for name in value)


_WANTED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "n_class": (lambda value: _is_int(value, 1), "a whole number, at least 1"),
    "max_seq_len": (lambda value: _is_int(value, 8), "a whole number, at least 8"),
    "dropout_p": (_is_share, "a number from 0 to below 1"),
    "enable_san": (lambda value: isinstance(value, bool), "true or false"),
    "labels": (_are_names, "a list of names"),
    "split_names": (_are_names, "a list of names"),
    "metric_meta": (lambda value: _is_name(value) or _are_names(value), "a list of names"),
    "task_type": (_is_name, "a name"),
    "data_format": (_is_name, "a name"),
    "encoder_type": (_is_name, "a name"),
}


def type_problems(where: str, keys: Mapping[str, object]) -> list[str]:
    """A line for each key that holds something else than it should: numbers, lists, names.

    `where` names file and task. A key without a value counts as left out.
    """
    problems = []
    for key, (fits, words) in _WANTED.items():
        value = keys.get(key)
        if value is not None and not fits(value):
            problems.append(f"{where}.{key}={str(value)[:60]}: must be {words}")
    return problems
