"""Five small generated tasks for the quickstart run: no download, the same bytes on every machine. Not a benchmark of anything.

Sentences come from small grammars. Every task has a few per cent of label noise, and the obvious shortcut of each is blocked:
acceptability's bad sentences keep their words, sentiment has negations and "but", paraphrase's two classes have the same
lexical overlap, entailment has negation in every class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mtdnn_ds.config.errors import DataError, did_you_mean
from mtdnn_ds.data.sources.generated_words import (
    ADJECTIVES,
    ADVERBS,
    ANIMALS,
    BAD,
    EVENTS,
    GOOD,
    PEOPLE,
    PLACES,
    REASONS,
    REVIEWED,
    SYNONYMS,
    TIMES,
    Verb,
)

VERSION = 1  # raise it when the rows change

Example = tuple[tuple[str, ...], float | str]
Item = TypeVar("Item")


class _Draws:
    """Choices from one seeded stream. Only `Generator.random` is used, whose doubles are PCG64's raw bits (stable over NumPy versions)."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def below(self, bound: int) -> int:
        return int(self._generator.random() * bound)

    def chance(self, probability: float) -> bool:
        return bool(self._generator.random() < probability)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def other(self, items: Sequence[Item], than: Item) -> Item:
        return self.pick([item for item in items if item != than])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    make: Callable[[_Draws], Example]
    seed: int
    num_train: int
    num_dev: int


def generate(task: str, split: str) -> list[Example]:
    """[(texts, label)] of a split, "train" or "dev". Pure. No dev row stands in train, and no row twice."""
    if task not in _TASKS:
        raise DataError(f"unknown generated task '{task}'{did_you_mean(task, _TASKS)}")
    if split not in ("train", "dev"):
        raise DataError(f"{task}: no split '{split}'{did_you_mean(split, ('train', 'dev'))}")
    spec = _TASKS[task]
    draws = _Draws(spec.seed)
    rows: dict[tuple[str, ...], float | str] = {}
    while len(rows) < spec.num_train + spec.num_dev:
        texts, label = spec.make(draws)
        rows.setdefault(texts, label)
    examples = list(rows.items())
    return examples[: spec.num_train] if split == "train" else examples[spec.num_train :]


def _sentence(*parts: str) -> str:
    text = " ".join(part for part in parts if part)
    return text[0].upper() + text[1:] + "."


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "ch", "sh", "x")) else "s")


# Acceptability: agreement, verb forms, word order; a bad sentence is a good one with one thing broken.


def _acceptability(draws: _Draws) -> Example:
    is_good = draws.chance(0.5)
    noun, neighbour, event = draws.pick(PEOPLE), draws.pick(PEOPLE), draws.pick(EVENTS)
    verb, thing = event.verb, draws.pick(event.objects)
    many = draws.chance(0.5)
    ending = draws.pick((draws.pick(PLACES), draws.pick(TIMES)))
    breakage = -1 if is_good else draws.below(5)

    determiner = draws.pick(
        ("these", "many", "several") if many != (breakage == 0) else ("this", "every", "one")
    )
    subject = [
        determiner,
        draws.pick(ADJECTIVES) if draws.chance(0.5) else "",
        _plural(noun) if many else noun,
    ]
    if draws.chance(0.3):
        subject += ["near the", draws.pick((neighbour, _plural(neighbour)))]
    auxiliary = draws.below(3)
    if auxiliary == 0:  # these bakers paint / this baker paints
        predicate = [verb.base if many != (breakage == 1) else verb.present]
    elif auxiliary == 1:  # these bakers have painted
        predicate = ["have" if many else "has", verb.base if breakage == 1 else verb.participle]
    else:
        predicate = [draws.pick(("will", "can", "must")), verb.participle if breakage == 1 else verb.base]
    object_ = ["the", thing]
    if breakage == 2:
        object_ = [thing, "the"]
    if breakage == 3:
        subject, predicate = predicate, subject
    if breakage == 4:
        words = ending.split()
        ending = " ".join([*words[1:], words[0]]) if len(words) > 1 else ""
        if len(words) == 1:
            object_ = ["of", *object_]
    text = _sentence(*subject, *predicate, *object_, ending)
    return (text,), "acceptable" if is_good != draws.chance(0.02) else "unacceptable"


# Sentiment: a negation flips, the clause after "but" decides.


def _sentiment(draws: _Draws) -> Example:
    positive = draws.chance(0.5)

    def clause(wanted: bool) -> str:
        thing, time = draws.pick(REVIEWED), draws.pick(("", "", "really", "quite"))
        if draws.chance(0.3):
            return f"the {thing} was {draws.pick(('not', 'never', 'hardly'))} {draws.pick(BAD if wanted else GOOD)}"
        return " ".join(
            word for word in ("the", thing, "was", time, draws.pick(GOOD if wanted else BAD)) if word
        )

    if draws.chance(0.4):
        text = _sentence(clause(not positive) + ",", "but", clause(positive))
    elif draws.chance(0.5):
        text = _sentence(clause(positive), "and", clause(positive))
    else:
        text = _sentence(
            draws.pick(("we thought", "I must say", "my friends agreed that", "in the end,")),
            clause(positive),
        )
    return (text,), "positive" if positive != draws.chance(0.03) else "negative"


# Paraphrase: who did what to whom, said twice. Either class may reuse or change the words.


def _say(draws: _Draws, agent: str, verb: Verb, patient: str, place: str) -> str:
    form = draws.below(3)
    if form == 0:
        return _sentence("the", agent, verb.past, "the", patient, place)
    if form == 1:
        return _sentence("the", patient, "was", verb.participle, "by the", agent, place)
    return _sentence(place + ",", "the", agent, verb.past, "the", patient)


def _paraphrase(draws: _Draws) -> Example:
    event = draws.pick(EVENTS)
    agent, patient, place = draws.pick(PEOPLE), draws.pick(event.objects), draws.pick(PLACES)
    first = _say(draws, agent, event.verb, patient, place)
    same = draws.chance(0.5)
    verb, other_agent, other_patient, other_place = event.verb, agent, patient, place
    if not same:
        change = draws.below(3)
        if change == 0:
            other_patient = draws.other(event.objects, patient)
        elif change == 1:
            other_agent = draws.other(PEOPLE, agent)
        else:
            verb = draws.other([other for other in EVENTS if patient in other.objects], event).verb
    if draws.chance(0.75):
        other_agent = SYNONYMS.get(other_agent, other_agent)
        other_patient = SYNONYMS.get(other_patient, other_patient)
    if draws.chance(0.5):
        other_place = ""
    second = (
        _say(draws, other_agent, verb, other_patient, other_place)
        if other_place
        else _sentence("the", other_agent, verb.past, "the", other_patient)
    )
    return (first, second), "paraphrase" if same != draws.chance(0.03) else "different"


# Entailment: leaving something out follows, adding something is open, denying or recounting contradicts.

_NUMBERS = ("two", "three", "four", "five", "six", "seven")


def _entailment(draws: _Draws) -> Example:
    event = draws.pick(EVENTS)
    noun, thing, place, adjective = (
        _plural(draws.pick(PEOPLE)),
        draws.pick(event.objects),
        draws.pick(PLACES),
        draws.pick(ADJECTIVES),
    )
    number, negative = draws.pick(_NUMBERS), draws.chance(0.25)
    verb = event.verb
    did, did_not = f"{verb.past} the {thing}", f"did not {verb.base} the {thing}"
    premise = _sentence(number, adjective, noun, did_not if negative else did, place)
    answer = draws.pick(("entailment", "neutral", "contradiction"))
    said, denied = (did_not, did) if negative else (did, did_not)
    if answer == "entailment":
        hypothesis = draws.pick(
            (
                _sentence("some", noun, said),
                _sentence(number, draws.pick(("people", noun)), said, place),
                _sentence("there were", number, draws.pick(("people", noun)), place),
            )
        )
    elif answer == "contradiction":
        hypothesis = draws.pick(
            (
                _sentence("the", noun, denied, place),
                _sentence("only", draws.other(_NUMBERS, number), noun, said),
                _sentence("there was nobody", place),
            )
        )
    else:
        hypothesis = draws.pick(
            (
                _sentence("the", noun, said, draws.pick(REASONS)),
                _sentence(
                    "the",
                    noun,
                    draws.pick(("were not", "were")),
                    draws.pick(("hungry", "late", "rich", "angry", "married")),
                ),
                _sentence("the", noun, draws.pick(("liked", "did not like")), "the", draws.pick(ANIMALS)),
            )
        )
    return (premise, hypothesis), draws.other(
        ("entailment", "neutral", "contradiction"), answer
    ) if draws.chance(0.03) else answer


# Similarity: 0 to 5, one point and two thirds for each of agent, event and place that two sentences share, minus a little noise.


def _similarity(draws: _Draws) -> Example:
    event = draws.pick(EVENTS)
    agent, thing, place = draws.pick(PEOPLE), draws.pick(event.objects), draws.pick(PLACES)
    first = _sentence("the", agent, event.verb.past, "the", thing, place)
    kept = draws.below(4)
    keep = sorted([0, 1, 2], key=lambda part: (draws.below(1000), part))[:kept]
    if 0 not in keep:
        agent = draws.other(PEOPLE, agent)
    elif draws.chance(0.5):
        agent = SYNONYMS.get(agent, agent)
    if 1 not in keep:
        event = draws.other(EVENTS, event)
        thing = draws.pick(event.objects)
    if 2 not in keep:
        place = draws.other(PLACES, place)
    second = draws.pick(
        (
            _sentence("the", agent, event.verb.past, "the", thing, place),
            _sentence(place + ",", draws.pick(ADVERBS), "the", agent, event.verb.past, "the", thing),
        )
    )
    score = min(5.0, max(0.0, kept * 5 / 3 + draws.below(7) / 10 - 0.3))
    return (first, second), round(score, 2)


_TASKS: Mapping[str, _Task] = {
    "quickstart_acceptability": _Task(make=_acceptability, seed=1, num_train=2000, num_dev=250),
    "quickstart_sentiment": _Task(make=_sentiment, seed=2, num_train=1500, num_dev=250),
    "quickstart_paraphrase": _Task(make=_paraphrase, seed=3, num_train=2000, num_dev=250),
    "quickstart_entailment": _Task(make=_entailment, seed=4, num_train=2000, num_dev=300),
    "quickstart_similarity": _Task(make=_similarity, seed=5, num_train=80, num_dev=200),
}
