"""Scores of answers given as texts: exact match and token F1 of SQuAD, F1 of CoQA and of QuAC, as their
official scripts define them.

A prediction is a text, "" for no answer. A reference is the list of all human answers; in SQuAD an empty list
means "no answer".

    SQuAD   the best over the human answers (evaluate-v2.0; on SQuAD 1.1 the same as evaluate-v1.1, but for a
            human answer that is an article alone, where 1.1 calls every F1 0)
    CoQA    the mean over the human answers i of the best over all answers but i (evaluate-v1.0): people were
            scored like that too
    QuAC    as CoQA, after a majority vote on whether there is an answer; questions on which people agree by
            less than 0.4 F1 do not count (its scorer). Two texts without words, articles alone, say, have
            nothing in common there: F1 0
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

CANNOT_ANSWER = "CANNOTANSWER"
"""QuAC's word for a question that the text does not answer."""

_QUAC_AGREEMENT = 0.4  # --min_f1 of QuAC's scorer
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

Answers = Sequence[str]


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words separated by single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def text_f1(prediction: str, answer: str) -> float:
    """F1 of the two texts' words as bags. Without words on one side: 1 if the other has none either."""
    return _bag_f1(normalised(prediction).split(), normalised(answer).split())


def _bag_f1(predicted: Sequence[str], known: Sequence[str]) -> float:
    if not predicted or not known:
        return float(predicted == known)
    common = sum((Counter(predicted) & Counter(known)).values())
    # = 2pr / (p + r) with p = common / predicted, r = common / known
    return 2 * common / (len(predicted) + len(known))


def exact_match(predictions: Answers, references: Sequence[Answers]) -> float:
    """Share of questions whose normalised prediction is one of the normalised answers."""
    return _mean(
        _squad_score(_equal, each, known) for each, known in zip(predictions, references, strict=True)
    )


def token_f1(predictions: Answers, references: Sequence[Answers]) -> float:
    """SQuAD's F1."""
    return _mean(
        _squad_score(text_f1, each, known) for each, known in zip(predictions, references, strict=True)
    )


def coqa_f1(predictions: Answers, references: Sequence[Answers]) -> float:
    """CoQA's F1."""
    return _mean(
        _one_left_out(each, known, text_f1) for each, known in zip(predictions, references, strict=True)
    )


def quac_f1(predictions: Answers, references: Sequence[Answers]) -> float:
    """QuAC's F1, over the questions on which people agree; 0 if there are none."""
    scores = []
    for prediction, answers in zip(predictions, references, strict=True):
        known = _majority(answers)
        if _agreement(known) >= _QUAC_AGREEMENT:
            scores.append(_one_left_out(prediction, known, _quac_pair))
    return _mean(scores)


def _agreement(answers: Answers) -> float:
    """How well people's answers to one question agree: each one's best F1 with another, on average."""
    if len(answers) < 2:
        return 1.0
    return _mean(
        max(_quac_f1_of(mine, other) for other in _without(answers, i)) for i, mine in enumerate(answers)
    )


def _mean(scores: object) -> float:
    values = np.fromiter(scores, dtype=np.float64)  # type: ignore[call-overload]
    if not len(values):
        return 0.0
    return float(values.mean())


def _equal(prediction: str, answer: str) -> float:
    return float(normalised(prediction) == normalised(answer))


def _squad_score(score: Callable[[str, str], float], prediction: str, answers: Answers) -> float:
    return max(score(prediction, answer) for answer in [each for each in answers if normalised(each)] or [""])


def _one_left_out(prediction: str, answers: Answers, score: Callable[[str, str], float]) -> float:
    scores = [score(prediction, answer) for answer in answers]
    if len(scores) == 1:
        return scores[0]
    return sum(max(_without(scores, i)) for i in range(len(scores))) / len(scores)


def _without(values: Sequence, index: int) -> list:
    return [*values[:index], *values[index + 1 :]]


def _majority(answers: Answers) -> Answers:
    spans = [answer for answer in answers if answer != CANNOT_ANSWER]
    if 2 * len(spans) > len(answers):
        return spans
    return [CANNOT_ANSWER]


def _quac_pair(prediction: str, answer: str) -> float:
    if answer == CANNOT_ANSWER:
        return float(prediction == CANNOT_ANSWER)
    return _quac_f1_of(prediction, answer)


def _quac_f1_of(prediction: str, answer: str) -> float:
    """Its scorer returns 0 as soon as no word is in common, as SQuAD's 1.1 did; text_f1 knows empty texts."""
    if not normalised(prediction):
        return 0.0
    return text_f1(prediction, answer)
