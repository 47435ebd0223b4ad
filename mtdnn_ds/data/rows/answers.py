"""Checked rows of span and conversational_span: a question and its context, the human answers, and which characters of the context to learn.

A row's texts are the question (of a conversation: the last turns and then the question) and the context. Its label says whether there
is an answer (span: 1 or 0) or of which type it is (conversational_span: index into ANSWER_TYPES).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyarrow as pa

from mtdnn_ds.data.rows.answer_spans import best_span, trimmed
from mtdnn_ds.data.rows.checked import CheckedRow, RowParser, shown, text_problem
from mtdnn_ds.data.sources.coqa_quac import Span, Turn
from mtdnn_ds.data.sources.lines import Cells, RowProblem
from mtdnn_ds.data.sources.squad import Question, columns_in
from mtdnn_ds.tasks.answer_metrics import CANNOT_ANSWER, normalised
from mtdnn_ds.tasks.layout import ANSWER_TYPES
from mtdnn_ds.tasks.spec import Source, TaskSpec

SPAN_COLUMNS: Mapping[str, pa.DataType] = {
    "context": pa.large_string(),
    "answers": pa.list_(pa.string()),
    "answer_start": pa.int32(),  # characters of the context to learn: answer_start .. answer_end - 1; -1, -1: none
    "answer_end": pa.int32(),
    "id": pa.string(),
}
TURN_COLUMNS: Mapping[str, pa.DataType] = {**SPAN_COLUMNS, "is_free": pa.bool_()}

_NOWHERE = (-1, -1)


def span_rows(spec: TaskSpec, source: Source) -> RowParser:
    """The parser of span: cells are a Question, or question, context, perhaps an id, and answers in Hugging Face's layout of SQuAD."""
    labelled = source.label_column is not None
    question_name, context_name = source.text_columns or ("question", "context")

    def parse(number: int, cells: Cells) -> CheckedRow | RowProblem:
        asked = cells[0]
        if not isinstance(asked, Question):
            own_id = cells[2] if source.more_columns else number
            asked = Question(
                question=cells[0], context=cells[1], answers=cells[-1] if labelled else None, id=own_id
            )
        problem = text_problem(asked.question, question_name) or text_problem(asked.context, context_name)
        if problem is not None:
            return _at(asked.place, problem)
        assert isinstance(asked.question, str) and isinstance(asked.context, str)
        answers: list[str] = []
        spans, label = [_NOWHERE], math.nan
        if labelled:
            found = _squad_answers(asked, source.label_column or "")
            if isinstance(found, RowProblem):
                return _at(asked.place, found)
            answers, spans = found
            label = float(bool(answers))
        start, end = trimmed(asked.context, *spans[0])
        extra = {
            "context": asked.context,
            "answers": answers,
            "answer_start": start,
            "answer_end": end,
            "id": str(asked.id),
        }
        return CheckedRow(number, (asked.question, asked.context), label, extra)

    return parse


def _squad_answers(asked: Question, column: str) -> tuple[list[str], list[tuple[int, int]]] | RowProblem:
    """Texts and characters of all answers; no text and _NOWHERE for a question without one."""
    columns = columns_in(asked.answers, "text", "answer_start")
    if columns is None:
        return RowProblem(
            "bad answers",
            f"'{column}' holds {shown(asked.answers)}, not {{text: [...], answer_start: [...]}}",
        )
    texts, starts = columns
    if asked.is_impossible and texts:
        return RowProblem("contradiction", f"is_impossible, and yet has the answer {shown(texts[0])}")
    if not texts and asked.is_impossible is False:
        return RowProblem("no answer", "has no answer, and is_impossible is false")
    spans = [
        _checked_span(Span(start, None, text), asked.context)
        for text, start in zip(texts, starts, strict=True)
    ]
    for span in spans:
        if isinstance(span, RowProblem):
            return span
    return [str(text) for text in texts], [span for span in spans if not isinstance(span, RowProblem)] or [
        _NOWHERE
    ]


def turn_rows(spec: TaskSpec, source: Source) -> RowParser:
    """The parser of conversational_span: the one cell is a Turn."""
    num_turns = spec.options["history_turns"]

    def parse(number: int, cells: Cells) -> CheckedRow | RowProblem:
        turn = cells[0]
        assert isinstance(turn, Turn)
        problem = text_problem(turn.question, "question") or text_problem(turn.context, "story")
        if problem is not None:
            return _at(turn.place, problem)
        assert isinstance(turn.question, str) and isinstance(turn.context, str)
        label, (start, end) = math.nan, _NOWHERE
        if source.label_column is not None:
            learnt = _type_and_span(turn, turn.context)
            if isinstance(learnt, RowProblem):
                return _at(turn.place, learnt)
            label, (start, end) = float(ANSWER_TYPES.index(learnt[0])), learnt[1]
        said = [
            text
            for pair in turn.history[len(turn.history) - num_turns :]
            if num_turns
            for text in pair
            if isinstance(text, str)
        ]
        extra = {
            "context": turn.context,
            "answers": list(turn.answers),
            "answer_start": start,
            "answer_end": end,
            "id": turn.id,
            "is_free": turn.is_free,
        }
        return CheckedRow(number, (" ".join([*said, turn.question]), turn.context), label, extra)

    return parse


def _type_and_span(turn: Turn, context: str) -> tuple[str, tuple[int, int]] | RowProblem:
    """The answer's type, and the characters that are it (span) or that support it."""
    for answer in (turn.given, *turn.answers):
        if problem := text_problem(answer, "answer"):
            return problem
    assert isinstance(turn.given, str)
    spans = [_checked_span(span, context) for span in turn.spans if not (turn.is_free and span.start == -1)]
    for span in spans:
        if isinstance(span, RowProblem):
            return span
    found = [trimmed(context, *span) for span in spans if not isinstance(span, RowProblem)]
    if not turn.is_free:
        kind = (
            "unknown"
            if turn.given == CANNOT_ANSWER
            else {"y": "yes", "n": "no"}.get(str(turn.yes_no), "span")
        )
        return kind, _NOWHERE if kind == "unknown" else found[0]
    kind = normalised(turn.given)
    if kind == "unknown":
        return kind, _NOWHERE
    support = found[0] if found else (0, len(context))
    if kind in ("yes", "no"):
        return kind, support
    closest = best_span(context, turn.given, *support)
    if closest is None and not found:
        return RowProblem(
            "no support", f"the answer {shown(turn.given)} has no span, and no word in common with the story"
        )
    return "span", closest or support


def _checked_span(span: Span, context: object) -> tuple[int, int] | RowProblem:
    assert isinstance(context, str)
    if (
        not isinstance(span.start, int)
        or isinstance(span.start, bool)
        or not isinstance(span.end, int | None)
    ):
        return RowProblem(
            "bad answer_start", f"the answer starts at {shown(span.start)}, which is not a whole number"
        )
    if span.text is None:
        if span.end is None or not 0 <= span.start < span.end <= len(context):
            return RowProblem(
                "answer out of place",
                f"the answer is said to stand at {span.start} to {span.end} of {len(context)} characters",
            )
        return span.start, span.end
    if problem := text_problem(span.text, "answer"):
        return problem
    assert isinstance(span.text, str)
    end = span.start + len(span.text)
    if span.start < 0 or context[span.start : end] != span.text:
        there = context[span.start : end] if span.start >= 0 else ""
        place = context.find(span.text)
        where = f"it stands at {place}" if place >= 0 else "it stands nowhere in the context"
        return RowProblem(
            "answer out of place",
            f"at {span.start} stands {shown(there)}, not the answer {shown(span.text)}; {where}",
        )
    return span.start, end


def _at(place: str, problem: RowProblem) -> RowProblem:
    return RowProblem(problem.reason, f"{place}: {problem.detail}") if place else problem
