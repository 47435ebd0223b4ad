"""Questions of files in SQuAD's layout, 1.1 or 2.0.

Judges no text (data/rows/answers.py); conversations are in coqa_quac.py.

A row is one question; its one cell, a Question, says where it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mtdnn_ds.data.sources.lines import RawRow, RowProblem
from mtdnn_ds.data.sources.nested_json import below, broken_layout, columns_in, data_of, missing, numbered
from mtdnn_ds.tasks.spec import Source


class Question(NamedTuple):
    """A question about a text."""

    question: object
    context: object
    # {text: [...], answer_start: [...]}, Hugging Face's layout of SQuAD; None in a split without labels
    answers: object
    id: object
    place: str = ""
    is_impossible: object = None  # SQuAD 2.0's word for "has no answer"; None: the layout has no such word


def squad_questions(source: Source) -> Iterator[RawRow]:
    """Every question of the file, from 1. Raises DataError if the file as a whole is no such file."""
    labelled = source.label_column is not None
    articles = numbered("article", data_of(source.path, "articles"), "title")
    paragraphs = ((place, paragraph) for place, _, paragraph in below(articles, "paragraphs", "paragraph"))

    for number, (place, paragraph, item) in enumerate(below(paragraphs, "qas", "question"), 1):
        question = _question(item, paragraph, place, labelled)
        if isinstance(question, RowProblem):
            yield number, question
        else:
            yield number, (question,)


def _question(item: object, paragraph: Any, place: str, labelled: bool) -> Question | RowProblem:
    if isinstance(item, RowProblem):
        return item

    needed = ("question", "answers") if labelled else ("question",)
    problem = missing(item, needed, place) or missing(paragraph, ("context",), place)
    if problem is not None:
        return problem
    assert isinstance(item, dict)

    answers = None
    if labelled:
        columns = columns_in(item["answers"], "text", "answer_start")
        if columns is None:
            return broken_layout(place, "'answers' is not a list of objects with text and answer_start")
        answers = {"text": columns[0], "answer_start": columns[1]}

    return Question(
        question=item["question"],
        context=paragraph["context"],
        answers=answers,
        id=item.get("id"),
        place=place,
        is_impossible=item.get("is_impossible"),
    )
