"""Rows of one text with several candidates: a question's choices (multiple_choice), a query's (ranking).

A row's texts are the first text of its sequences and then the second text of each; extra["right"] says which
of them are right (1), which are not (0), and -1 for all of them without a label column. Cuts no tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from mtdnn_ds.data.rows.checked import CheckedRow, RowParser, class_parser, label_word, shown, text_problem
from mtdnn_ds.data.sources.lines import Cells, RowProblem
from mtdnn_ds.data.sources.names import row_word
from mtdnn_ds.tasks.spec import Source, TaskSpec

UNKNOWN = -1


def choices_and_index(spec: TaskSpec, source: Source) -> RowParser:
    """The parser of multiple_choice: one or two texts, the choices, the number of the right one.

    The choices stand in one column of lists or in several columns. A second text begins every choice, as in
    SWAG: sequences are (text 1, text 2 + " " + choice), or (text 1, choice). See
    https://github.com/huggingface/transformers/blob/v4.40.0/examples/pytorch/multiple-choice/run_swag.py#L345
    """
    num_texts, num_columns = len(source.text_columns), len(source.more_columns)

    def parse(number: int, cells: Cells) -> CheckedRow | RowProblem:
        texts, columns = cells[:num_texts], cells[num_texts : num_texts + num_columns]
        choices = _choices(columns, source.more_columns)
        if isinstance(choices, RowProblem):
            return choices

        choice_columns = source.more_columns
        if num_columns == 1:
            choice_columns *= len(choices)
        named = [
            *zip(texts, source.text_columns, strict=True),
            *zip(choices, choice_columns, strict=False),  # the last columns may be empty
        ]
        for text, column in named:
            if problem := text_problem(text, column):
                return problem
        if len(choices) < 2:
            return RowProblem("fewer than two choices", f"{len(choices)} choices; a row needs two at least")

        index = math.nan
        right = [UNKNOWN] * len(choices)
        if source.label_column is not None:
            checked = _index(cells[-1], len(choices))
            if isinstance(checked, RowProblem):
                return checked
            index = float(checked)
            right = [int(place == checked) for place in range(len(choices))]

        begin = f"{texts[1]} " if num_texts == 2 else ""
        second_texts = (f"{begin}{choice}" for choice in choices)
        return CheckedRow(number, (str(texts[0]), *second_texts), index, {"right": right})

    return parse


def _choices(cells: Sequence[object], columns: Sequence[str]) -> Sequence[object] | RowProblem:
    if len(cells) > 1:  # a row with fewer choices leaves its last columns empty
        last = max((place for place, cell in enumerate(cells) if cell is not None and cell != ""), default=-1)
        return cells[: last + 1]

    if not isinstance(cells[0], list):
        return RowProblem(
            "not a list of choices", f"column '{columns[0]}' holds {shown(cells[0])}, not a list of choices"
        )
    return cells[0]


def _index(cell: object, num_choices: int) -> int | RowProblem:
    """The number of the right choice, given as a number from 0 or as a letter from A."""
    word = label_word(cell)
    if word is None or not word.strip():
        return RowProblem("missing label", "the label is missing")

    index = -1
    if len(word) == 1 and word.isalpha():
        index = ord(word) - ord("A")
    elif word.isascii() and word.isdecimal():
        index = int(word)

    if not 0 <= index < num_choices:
        letters = f"A to {chr(ord('A') + num_choices - 1)}"
        return RowProblem(
            "unknown label",
            f"unknown label {shown(cell)}; the right choice is 0 to {num_choices - 1}, or {letters}",
        )
    return index


def candidate(spec: TaskSpec, source: Source) -> RowParser:
    """The parser of one row of a ranking: a query, a candidate, and whether it is relevant.

    It is where its label is the relevant one. Rows of a query are those of a group, or have the same query.
    """
    class_of = class_parser(spec.labels, source.label_words or {})
    relevant = spec.labels.index(spec.options["relevant_label"] or spec.labels[-1])
    queries: dict[object, tuple[object, int]] = {}  # group -> its query, and the row where that stands first

    def parse(number: int, cells: Cells) -> CheckedRow | RowProblem:
        query, text = cells[:2]
        for each, column in zip((query, text), source.text_columns, strict=True):
            if problem := text_problem(each, column):
                return problem

        group: object = query
        if source.more_columns:
            group = label_word(cells[2])
            if not group:
                return RowProblem("missing group", f"column '{source.more_columns[0]}' is empty")
            first_query, first_number = queries.setdefault(group, (query, number))
            if first_query != query:
                return RowProblem(
                    "two queries in a group",
                    f"group {shown(group)} has another query than in {row_word(source)} {first_number}",
                )

        label = math.nan
        if source.label_column is not None:
            class_id = class_of(cells[-1])
            if isinstance(class_id, RowProblem):
                return class_id
            label = float(class_id == relevant)
        return CheckedRow(number, (str(query), str(text)), label, {"group": group})

    return parse


def queries_of(rows: Iterator[CheckedRow], skipped: Counter[str]) -> Iterator[CheckedRow]:
    """One row of all candidates of a query, in the order of the queries' first rows.

    Labelled queries without a relevant candidate, or with nothing but relevant ones, say nothing about a
    ranking: left out and counted.
    """
    groups: dict[object, list[CheckedRow]] = {}
    for row in rows:
        groups.setdefault(row.extra["group"], []).append(row)

    for members in groups.values():
        labels = [row.label for row in members]
        labelled = not math.isnan(labels[0])
        if labelled and len(set(labels)) == 1:
            reason = "their query has no relevant candidate"
            if labels[0]:
                reason = "their query has only relevant candidates"
            skipped[reason] += len(members)
            continue

        right = [int(label) if labelled else UNKNOWN for label in labels]
        texts = (members[0].texts[0], *(row.texts[1] for row in members))
        yield CheckedRow(members[0].number, texts, math.nan, {"right": right})
