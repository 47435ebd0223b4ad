"""Parts of nested JSON files: lists below lists, each part with its place for messages.

No layout is known here.

A row of such a file is one question, and questions are what is counted. Where a key is missing, the part of
the file that lacks it is one bad row: nobody knows how many questions it would have had.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtdnn_ds.config.errors import DataError, did_you_mean
from mtdnn_ds.data.sources.lines import RowProblem


def data_of(path: str, what: str) -> list[Any]:
    """The list under the file's key 'data'; `what` names its entries. Raises DataError if there is none."""
    try:
        content = json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not valid UTF-8 at byte {error.start:,}; convert the file, e.g. with iconv -t UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: JSON that is nested too deeply, or holds a number of too many digits"
        ) from error

    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise DataError(f"{path}: must be a JSON object whose key 'data' holds a list of {what}")
    return content["data"]


def numbered(word: str, items: Sequence[Any], name_key: str) -> Iterator[tuple[str, Any]]:
    """(place, item) of each: "article 1 (Warsaw)", with what it holds under `name_key`, if that is a text."""
    for number, item in enumerate(items, 1):
        place = f"{word} {number}"
        name = item.get(name_key) if isinstance(item, dict) else None
        if isinstance(name, str):
            place += f" ({name})"
        yield place, item


def below(parents: Iterable[tuple[str, Any]], key: str, word: str) -> Iterator[tuple[str, Any, Any]]:
    """(place, parent, child) of the lists that parents hold under `key`.

    The child of a broken parent is a RowProblem.
    """
    for place, parent in parents:
        problem = parent if isinstance(parent, RowProblem) else missing(parent, (key,), place)
        if problem is not None:
            yield place, parent, problem
            continue

        children = parent[key]
        if not isinstance(children, list):
            yield place, parent, broken_layout(place, f"'{key}' is not a list")
            continue

        for child_place, child in numbered(word, children, "id"):
            yield f"{place}, {child_place}", parent, child


def missing(record: object, keys: Sequence[str], place: str) -> RowProblem | None:
    """The first of `keys` that a record lacks, or None."""
    if not isinstance(record, dict):
        return broken_layout(place, "not a JSON object")
    for key in keys:
        if key not in record:
            return RowProblem("missing key", f"{place}: no key '{key}'{did_you_mean(key, record)}")
    return None


def columns_in(cell: object, *keys: str) -> list[list[object]] | None:
    """The lists under `keys`, equally long, of {key: list} or of [{key: value}, ...].

    None if the cell is neither.
    """
    if isinstance(cell, list):
        if all(isinstance(each, dict) and all(key in each for key in keys) for each in cell):
            return [[each[key] for each in cell] for key in keys]
        return None

    if not isinstance(cell, Mapping) or not all(isinstance(cell.get(key), list) for key in keys):
        return None
    if len({len(cell[key]) for key in keys}) != 1:
        return None
    return [cell[key] for key in keys]


def broken_layout(place: str, why: str) -> RowProblem:
    return RowProblem("broken layout", f"{place}: {why}")
