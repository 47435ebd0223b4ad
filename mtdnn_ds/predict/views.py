"""Views: the sequences that the asked tasks make of one row, and the checks of its cells. Runs no model.

Tasks that read the same columns in the same way share a view, so its sequences run through the encoder once
for all of them. Where tasks have encoders of their own (soft and low-rank sharing), each group of tasks has
views of its own. Tokens are cut by data/cache/tokenize.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtdnn_ds.data.rows.answers import span_rows, turn_rows
from mtdnn_ds.data.rows.checked import CheckedRow, RowParser, shown, text_problem
from mtdnn_ds.data.rows.choices import choices_and_index
from mtdnn_ds.data.rows.words import words_and_tags
from mtdnn_ds.data.sources.lines import RowProblem
from mtdnn_ds.data.sources.turns import Turn
from mtdnn_ds.predict.inputs import Reading
from mtdnn_ds.tasks.kinds import InputForm
from mtdnn_ds.tasks.spec import Source, TaskSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One way of making sequences of a row, and the tasks that read them."""

    kind: InputForm
    lane: int  # which encoder (or low-rank change of it) the sequences run through
    texts: tuple[str, ...]
    more: tuple[str, ...]
    prefix: str  # what the tokenizer needs in front of a text whose words are to be cut as in training
    stride: int | None  # of windows
    tasks: tuple[int, ...]
    parse: RowParser


def views_of(
    readings: Sequence[Reading],
    specs: Sequence[TaskSpec],
    *,
    lane_of: Mapping[int, int],
    word_prefix: str,
    truncates_left: bool,
    is_list: frozenset[str],
) -> tuple[View, ...]:
    """The views of rows whose columns `is_list` hold lists; tasks with the same sequences share one."""
    members: dict[tuple[Any, ...], list[int]] = {}
    for reading in readings:
        spec, kind = specs[reading.task], reading.kind
        prefix, cuts_left = "", False
        if kind == "words" and reading.texts[0] not in is_list:  # a text, which is cut into words here
            kind, prefix = "text", word_prefix
            cuts_left = truncates_left  # a set of its own: words are kept from the first one on

        stride = spec.options["stride"] if kind in ("windows", "turns") else None
        turns = spec.options["history_turns"] if kind == "turns" else None
        key = (kind, lane_of[reading.task], reading.texts, reading.more, prefix, stride, turns, cuts_left)
        members.setdefault(key, []).append(reading.task)

    views = []
    for (kind, lane, texts, more, prefix, stride, *_), tasks in members.items():
        view = View(
            kind=kind,
            lane=lane,
            texts=texts,
            more=more,
            prefix=prefix,
            stride=stride,
            tasks=tuple(tasks),
            parse=_parser(kind, specs[tasks[0]], texts, more),
        )
        views.append(view)
    return tuple(views)


def parsed(views: Sequence[View], number: int, row: Mapping[str, Any]) -> list[CheckedRow] | RowProblem:
    """The row as each view reads it, or the first thing that is wrong with it."""
    checked = []
    for view in views:
        one = view.parse(number, tuple(row.get(column) for column in (*view.texts, *view.more)))
        if isinstance(one, RowProblem):
            return one
        checked.append(one)
    return checked


def _parser(kind: InputForm, spec: TaskSpec, texts: tuple[str, ...], more: tuple[str, ...]) -> RowParser:
    """The check of a row's cells, those of data/rows/ where the kind has one."""
    source = Source(format="jsonl", path="", text_columns=texts, label_column=None)
    if kind == "turns":
        return _turns(turn_rows(spec, source), texts, more)
    if kind == "choices":
        return choices_and_index(spec, replace(source, more_columns=more))
    if kind == "words":
        return words_and_tags(spec, source)
    if kind == "windows":
        return span_rows(spec, source)
    return _plain_texts(texts)


def _plain_texts(columns: Sequence[str]) -> RowParser:
    def parse(number: int, cells: tuple[object, ...]) -> CheckedRow | RowProblem:
        for text, column in zip(cells, columns, strict=True):
            if problem := text_problem(text, column):
                return problem
        return CheckedRow(number, cells, math.nan)  # type: ignore[arg-type]

    return parse


def _turns(parse_turn: RowParser, texts: Sequence[str], more: Sequence[str]) -> RowParser:
    """A question with the turns before it; a missing history is an empty one."""

    def parse(number: int, cells: tuple[object, ...]) -> CheckedRow | RowProblem:
        for text, column in zip(cells, texts, strict=False):
            if problem := text_problem(text, column):
                return problem

        history = (cells[2] if more else None) or []
        if not _are_pairs(history):
            return RowProblem(
                "bad history",
                f"column 'history' holds {shown(cells[2])}, not a list of [question, answer] pairs",
            )
        turn = Turn(
            question=cells[0],
            context=cells[1],
            history=tuple((pair[0], pair[1]) for pair in history),  # type: ignore[attr-defined]
            given=None,
            answers=(),
            spans=(),
            is_free=True,
            yes_no=None,
            id=str(number),
            place="",
        )
        return parse_turn(number, (turn,))

    return parse


def _are_pairs(value: object) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    return all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value)
