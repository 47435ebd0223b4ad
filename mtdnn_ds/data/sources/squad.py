"""Nested JSON files, and SQuAD's questions out of them. Judges no text (data/rows/answers.py); conversations are in data/sources/coqa_quac.py.

A row is one question, and questions are what is counted. Its one cell says where it stands. Where a key is missing, the part of the file
that lacks it is one bad row: nobody knows how many questions it would have had.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtdnn_ds.config.errors import DataError, did_you_mean
from mtdnn_ds.data.sources.lines import RawRow, RowProblem
from mtdnn_ds.tasks.spec import Source


class Question(NamedTuple):
    """A question about a text."""

    question: object
    context: object
    answers: object  # {text: [...], answer_start: [...]}, Hugging Face's layout of SQuAD; None in a split without labels
    id: object
    place: str = ""
    is_impossible: object = None  # SQuAD 2.0's word for "has no answer"; None: the layout has no such word


def squad_questions(source: Source) -> Iterator[RawRow]:
    """A file in SQuAD's layout, 1.1 or 2.0."""
    articles = numbered("article", data_of(source.path, "articles"), "title")
    paragraphs = ((place, paragraph) for place, _, paragraph in below(articles, "paragraphs", "paragraph"))
    for number, (place, paragraph, question) in enumerate(below(paragraphs, "qas", "question"), 1):
        checked = _question(question, paragraph, place, source.label_column is not None)
        yield number, checked if isinstance(checked, RowProblem) else (checked,)


def _question(question: object, paragraph: Any, place: str, labelled: bool) -> Question | RowProblem:
    if isinstance(question, RowProblem):
        return question
    problem = missing(question, ("question", *(("answers",) if labelled else ())), place) or missing(
        paragraph, ("context",), place
    )
    if problem is not None:
        return problem
    assert isinstance(question, dict)
    answers = None
    if labelled:
        columns = columns_in(question["answers"], "text", "answer_start")
        if columns is None:
            return RowProblem(
                "broken layout", f"{place}: 'answers' is not a list of objects with text and answer_start"
            )
        answers = {"text": columns[0], "answer_start": columns[1]}
    return Question(
        question["question"],
        paragraph["context"],
        answers,
        question.get("id"),
        place,
        question.get("is_impossible"),
    )


# Parts of a file


def data_of(path: str, what: str) -> list[Any]:
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
    for number, item in enumerate(items, 1):
        name = item.get(name_key) if isinstance(item, dict) else None
        yield f"{word} {number}" + (f" ({name})" if isinstance(name, str) else ""), item


def below(parents: Iterable[tuple[str, Any]], key: str, word: str) -> Iterator[tuple[str, Any, Any]]:
    """(place, parent, child) of the lists that parents hold under `key`; the child of a broken parent is a RowProblem."""
    for place, parent in parents:
        problem = parent if isinstance(parent, RowProblem) else missing(parent, (key,), place)
        children = parent[key] if problem is None else problem
        if not isinstance(children, list):
            yield place, parent, problem or RowProblem("broken layout", f"{place}: '{key}' is not a list")
            continue
        for child_place, child in numbered(word, children, "id"):
            yield f"{place}, {child_place}", parent, child


def missing(record: object, keys: Sequence[str], place: str) -> RowProblem | None:
    if not isinstance(record, dict):
        return RowProblem("broken layout", f"{place}: not a JSON object")
    absent = [key for key in keys if key not in record]
    return (
        RowProblem("missing key", f"{place}: no key '{absent[0]}'{did_you_mean(absent[0], record)}")
        if absent
        else None
    )


def columns_in(cell: object, *keys: str) -> list[list[object]] | None:
    """The lists under `keys`, equally long, of {key: list} or of [{key: value}, ...]; None if the cell is neither."""
    if isinstance(cell, list) and all(
        isinstance(each, dict) and all(key in each for key in keys) for each in cell
    ):
        return [[each[key] for each in cell] for key in keys]
    if not isinstance(cell, Mapping) or not all(isinstance(cell.get(key), list) for key in keys):
        return None
    return [cell[key] for key in keys] if len({len(cell[key]) for key in keys}) == 1 else None
