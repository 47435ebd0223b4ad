"""Pydantic's complaints about a recipe in plain words: where, what is there, what it must be. Rewrites; validates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.schema import annotation_at, field_docs, member_types, unknown_setting

_UNION_MARKS = (
    "literal[",
    "dict[",
    "list[",
    "tuple[",
)  # how pydantic names the alternatives of a union inside a location


def plain_problems(error: ValidationError, *, source: str, flags: Mapping[tuple[str, ...], str]) -> list[str]:
    """One line per problem. `flags` maps the path of a value to the flag it came from; everything else came from `source`."""
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        line = _line(detail, source, flags)
        if line is not None and line not in lines:
            lines.append(line)
    return lines


def _line(detail: Any, source: str, flags: Mapping[tuple[str, ...], str]) -> str | None:
    marks = [str(part) for part in detail["loc"] if str(part).startswith(_UNION_MARKS)]
    path = tuple(
        str(part) for part in detail["loc"] if not str(part).startswith(_UNION_MARKS) and part != "[key]"
    )
    value, kind = detail["input"], detail["type"]
    if marks and _other_branch_fits_better(marks[0], path, value, kind):
        return None
    name = ".".join(path)
    if kind == "extra_forbidden":
        return f"{source}: {unknown_setting(path)}"
    if kind == "missing" and path[-1].isdigit():
        return f"{source}: {'.'.join(path[:-1])}: needs more entries, has {path[-1]}"
    if kind == "missing":
        return f"{source}: {name} is missing{_described(name)}"
    if "[key]" in detail["loc"] or kind == "invalid_key":
        return f"{source}: {name}: a name must be text; write it in quotes"
    what = _what(kind, detail.get("ctx", {}), detail["msg"], path, value)
    flag = next((flags[path[:depth]] for depth in range(len(path), 0, -1) if path[:depth] in flags), None)
    if flag is not None:
        return f"{flag}: {what}"
    shown = (
        f"={_shown(value)}"
        if kind not in ("value_error", "too_short", "too_long") and not isinstance(value, dict)
        else ""
    )
    return f"{source}: {name}{shown}: {what}" if name else f"{source}: {what}"


def _other_branch_fits_better(mark: str, path: tuple[str, ...], value: Any, kind: str) -> bool:
    """Of a setting that takes a word or a mapping, only the complaint about the form that was used is of help."""
    if mark.startswith("literal["):
        return isinstance(value, dict)
    return kind == "dict_type"


def _what(kind: str, context: Mapping[str, Any], message: str, path: tuple[str, ...], value: Any) -> str:
    if kind == "literal_error":
        return _choices(path, value)
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    number = {
        "greater_than": "gt",
        "greater_than_equal": "ge",
        "less_than": "lt",
        "less_than_equal": "le",
    }.get(kind)
    if number is not None:
        words = {"gt": "be above", "ge": "be at least", "lt": "be below", "le": "be at most"}[number]
        return f"must {words} {context[number]:g}"
    if kind == "too_short":
        return f"needs at least {context['min_length']} {'entry' if context['min_length'] == 1 else 'entries'}, has {context['actual_length']}"
    if kind == "too_long":
        return f"takes at most {context['max_length']} entries, has {context['actual_length']}"
    return _TYPE_WORDS.get(kind, message)


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


def _choices(path: Sequence[str], value: Any) -> str:
    words = [
        word
        for member in member_types(annotation_at(path))
        for word in get_args(member)
        if isinstance(word, str)
    ]
    mapping = any(get_origin(member) is dict for member in member_types(annotation_at(path)))
    hint = did_you_mean(str(value), words)
    close = hint[: hint.index("?") + 1] if "?" in hint else ""
    return f"must be one of {', '.join(words)}{', or a mapping of task names to numbers' if mapping else ''}{close}"


def _described(name: str) -> str:
    docs = {doc.name: doc for doc in field_docs()}
    if name in docs:
        return f": {docs[name].description or docs[name].type}"
    return {
        "encoder": "; write at least encoder.path",
        "tasks": "; list the tasks of the run",
        "train": "; write train.steps or train.epochs",
    }[name]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r}"[:80]
