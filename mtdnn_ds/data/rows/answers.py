"""Checked rows of span and conversational_span: a question, its context, and which characters of it to learn.

A row's texts are the question (of a conversation: the last turns and then the question) and the context. Its
label says whether there is an answer (span: 1 or 0) or of which type it is (conversational_span: index into
ANSWER_TYPES). The human answers are kept beside them. Cuts no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa

from mtdnn_ds.data.rows.answer_spans import best_span, trimmed
from mtdnn_ds.data.rows.checked import CheckedRow, RowParser, shown, text_problem
from mtdnn_ds.data.sources.lines import Cells, RowProblem
from mtdnn_ds.data.sources.nested_json import columns_in
from mtdnn_ds.data.sources.squad import Question
from mtdnn_ds.data.sources.turns import Span, Turn
from mtdnn_ds.tasks.answer_metrics import CANNOT_ANSWER, normalised
from mtdnn_ds.tasks.layout import ANSWER_TYPES
from mtdnn_ds.tasks.spec import Source, TaskSpec

SPAN_COLUMNS: Mapping[str, pa.DataType] = {
    "context": pa.large_string(),
    "answers": pa.list_(pa.string()),
    # Characters of the context to learn: answer_start .. answer_end - 1; -1, -1: none.
    "answer_start": pa.int32(),
    "answer_end": pa.int32(),
    "id": pa.string(),
}
TURN_COLUMNS: Mapping[str, pa.DataType] = {**SPAN_COLUMNS, "is_free": pa.bool_()}

_NOWHERE = (-1, -1)
_Characters = tuple[int, int]  # start, end


def span_rows(spec: TaskSpec, source: Source) -> RowParser:
    """The parser of span: cells are a Question, or question, context, perhaps an id, and answers.

    Answers are in Hugging Face's layout of SQuAD.
    """
    labelled = source.label_column is not None
    question_name, context_name = source.text_columns or ("question", "context")

    def parse(number: int, cells: Cells) -> CheckedRow | RowProblem:
        asked = _question_of(number, cells, source)
        problem = text_problem(asked.question, question_name) or text_problem(asked.context, context_name)
        if problem is not None:
            return _at(asked.place, problem)
        assert isinstance(asked.question, str) and isinstance(asked.context, str)

        answers: list[str] = []
        spans, label = [_NOWHERE], math.nan
        if labelled:
            checked = _squad_answers(asked, source.label_column or "")
            if isinstance(checked, RowProblem):
                return _at(asked.place, checked)
            answers, spans = checked
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


def _question_of(number: int, cells: Cells, source: Source) -> Question:
    if isinstance(cells[0], Question):
        return cells[0]
    return Question(
        question=cells[0],
        context=cells[1],
        answers=cells[-1] if source.label_column is not None else None,
        id=cells[2] if source.more_columns else number,
    )


def _squad_answers(asked: Question, column: str) -> tuple[list[str], list[_Characters]] | RowProblem:
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

    spans = _checked_spans(
        [Span(start, None, text) for text, start in zip(texts, starts, strict=True)], asked.context
    )
    if isinstance(spans, RowProblem):
        return spans
    return [str(text) for text in texts], spans or [_NOWHERE]


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
            answer = _type_and_span(turn, turn.context)
            if isinstance(answer, RowProblem):
                return _at(turn.place, answer)
            answer_type, (start, end) = answer
            label = float(ANSWER_TYPES.index(answer_type))

        question = " ".join([*_last_turns(turn, num_turns), turn.question])
        extra = {
            "context": turn.context,
            "answers": list(turn.answers),
            "answer_start": start,
            "answer_end": end,
            "id": turn.id,
            "is_free": turn.is_free,
        }
        return CheckedRow(number, (question, turn.context), label, extra)

    return parse


def _last_turns(turn: Turn, num_turns: int) -> list[str]:
    """Questions and answers before this one, the oldest first."""
    if num_turns == 0:
        return []
    pairs = turn.history[len(turn.history) - num_turns :]
    return [text for pair in pairs for text in pair if isinstance(text, str)]


def _type_and_span(turn: Turn, context: str) -> tuple[str, _Characters] | RowProblem:
    """The answer's type, and the characters that are it (span) or that support it."""
    for answer in (turn.given, *turn.answers):
        if problem := text_problem(answer, "answer"):
            return problem
    assert isinstance(turn.given, str)

    # Where people wrote their answers, -1 says that no part of the context supports one.
    spans = [span for span in turn.spans if not (turn.is_free and span.start == -1)]
    checked = _checked_spans(spans, context)
    if isinstance(checked, RowProblem):
        return checked
    pieces = [trimmed(context, *span) for span in checked]

    if turn.is_free:
        return _type_of_free_answer(turn.given, pieces, context)
    if turn.given == CANNOT_ANSWER:
        return "unknown", _NOWHERE
    return {"y": "yes", "n": "no"}.get(str(turn.yes_no), "span"), pieces[0]


def _type_of_free_answer(
    given: str, pieces: Sequence[_Characters], context: str
) -> tuple[str, _Characters] | RowProblem:
    """The same of an answer in people's own words; `pieces` are those of the context that support it."""
    word = normalised(given)
    if word == "unknown":
        return word, _NOWHERE

    support = pieces[0] if pieces else (0, len(context))
    if word in ("yes", "no"):
        return word, support

    closest = best_span(context, given, *support)
    if closest is None and not pieces:
        return RowProblem(
            "no support", f"the answer {shown(given)} has no span, and no word in common with the story"
        )
    return "span", closest or support


def _checked_spans(spans: Sequence[Span], context: object) -> list[_Characters] | RowProblem:
    """The characters of each span, or the first problem."""
    checked = [_checked_span(span, context) for span in spans]
    for each in checked:
        if isinstance(each, RowProblem):
            return each
    return [each for each in checked if not isinstance(each, RowProblem)]


def _checked_span(span: Span, context: object) -> _Characters | RowProblem:
    assert isinstance(context, str)
    is_whole = isinstance(span.start, int) and not isinstance(span.start, bool)
    if not is_whole or not isinstance(span.end, int | None):
        return RowProblem(
            "bad answer_start", f"the answer starts at {shown(span.start)}, which is not a whole number"
        )
    assert isinstance(span.start, int)

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
        return _out_of_place(span.start, span.text, context)
    return span.start, end


def _out_of_place(start: int, text: str, context: str) -> RowProblem:
    there = context[start : start + len(text)] if start >= 0 else ""
    place = context.find(text)
    where = f"it stands at {place}" if place >= 0 else "it stands nowhere in the context"
    return RowProblem(
        "answer out of place", f"at {start} stands {shown(there)}, not the answer {shown(text)}; {where}"
    )


def _at(place: str, problem: RowProblem) -> RowProblem:
    if not place:
        return problem
    return RowProblem(problem.reason, f"{place}: {problem.detail}")
