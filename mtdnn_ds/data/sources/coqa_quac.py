"""Conversations about a text, in CoQA's and in QuAC's layout, from JSON files or tables of the hub.

A row is one question with all that was said before it (nested_json.py says how rows count). A conversation's
keys tell its layout. No text or answer is judged here (data/rows/answers.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mtdnn_ds.data.sources.lines import RawRow, RowProblem
from mtdnn_ds.data.sources.nested_json import below, broken_layout, columns_in, data_of, missing, numbered
from mtdnn_ds.data.sources.turns import NO_ANSWER, Answer, Conversation, Span, Turn, turns_of
from mtdnn_ds.tasks.spec import Source

_YES_NO = ("y", "n", "x")  # the ClassLabel of the hub's QuAC, in its order


def conversation_file(source: Source) -> Iterator[RawRow]:
    """Every question of a file in CoQA's or in QuAC's layout, from 1.

    Raises DataError if it is no such file as a whole.
    """
    return _as_rows(_turns_of_file(source))


def conversation_table(source: Source, columns: Sequence[str], rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Every question of rows that are whole conversations, in the hub's layout of CoQA or of QuAC.

    `columns` name the rows' cells.
    """
    return _as_rows(_turns_of_table(source, columns, rows))


def _as_rows(turns: Iterable[Turn | RowProblem]) -> Iterator[RawRow]:
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, RowProblem):
            yield number, turn
        else:
            yield number, (turn,)


def _turns_of_file(source: Source) -> Iterator[Turn | RowProblem]:
    labelled = source.label_column is not None
    for place, item in numbered("conversation", data_of(source.path, "conversations"), "id"):
        if isinstance(item, dict) and "paragraphs" in item:
            yield from _quac(item, place, labelled)
        else:
            yield from _coqa(item, place, labelled)


def _turns_of_table(
    source: Source, columns: Sequence[str], rows: Iterable[RawRow]
) -> Iterator[Turn | RowProblem]:
    for number, cells in rows:
        place = f"row {number}"
        if isinstance(cells, RowProblem):
            yield RowProblem(cells.reason, f"{place}: {cells.detail}")
        else:
            yield from _from_table(source, dict(zip(columns, cells, strict=True)), place)


def _numbered_ids(conversation: object, num_questions: int) -> list[str]:
    return [f"{conversation} {number}" for number in range(1, num_questions + 1)]


# CoQA


def _coqa(story: object, place: str, labelled: bool) -> Iterator[Turn | RowProblem]:
    needed = ("story", "questions", "answers") if labelled else ("story", "questions")
    problem = missing(story, needed, place)
    if problem is not None:
        yield problem
        return
    assert isinstance(story, dict)

    columns = columns_in(story["questions"], "input_text")
    if columns is None:
        yield broken_layout(place, "'questions' is not a list of objects with input_text")
        return
    questions = columns[0]

    answers: Sequence[Answer] | RowProblem = [NO_ANSWER] * len(questions)
    if "answers" in story:
        others = _other_answers(story.get("additional_answers") or {})
        answers = _coqa_answers(story["answers"], ("span_start", "span_end"), others, len(questions), place)
    if isinstance(answers, RowProblem):
        yield answers
        return

    conversation = Conversation(context=story["story"], place=place, is_free=True, labelled=labelled)
    ids = _numbered_ids(story.get("id", place), len(questions))
    yield from turns_of(conversation, questions, answers, ids)


def _other_answers(cell: object) -> list[list[object] | None]:
    """Answers of each further person; None where the cell does not hold them."""
    people = list(cell.values()) if isinstance(cell, dict) else [cell]
    columns = [columns_in(answers, "input_text") for answers in people]
    return [None if texts is None else texts[0] for texts in columns]


def _coqa_answers(
    cell: object,
    span_keys: tuple[str, str],
    others: Sequence[list[object] | None],
    num_questions: int,
    place: str,
) -> list[Answer] | RowProblem:
    """The answer to each question; `span_keys` are those of the start and the end of what supports it."""
    columns = columns_in(cell, "input_text", *span_keys)
    if columns is None:
        start, end = span_keys
        return broken_layout(place, f"'answers' does not hold input_text, {start} and {end} of each question")
    own, starts, ends = columns

    everyone: list[list[object]] = []
    for texts in (own, *others):
        if texts is None or len(texts) != num_questions:
            count = "no" if texts is None else len(texts)
            return broken_layout(place, f"{num_questions} questions and {count} answers of one person")
        everyone.append(texts)

    supports: list[object] = [None] * num_questions
    if isinstance(cell, list):
        supports = [answer.get("span_text") for answer in cell]

    spans = map(Span, starts, ends, supports)
    return [
        Answer(texts[0], texts, (span,))
        for texts, span in zip(zip(*everyone, strict=True), spans, strict=True)
    ]


# QuAC


def _quac(section: object, place: str, labelled: bool) -> Iterator[Turn | RowProblem]:
    needed = ("question", "answers", "orig_answer", "yesno") if labelled else ("question",)
    for paragraph_place, _, paragraph in below([(place, section)], "paragraphs", "paragraph"):
        problem = paragraph
        if not isinstance(paragraph, RowProblem):
            problem = missing(paragraph, ("context", "qas"), paragraph_place)
        if problem is not None:
            yield problem
            continue

        questions: list[object] = []
        answers: list[Answer | RowProblem] = []
        ids: list[object] = []
        for question_place, _, item in below([(paragraph_place, paragraph)], "qas", "question"):
            problem = item if isinstance(item, RowProblem) else missing(item, needed, question_place)
            if problem is not None:
                questions.append(None)
                answers.append(problem)
                ids.append(question_place)
            else:
                questions.append(item["question"])
                answers.append(_quac_answer(item, question_place, labelled))
                ids.append(item.get("id", question_place))

        conversation = Conversation(
            context=paragraph["context"], place=paragraph_place, is_free=False, labelled=labelled
        )
        yield from turns_of(conversation, questions, answers, ids)


def _quac_answer(item: Mapping[str, object], place: str, labelled: bool) -> Answer | RowProblem:
    own = columns_in([item.get("orig_answer")], "text", "answer_start")
    everyone = columns_in(item.get("answers"), "text", "answer_start")
    if own is None or everyone is None or not everyone[0]:
        if not labelled:
            return NO_ANSWER
        return broken_layout(place, "'orig_answer' and 'answers' do not hold text and answer_start")

    (given,), (start,) = own
    texts, starts = everyone
    return _piece_of_context(given, start, texts, starts, item.get("yesno"))


def _piece_of_context(
    given: object, start: object, texts: Sequence[object], starts: Sequence[object], yes_no: object
) -> Answer:
    """The answer `given` at `start`, beside those of all people."""
    others = (Span(begin, None, text) for begin, text in zip(starts, texts, strict=True))
    return Answer(given, tuple(texts), (Span(start, None, given), *others), yes_no)


# Tables


def _from_table(source: Source, row: Mapping[str, object], place: str) -> Iterator[Turn | RowProblem]:
    question_column, context_column = source.text_columns
    questions, label_column = row[question_column], source.label_column
    if not isinstance(questions, list):
        yield broken_layout(place, f"column '{question_column}' does not hold a list of questions")
        return

    is_free = True
    answers: Sequence[Answer] | RowProblem = [NO_ANSWER] * len(questions)
    if label_column is not None:
        is_free = columns_in(row[label_column], "input_text") is not None
        if is_free:
            span_keys = ("answer_start", "answer_end")
            answers = _coqa_answers(row[label_column], span_keys, [], len(questions), place)
        else:
            answers = _quac_columns(
                row[label_column], row.get("orig_answers"), row.get("yesnos"), len(questions)
            ) or broken_layout(
                place,
                f"column '{label_column}' does not hold input_text, answer_start, answer_end (CoQA) "
                "or texts, answer_starts (QuAC) of each question",
            )
    if isinstance(answers, RowProblem):
        yield answers
        return

    conversation = Conversation(
        context=row[context_column], place=place, is_free=is_free, labelled=label_column is not None
    )
    yield from turns_of(conversation, questions, answers, _numbered_ids(place, len(questions)))


def _quac_columns(answers: object, given: object, yes_nos: object, num_questions: int) -> list[Answer] | None:
    """Answers of the hub's QuAC; None if the columns do not hold them.

    Without the column `given`, the first of each question's answers is the one to learn from.
    """
    everyone = columns_in(answers, "texts", "answer_starts")
    if everyone is None or not all(isinstance(each, list) and each for column in everyone for each in column):
        return None
    texts, starts = everyone

    own = columns_in(given, "texts", "answer_starts")
    if given is None:
        own = [[each[0] for each in column] for column in everyone]  # type: ignore[index]
    words = [None] * num_questions if yes_nos is None else yes_nos
    if own is None or not isinstance(words, list) or {len(texts), len(own[0]), len(words)} != {num_questions}:
        return None
    if list(map(len, texts)) != list(map(len, starts)):  # type: ignore[arg-type]
        return None

    columns = zip(*own, texts, starts, map(_yes_no, words), strict=True)
    return [_piece_of_context(*of_question) for of_question in columns]


def _yes_no(word: object) -> object:
    """QuAC's letter, which a table may hold as the number of its class."""
    if isinstance(word, int) and 0 <= word < len(_YES_NO):
        return _YES_NO[word]
    return word
