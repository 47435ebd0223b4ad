"""Pydantic's complaints about a recipe in plain words: where, what is there, what it must be. Rewrites;
validates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.schema import annotation_at, field_docs, member_types, unknown_setting

# How pydantic names the alternatives of a union inside a location.
_UNION_MARKS = ("literal[", "dict[", "list[", "tuple[")

_BOUND_WORDS = {
    "greater_than": ("gt", "be above"),
    "greater_than_equal": ("ge", "be at least"),
    "less_than": ("lt", "be below"),
    "less_than_equal": ("le", "be at most"),
}
_TYPE_WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text; write it in quotes",
    "model_type": "must be a section with settings under it, one a line",
    "dict_type": "must be a mapping, one 'name: value' a line",
    "list_type": "must be a list, e.g. [a, b]",
    "tuple_type": "must be a list, e.g. [a, b]",
}
_MISSING_SECTIONS = {
    "encoder": "; write at least encoder.path",
    "tasks": "; list the tasks of the run",
    "train": "; write train.steps or train.epochs",
}


def plain_problems(error: ValidationError, *, source: str, flags: Mapping[tuple[str, ...], str]) -> list[str]:
    """One line per problem.

    `flags` maps the path of a value to the flag it came from; everything else came from `source`.
    """
    lines = [_line(detail, source, flags) for detail in error.errors(include_url=False)]
    return list(dict.fromkeys(line for line in lines if line is not None))


def path_of(location: Sequence[int | str]) -> tuple[str, ...]:
    """The names of sections, settings and what is in them, of one of pydantic's locations."""
    parts = [str(part) for part in location]
    return tuple(part for part in parts if not part.startswith(_UNION_MARKS) and part != "[key]")


def _line(detail: Any, source: str, flags: Mapping[tuple[str, ...], str]) -> str | None:
    """None: of a setting with alternatives, the complaint about the one that was not used."""
    path, value, kind = path_of(detail["loc"]), detail["input"], detail["type"]
    name = ".".join(path)
    marks = [part for part in detail["loc"] if str(part).startswith(_UNION_MARKS)]
    if marks and _other_branch_fits_better(str(marks[0]), value, kind):
        return None

    if kind == "extra_forbidden":
        return f"{source}: {unknown_setting(path)}"
    if kind == "missing" and path[-1].isdigit():
        return f"{source}: {'.'.join(path[:-1])}: needs more entries, has {path[-1]}"
    if kind == "missing":
        return f"{source}: {name} is missing{_described(name)}"
    if "[key]" in detail["loc"] or kind == "invalid_key":
        return f"{source}: {name}: a name must be text; write it in quotes"

    what = _what(kind, detail.get("ctx", {}), detail["msg"], path, value)
    for depth in range(len(path), 0, -1):
        if path[:depth] in flags:
            return f"{flags[path[:depth]]}: {what}"
    if not name:
        return f"{source}: {what}"
    if kind in ("value_error", "too_short", "too_long") or isinstance(value, dict):
        return f"{source}: {name}: {what}"
    return f"{source}: {name}={_shown(value)}: {what}"


def _other_branch_fits_better(mark: str, value: Any, kind: str) -> bool:
    """Of a setting that takes a word or a mapping, only the complaint about the form that was used is of
    help."""
    if mark.startswith("literal["):
        return isinstance(value, dict)
    return kind == "dict_type"


def _what(kind: str, context: Mapping[str, Any], message: str, path: tuple[str, ...], value: Any) -> str:
    if kind == "literal_error":
        return _choices(path, value)
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in _BOUND_WORDS:
        bound, words = _BOUND_WORDS[kind]
        return f"must {words} {context[bound]:g}"

    if kind == "too_short":
        entries = "entry" if context["min_length"] == 1 else "entries"
        return f"needs at least {context['min_length']} {entries}, has {context['actual_length']}"
    if kind == "too_long":
        return f"takes at most {context['max_length']} entries, has {context['actual_length']}"
    return _TYPE_WORDS.get(kind, message)


def _choices(path: Sequence[str], value: Any) -> str:
    members = member_types(annotation_at(path))
    words = [word for member in members for word in get_args(member) if isinstance(word, str)]
    or_mapping = ""
    if any(get_origin(member) is dict for member in members):
        or_mapping = ", or a mapping of task names to numbers"

    hint = did_you_mean(str(value), words)
    close = hint[: hint.index("?") + 1] if "?" in hint else ""
    return f"must be one of {', '.join(words)}{or_mapping}{close}"


def _described(name: str) -> str:
    if name in _MISSING_SECTIONS:
        return _MISSING_SECTIONS[name]
    (doc,) = (doc for doc in field_docs() if doc.name == name)
    return f": {doc.description or doc.type}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r}"[:80]
