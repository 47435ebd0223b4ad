"""How large each task's prediction space is: what loss.scale=log_classes takes the log of. Not the scale.

Muppet (Aghajanyan et al. 2021, section 3.2) divides a loss by log n, n being what it chooses from, so that a
model that guesses uniformly has a loss of 1 in every task. The forms of losses say what that is
(tasks/layout.py), the training examples how many:

    class, tag, san    the labels
    masked_token       the vocabulary of the encoder
    choice             the sequences of an example: choices, or candidates of a query; their mean number
    pairwise           a right and a wrong sequence: 2
    span               the tokens of a window, any of which may be a start or an end; their mean number
    score, cosine, contrastive, and a kind of the user's own without labels: nothing

A task of two terms guesses both: the loss of a guess is the sum of their logs, and that is divided by, so the
terms keep their relation to each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from mtdnn_ds.data.examples import Examples
from mtdnn_ds.data.examples.sampled import values_of_rows
from mtdnn_ds.runs.setup import RunData
from mtdnn_ds.tasks.layout import FORMS, Space, Term
from mtdnn_ds.tasks.spec import TaskSpec


def log_prediction_spaces(data: RunData, *, vocabulary: int) -> tuple[float, ...]:
    """The loss of a uniform guess of each task; 0 where there is nothing to choose from.

    `vocabulary`: the number of the encoder's tokens.
    """
    return tuple(
        sum(
            math.log(_size(data.layout.terms[term], spec, examples, vocabulary))
            for term in data.layout.terms_of(task)
        )
        for task, (spec, examples) in enumerate(zip(data.specs, data.train_sets, strict=True))
    )


def _size(term: Term, spec: TaskSpec, examples: Examples, vocabulary: int) -> float:
    """What a unit of the term chooses from, at least 1."""
    if spec.custom is not None:
        return max(len(spec.labels), 1)
    space = FORMS[term.form].space
    if space is None:
        return 1
    return _SIZES[space](term, examples, vocabulary)


def _mean_sequences(examples: Examples) -> float:
    """Beside the row's first text, which all of them begin with."""
    sequences_R = examples.split.texts_per_row() - 1
    return float(values_of_rows(examples, sequences_R).mean())


_SIZES: Mapping[Space, Callable[[Term, Examples, int], float]] = {
    "outputs": lambda term, examples, vocabulary: term.num_outputs,
    "vocabulary": lambda term, examples, vocabulary: vocabulary,
    "sequences": lambda term, examples, vocabulary: _mean_sequences(examples),
    "tokens": lambda term, examples, vocabulary: float(examples.lengths.mean()),
    "pair": lambda term, examples, vocabulary: 2,
}
