"""Rows of words with a tag each: token_classification and users' own kinds. Cuts no word into tokens.

Words and tags are lists, whatever file they come from.
"""

from __future__ import annotations

import math

from mtdnn_ds.data.rows.checked import (
    CheckedRow,
    LabelParser,
    RowParser,
    class_parser,
    label_parser,
    shown,
    text_problem,
)
from mtdnn_ds.data.sources.lines import Cells, RowProblem
from mtdnn_ds.tasks.spec import Source, TaskSpec

UNKNOWN_TAG = -1


def words_and_tags(spec: TaskSpec, source: Source) -> RowParser:
    """The parser of sentences: a row's texts are its words, extra["tags"] their class ids.

    Without a label column these are UNKNOWN_TAG.
    """
    return _sentences(source, class_parser(spec.labels, source.label_words or {}), int, UNKNOWN_TAG)


def words_and_numbers(spec: TaskSpec, source: Source) -> RowParser:
    """The same for a kind of the user's own: extra["tags"] are what its parse_label makes of them.

    Without a label column these are NaN.
    """
    return _sentences(source, label_parser(spec, source), float, math.nan)


def _sentences(
    source: Source, tag_of: LabelParser, number_type: type[int] | type[float], unknown: float
) -> RowParser:
    column = source.text_columns[0]

    def parse(number: int, cells: Cells) -> CheckedRow | RowProblem:
        words = cells[0]
        if not isinstance(words, list):
            return RowProblem(
                "not a list of words", f"column '{column}' holds {shown(words)}, not a list of words"
            )

        for position, word in enumerate(words, 1):
            # A word may be blank (some corpora have invisible ones): it has no tokens and counts as O.
            if problem := text_problem(word, column, may_be_empty=True):
                return RowProblem(problem.reason, f"word {position}: {problem.detail}")
        if not any(word.strip() for word in words):
            return RowProblem("empty text", f"column '{column}' has no word")

        if source.label_column is None:
            return CheckedRow(number, tuple(words), math.nan, {"tags": [unknown] * len(words)})
        tags = _tags(words, cells[-1], source.label_column, tag_of)
        if isinstance(tags, RowProblem):
            return tags
        return CheckedRow(number, tuple(words), math.nan, {"tags": [number_type(tag) for tag in tags]})

    return parse


def _tags(words: list[str], cell: object, column: str, tag_of: LabelParser) -> list[float] | RowProblem:
    if not isinstance(cell, list):
        return RowProblem("not a list of tags", f"column '{column}' holds {shown(cell)}, not a list of tags")
    if len(cell) != len(words):
        return RowProblem("wrong number of tags", f"{len(cell)} tags for {len(words)} words")

    tags: list[float] = []
    for position, (word, each) in enumerate(zip(words, cell, strict=True), 1):
        tag = tag_of(each)
        if isinstance(tag, RowProblem):
            return RowProblem(tag.reason, f"word {position} ({shown(word)}): {tag.detail}")
        tags.append(tag)
    return tags
