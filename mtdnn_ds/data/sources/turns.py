"""Questions of conversations about a text, each with all that was said before it.

Records; no layout is known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mtdnn_ds.data.sources.lines import RowProblem


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
    ]  # earlier questions, each with its given answer (None: unknown)
    given: object  # the answer to learn from; None in a split without labels
    answers: tuple[object, ...]  # those of all people
    spans: tuple[Span, ...]  # of the given answer, or of what supports it; then of the others
    is_free: bool  # people wrote their answers (CoQA); else an answer is a piece of the context (QuAC)
    yes_no: object  # QuAC's y, n or x
    id: str
    place: str


class Answer(NamedTuple):
    """What is known of the answer to one question; the fields are Turn's."""

    given: object
    answers: tuple[object, ...]
    spans: tuple[Span, ...]
    yes_no: object = None


class Conversation(NamedTuple):
    """What the questions of a conversation have in common."""

    context: object
    place: str
    is_free: bool
    labelled: bool


NO_ANSWER = Answer(None, (), ())


def turns_of(
    conversation: Conversation,
    questions: Sequence[object],
    answers: Sequence[Answer | RowProblem],
    ids: Sequence[object],
) -> Iterator[Turn | RowProblem]:
    """A Turn for each question whose answer can be read; where it cannot, why.

    `answers` and `ids` are those of `questions`. Without labels, answers are known to the history alone.
    """
    history: list[tuple[object, object]] = []
    for number, (question, answer, own_id) in enumerate(zip(questions, answers, ids, strict=True), 1):
        if isinstance(answer, RowProblem):
            yield answer
            history.append((question, None))
            continue

        own = answer if conversation.labelled else NO_ANSWER
        yield Turn(
            question=question,
            context=conversation.context,
            history=tuple(history),
            given=own.given,
            answers=own.answers,
            spans=own.spans,
            is_free=conversation.is_free,
            yes_no=own.yes_no,
            id=str(own_id),
            place=f"{conversation.place}, question {number}",
        )
        history.append((question, answer.given))
