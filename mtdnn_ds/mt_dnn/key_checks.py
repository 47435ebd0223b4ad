"""Whether the keys of an mt-dnn task definition hold what they should: numbers, lists, names. Says nothing about what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping

_Check = Callable[[object], bool]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _names(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(name, str | int | float) and str(name) for name in value)
    )


def _words(value: object) -> bool:
    return isinstance(value, str) or _names(value)


_WANTED: Mapping[str, tuple[_Check, str]] = {
    "n_class": (_whole, "a whole number, at least 1"),
    "max_seq_len": (
        lambda value: _whole(value) and isinstance(value, int) and value >= 8,
        "a whole number, at least 8",
    ),
    "dropout_p": (_share, "a number from 0 to below 1"),
    "enable_san": (lambda value: isinstance(value, bool), "true or false"),
    "labels": (_names, "a list of names"),
    "split_names": (_names, "a list of names"),
    "metric_meta": (_words, "a list of names"),
    "task_type": (lambda value: isinstance(value, str), "a name"),
    "data_format": (lambda value: isinstance(value, str), "a name"),
    "encoder_type": (lambda value: isinstance(value, str), "a name"),
}


def type_problems(where: str, keys: Mapping[str, object]) -> list[str]:
    """A line for each key that holds something else; `where` names file and task. A key without a value counts as left out."""
    return [
        f"{where}.{key}={str(keys[key])[:60]}: must be {words}"
        for key, (fits, words) in _WANTED.items()
        if keys.get(key) is not None and not fits(keys[key])
    ]
