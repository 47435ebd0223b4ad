"""Terms and their layout: which summands a task has in the objective, and which columns of which head each of
them reads. Integers only.

A term is one loss with one denominator. Most tasks have one; pretraining has two (masked tokens, next
sentence), conversational question answering has two (span, answer type). A term's form says how outputs and
labels become losses (losses/), and decides the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mtdnn_ds.tasks.spec import TaskSpec

Reads = Literal["sequence", "token"]
Unit = Literal["row", "example"]
Answer = Literal["classes", "rows", "number"]
Space = Literal["outputs", "vocabulary", "sequences", "tokens", "pair"]
"""What a unit's loss chooses from: the term's outputs, the encoder's vocabulary, an example's sequences or
tokens, a right and a wrong sequence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a term's outputs become losses: the head that gives them, and whether a loss belongs to a
    supervised row or to a whole example."""

    head: str
    unit: Unit
    answer: Answer | None = (
        # What another model can teach: probabilities of classes or of an example's rows, a number; or nothing
        None
    )
    space: Space | None = None  # None: its loss chooses from nothing (a number, a distance)


FORMS: Mapping[str, Form] = {
    # cross-entropy over the term's columns
    "class": Form(head="sequence", unit="row", answer="classes", space="outputs"),
    # squared error of its one column
    "score": Form(head="sequence", unit="row", answer="number"),
    # cross-entropy over the sequences of an example
    "choice": Form(head="sequence", unit="example", answer="rows", space="sequences"),
    # margin between the right sequences of an example and the others
    "pairwise": Form(head="sequence", unit="example", space="pair"),
    # cross-entropy of each supervised token
    "tag": Form(head="token", unit="row", answer="classes", space="outputs"),
    # cross-entropy of start and of end over the tokens of an example
    "span": Form(head="token", unit="example", space="tokens"),
    # cross-entropy over the vocabulary
    "masked_token": Form(head="masked_lm", unit="row", space="vocabulary"),
    # cross-entropy of averaged predictions, in log space
    "san": Form(head="san", unit="row", answer="classes", space="outputs"),
    # squared error of the cosine of two embeddings
    "cosine": Form(head="embedding", unit="example"),
    # distance of two embeddings, with a margin
    "contrastive": Form(head="embedding", unit="example"),
}

HEAD_READS: Mapping[str, Reads] = {
    "sequence": "sequence",
    "token": "token",
    "masked_lm": "token",
    "san": "sequence",
    "embedding": "sequence",
}
"""What a row of each head's targets indexes: a sequence or a token of the micro-batch. The order is that of
heads in every forward."""

BANKS = ("sequence", "token")
"""Heads that are one linear layer for all their terms; in the other heads a term has columns only if it says
so."""

ANSWER_TYPES = ("span", "yes", "no", "unknown")
"""Labels of the answer-type term of a conversational_span task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One term of the objective. It owns columns first_column .. first_column + num_outputs - 1 of its
    head."""

    task: int  # index into the run's tasks
    suffix: str  # "" for a task's first term
    form: str
    head: str
    reads: Reads
    unit: Unit
    first_column: int
    num_outputs: int

    @property
    def columns(self) -> range:
        """The columns it owns."""
        return range(self.first_column, self.first_column + self.num_outputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadLayout:
    """The terms of all tasks, a task's own next to each other, in the order of the tasks."""

    task_names: tuple[str, ...]
    terms: tuple[Term, ...]

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads of the run, in the order in which every forward calls them."""
        used = {term.head for term in self.terms}
        return (*(head for head in HEAD_READS if head in used), *sorted(used - set(HEAD_READS)))

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms of the run, those of a head next to each other, in the order of `heads`."""
        return tuple(
            form
            for head in self.heads
            for form in sorted({term.form for term in self.terms if term.head == head})
        )

    def forms_of(self, head: str) -> tuple[str, ...]:
        """The forms that read `head`, in the order of `forms`."""
        return tuple(sorted({term.form for term in self.terms if term.head == head}))

    def num_columns(self, head: str) -> int:
        """Outputs of `head`, all its terms together."""
        return sum(term.num_outputs for term in self.terms if term.head == head)

    def terms_of(self, task: int) -> tuple[int, ...]:
        """Indices of a task's terms."""
        return tuple(index for index, term in enumerate(self.terms) if term.task == task)

    @property
    def task_of_term(self) -> tuple[int, ...]:
        """Task index of each term."""
        return tuple(term.task for term in self.terms)


def terms_of_spec(spec: TaskSpec) -> tuple[tuple[str, str, int], ...]:
    """(suffix, form, number of outputs) of each term of a task, its main one first."""
    if spec.custom is not None:
        return (("", spec.kind, spec.custom.num_outputs(spec)),)

    num_labels = len(spec.labels)
    next_sentence = [("next_sentence", "class", 2)] if spec.options.get("next_sentence") else []
    return {
        "classification": (("", "san" if spec.head == "san" else "class", num_labels),),
        "regression": (("", "score", 1),),
        "multiple_choice": (("", "choice", 1),),
        "ranking": (("", "pairwise" if spec.objective == "pairwise" else "choice", 1),),
        "token_classification": (("", "tag", num_labels),),
        "span": (("", "span", 2),),
        "conversational_span": (("", "span", 2), ("answer_type", "class", len(ANSWER_TYPES))),
        "masked_lm": (("", "masked_token", 0), *next_sentence),
        "similarity": (("", "contrastive" if spec.objective == "contrastive" else "cosine", 0),),
    }[spec.kind]


def head_layout(specs: Sequence[TaskSpec]) -> HeadLayout:
    """Columns of each head in the order of `specs`."""
    terms: list[Term] = []
    for task, spec in enumerate(specs):
        for suffix, form, num_outputs in terms_of_spec(spec):
            head, reads, unit = _head_of(spec, form)
            term = Term(
                task=task,
                suffix=suffix,
                form=form,
                head=head,
                reads=reads,
                unit=unit,
                first_column=sum(other.num_outputs for other in terms if other.head == head),
                num_outputs=num_outputs,
            )
            terms.append(term)
    return HeadLayout(task_names=tuple(spec.name for spec in specs), terms=tuple(terms))


def _head_of(spec: TaskSpec, form: str) -> tuple[str, Reads, Unit]:
    if spec.custom is None:
        head = FORMS[form].head
        return head, HEAD_READS[head], FORMS[form].unit

    # A kind of the user's own reads columns of a bank, unless it brings a head.
    reads = spec.custom.reads
    if spec.custom.head is None:
        return reads, reads, "row"
    return f"{spec.kind}_head", reads, "row"
