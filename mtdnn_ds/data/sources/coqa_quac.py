"""Conversations about a text, in CoQA's and in QuAC's layout, from their JSON files or from tables as on the Hugging Face hub. Judges no text.

A row is one question with all that was said before it (data/sources/squad.py says how rows count). A conversation's keys tell its layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mtdnn_ds.data.sources.lines import RawRow, RowProblem
from mtdnn_ds.data.sources.squad import below, columns_in, data_of, missing, numbered
from mtdnn_ds.tasks.spec import Source

_YES_NO = ("y", "n", "x")  # the ClassLabel of the hub's QuAC, in its order


class Span(NamedTuple):
    """Where a text is said to stand in the context."""

    start: object
    end: object  # None: as long as its text
    text: object  # None: the layout does not repeat it


class Turn(NamedTuple):
    """One question of a conversation about a text."""

    question: object
    context: object
    history: tuple[
        tuple[object, object], ...
    ]  # all earlier questions, each with its given answer (None: unknown)
    given: object  # the answer to learn from; None in a split without labels
    answers: tuple[object, ...]  # those of all people
    spans: tuple[Span, ...]  # of the given answer, or of what supports it; then of the others
    is_free: bool  # people wrote their answers (CoQA); else an answer is a piece of the context (QuAC)
    yes_no: object  # QuAC's y, n or x
    id: str
    place: str


class _Known(NamedTuple):
    """What is known of the answer to one question; the fields are Turn's."""

    given: object
    answers: tuple[object, ...]
    spans: tuple[Span, ...]
    yes_no: object = None


_NOTHING = _Known(None, (), ())


def conversation_file(source: Source) -> Iterator[RawRow]:
    """A file in CoQA's or in QuAC's layout."""
    labelled = source.label_column is not None
    number = 0
    for place, item in numbered("conversation", data_of(source.path, "conversations"), "id"):
        for turn in (
            _coqa(item, place, labelled)
            if not isinstance(item, dict) or "paragraphs" not in item
            else _quac(item, place, labelled)
        ):
            number += 1
            yield number, turn if isinstance(turn, RowProblem) else (turn,)


def conversation_table(source: Source, columns: Sequence[str], rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Rows that are whole conversations, in the layout of CoQA or of QuAC on the Hugging Face hub; `columns` name their cells."""
    number = 0
    for row_number, cells in rows:
        place = f"row {row_number}"
        turns = (
            [RowProblem(cells.reason, f"{place}: {cells.detail}")]
            if isinstance(cells, RowProblem)
            else _from_table(source, dict(zip(columns, cells, strict=True)), place)
        )
        for turn in turns:
            number += 1
            yield number, turn if isinstance(turn, RowProblem) else (turn,)


def _turns(
    context: object,
    questions: Sequence[object],
    known: Sequence[_Known | RowProblem],
    *,
    ids: Sequence[object],
    place: str,
    is_free: bool,
    labelled: bool,
) -> Iterator[Turn | RowProblem]:
    history: list[tuple[object, object]] = []
    for number, (question, of_question, own_id) in enumerate(zip(questions, known, ids, strict=True), 1):
        if isinstance(of_question, RowProblem):
            yield of_question
            history.append((question, None))
            continue
        own = of_question if labelled else _NOTHING
        yield Turn(
            question=question,
            context=context,
            history=tuple(history),
            given=own.given,
            answers=own.answers,
            spans=own.spans,
            is_free=is_free,
            yes_no=own.yes_no,
            id=str(own_id),
            place=f"{place}, question {number}",
        )
        history.append((question, of_question.given))


# CoQA


def _coqa(story: object, place: str, labelled: bool) -> Iterator[Turn | RowProblem]:
    problem = missing(story, ("story", "questions", *(("answers",) if labelled else ())), place)
    if problem is not None:
        yield problem
        return
    assert isinstance(story, dict)
    questions = columns_in(story["questions"], "input_text")
    if questions is None:
        yield _broken(place, "'questions' is not a list of objects with input_text")
        return
    known: Sequence[_Known] | RowProblem = [_NOTHING] * len(questions[0])
    if "answers" in story:
        more = story.get("additional_answers") or {}
        others = [
            columns_in(answers, "input_text")
            for answers in (more.values() if isinstance(more, dict) else [more])
        ]
        known = _coqa_answers(
            story["answers"],
            "span_start",
            "span_end",
            [None if texts is None else texts[0] for texts in others],
            len(questions[0]),
            place,
        )
    if isinstance(known, RowProblem):
        yield known
        return
    ids = _ids(story.get("id", place), len(questions[0]))
    yield from _turns(
        story["story"], questions[0], known, ids=ids, place=place, is_free=True, labelled=labelled
    )


def _ids(conversation: object, num_questions: int) -> list[str]:
    return [f"{conversation} {number}" for number in range(1, num_questions + 1)]


def _coqa_answers(
    cell: object, start: str, end: str, others: Sequence[list[object] | None], num_questions: int, place: str
) -> list[_Known] | RowProblem:
    own = columns_in(cell, "input_text", start, end)
    if own is None:
        return _broken(place, f"'answers' does not hold input_text, {start} and {end} of each question")
    for texts in (own[0], *others):
        if texts is None or len(texts) != num_questions:
            return _broken(
                place,
                f"{num_questions} questions and {'no' if texts is None else len(texts)} answers of one person",
            )
    supports = (
        [answer.get("span_text") for answer in cell] if isinstance(cell, list) else [None] * num_questions
    )
    return [
        _Known(
            given,
            (given, *(texts[i] for texts in others if texts is not None)),
            (Span(begin, stop, support),),
        )
        for i, (given, begin, stop, support) in enumerate(zip(*own, supports, strict=True))
    ]


# QuAC


def _quac(section: object, place: str, labelled: bool) -> Iterator[Turn | RowProblem]:
    for paragraph_place, _, paragraph in below([(place, section)], "paragraphs", "paragraph"):
        problem = (
            paragraph
            if isinstance(paragraph, RowProblem)
            else missing(paragraph, ("context", "qas"), paragraph_place)
        )
        if problem is not None:
            yield problem
            continue
        asked = [(where, each) for where, _, each in below([(paragraph_place, paragraph)], "qas", "question")]
        needed = ("question", *(("answers", "orig_answer", "yesno") if labelled else ()))
        problems = [
            each if isinstance(each, RowProblem) else missing(each, needed, where) for where, each in asked
        ]
        known = [
            wrong or _quac_answer(each, where, labelled)
            for wrong, (where, each) in zip(problems, asked, strict=True)
        ]
        questions = [
            None if wrong else each["question"] for wrong, (_, each) in zip(problems, asked, strict=True)
        ]
        ids = [
            where if wrong else each.get("id", where)
            for wrong, (where, each) in zip(problems, asked, strict=True)
        ]
        yield from _turns(
            paragraph["context"],
            questions,
            known,
            ids=ids,
            place=paragraph_place,
            is_free=False,
            labelled=labelled,
        )


def _quac_answer(asked: Mapping[str, object], place: str, labelled: bool) -> _Known | RowProblem:
    own, everyone = (
        columns_in([asked.get("orig_answer")], "text", "answer_start"),
        columns_in(asked.get("answers"), "text", "answer_start"),
    )
    if own is None or everyone is None or not everyone[0]:
        return (
            _broken(place, "'orig_answer' and 'answers' do not hold text and answer_start")
            if labelled
            else _NOTHING
        )
    return _quac_known(own[0][0], own[1][0], everyone[0], everyone[1], asked.get("yesno"))


def _quac_known(
    given: object, start: object, texts: Sequence[object], starts: Sequence[object], yes_no: object
) -> _Known:
    others = (Span(begin, None, text) for begin, text in zip(starts, texts, strict=True))
    return _Known(given, tuple(texts), (Span(start, None, given), *others), yes_no)


# Tables


def _from_table(source: Source, row: Mapping[str, object], place: str) -> Iterator[Turn | RowProblem]:
    (question_column, context_column), label_column = source.text_columns, source.label_column
    questions, context = row[question_column], row[context_column]
    if not isinstance(questions, list):
        yield _broken(place, f"column '{question_column}' does not hold a list of questions")
        return
    known: Sequence[_Known] | RowProblem = [_NOTHING] * len(questions)
    is_free = True
    if label_column is not None:
        is_free = columns_in(row[label_column], "input_text") is not None
        if is_free:
            known = _coqa_answers(row[label_column], "answer_start", "answer_end", [], len(questions), place)
        else:
            known = _quac_columns(
                row[label_column], row.get("orig_answers"), row.get("yesnos"), len(questions)
            ) or _broken(
                place,
                f"column '{label_column}' does not hold input_text, answer_start, answer_end (CoQA) or texts, answer_starts (QuAC) of each question",
            )
    if isinstance(known, RowProblem):
        yield known
        return
    ids = _ids(place, len(questions))
    yield from _turns(
        context, questions, known, ids=ids, place=place, is_free=is_free, labelled=label_column is not None
    )


def _quac_columns(answers: object, given: object, yes_nos: object, num_questions: int) -> list[_Known] | None:
    """Of the hub's QuAC; without the column `given`, the first of each question's answers is the one to learn from."""
    everyone = columns_in(answers, "texts", "answer_starts")
    if everyone is None or not all(isinstance(each, list) and each for column in everyone for each in column):
        return None
    texts, starts = everyone
    firsts = [[each[0] for each in column if isinstance(each, list)] for column in everyone]
    own = firsts if given is None else columns_in(given, "texts", "answer_starts")
    words = [None] * num_questions if yes_nos is None else yes_nos
    if own is None or not isinstance(words, list) or {len(texts), len(own[0]), len(words)} != {num_questions}:
        return None
    if any(len(some) != len(others) for some, others in zip(texts, starts, strict=True)):  # type: ignore[arg-type]
        return None
    words = [_YES_NO[word] if isinstance(word, int) and 0 <= word < len(_YES_NO) else word for word in words]
    return [_quac_known(*columns) for columns in zip(*own, texts, starts, words, strict=True)]


def _broken(place: str, why: str) -> RowProblem:
    return RowProblem("broken layout", f"{place}: {why}")
