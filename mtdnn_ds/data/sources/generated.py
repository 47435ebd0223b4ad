"""Five small generated tasks for the quickstart run: no download, the same bytes on every machine.

No benchmark.

Sentences come from small grammars. Every task has a few per cent of label noise, and the obvious shortcut of
each is blocked: acceptability's bad sentences keep their words, sentiment has negations and "but",
paraphrase's two classes have the same lexical overlap, entailment has negation in every class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
    Draws,
    Verb,
    plural,
    sentence,
)

VERSION = 1  # raise it when the rows change

Example = tuple[tuple[str, ...], float | str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    make: Callable[[Draws], Example]
    seed: int
    num_train: int
    num_dev: int


def generate(task: str, split: str) -> list[Example]:
    """[(texts, label)] of a split, "train" or "dev". Pure. No dev row stands in train, and no row twice.

    Raises DataError for a task or a split that there is not.
    """
    if task not in _TASKS:
        raise DataError(f"unknown generated task '{task}'{did_you_mean(task, _TASKS)}")
    if split not in ("train", "dev"):
        raise DataError(f"{task}: no split '{split}'{did_you_mean(split, ('train', 'dev'))}")

    spec = _TASKS[task]
    draws = Draws(spec.seed)
    rows: dict[tuple[str, ...], float | str] = {}
    while len(rows) < spec.num_train + spec.num_dev:
        texts, label = spec.make(draws)
        rows.setdefault(texts, label)

    examples = list(rows.items())
    if split == "train":
        return examples[: spec.num_train]
    return examples[spec.num_train :]


# The order of the draws is part of the rows: every change of it raises VERSION.

# Acceptability: agreement, verb forms, word order; a bad sentence is a good one with one thing broken.

_GOOD, _AGREEMENT, _VERB_FORM, _OBJECT_ORDER, _VERB_FIRST, _ENDING = range(-1, 5)  # what is broken


def _acceptability(draws: Draws) -> Example:
    is_good = draws.chance(0.5)
    noun, neighbour, event = draws.pick(PEOPLE), draws.pick(PEOPLE), draws.pick(EVENTS)
    verb, thing = event.verb, draws.pick(event.objects)
    many = draws.chance(0.5)
    ending = draws.pick((draws.pick(PLACES), draws.pick(TIMES)))
    broken = _GOOD if is_good else draws.below(5)

    determiners = ("this", "every", "one")
    if many != (broken == _AGREEMENT):
        determiners = ("these", "many", "several")
    subject = [draws.pick(determiners), draws.maybe(0.5, ADJECTIVES), plural(noun) if many else noun]
    if draws.chance(0.3):
        subject += ["near the", draws.pick((neighbour, plural(neighbour)))]

    auxiliary = draws.below(3)
    if auxiliary == 0:  # these bakers paint / this baker paints
        is_base_form = many != (broken == _VERB_FORM)
        predicate = [verb.base if is_base_form else verb.present]
    elif auxiliary == 1:  # these bakers have painted
        predicate = ["have" if many else "has", verb.base if broken == _VERB_FORM else verb.participle]
    else:
        predicate = [
            draws.pick(("will", "can", "must")),
            verb.participle if broken == _VERB_FORM else verb.base,
        ]

    object_ = ["the", thing]
    if broken == _OBJECT_ORDER:
        object_ = [thing, "the"]
    if broken == _VERB_FIRST:
        subject, predicate = predicate, subject
    if broken == _ENDING:
        first, *others = ending.split()
        ending = ""
        if others:
            ending = " ".join([*others, first])
        else:
            object_ = ["of", *object_]

    text = sentence(*subject, *predicate, *object_, ending)
    return (text,), "acceptable" if is_good != draws.chance(0.02) else "unacceptable"


# Sentiment: a negation flips, the clause after "but" decides.


def _sentiment(draws: Draws) -> Example:
    positive = draws.chance(0.5)

    if draws.chance(0.4):
        text = sentence(_opinion(draws, not positive) + ",", "but", _opinion(draws, positive))
    elif draws.chance(0.5):
        text = sentence(_opinion(draws, positive), "and", _opinion(draws, positive))
    else:
        opening = draws.pick(("we thought", "I must say", "my friends agreed that", "in the end,"))
        text = sentence(opening, _opinion(draws, positive))

    return (text,), "positive" if positive != draws.chance(0.03) else "negative"


def _opinion(draws: Draws, positive: bool) -> str:
    same, opposite = (GOOD, BAD) if positive else (BAD, GOOD)
    thing, degree = draws.pick(REVIEWED), draws.pick(("", "", "really", "quite"))
    if draws.chance(0.3):
        words = ["the", thing, "was", draws.pick(("not", "never", "hardly")), draws.pick(opposite)]
    else:
        words = ["the", thing, "was", degree, draws.pick(same)]
    return " ".join(word for word in words if word)


# Paraphrase: who did what to whom, said twice. Either class may reuse or change the words.


def _event_sentence(draws: Draws, agent: str, verb: Verb, patient: str, place: str) -> str:
    form = draws.below(3)
    if form == 0:
        return sentence("the", agent, verb.past, "the", patient, place)
    if form == 1:
        return sentence("the", patient, "was", verb.participle, "by the", agent, place)
    return sentence(place + ",", "the", agent, verb.past, "the", patient)


def _paraphrase(draws: Draws) -> Example:
    event = draws.pick(EVENTS)
    agent, patient, place = draws.pick(PEOPLE), draws.pick(event.objects), draws.pick(PLACES)
    first = _event_sentence(draws, agent, event.verb, patient, place)

    same = draws.chance(0.5)
    verb = event.verb
    if not same:
        change = draws.below(3)
        if change == 0:
            patient = draws.other(event.objects, patient)
        elif change == 1:
            agent = draws.other(PEOPLE, agent)
        else:
            verb = draws.other([other for other in EVENTS if patient in other.objects], event).verb

    if draws.chance(0.75):
        agent, patient = SYNONYMS.get(agent, agent), SYNONYMS.get(patient, patient)
    if draws.chance(0.5):
        second = sentence("the", agent, verb.past, "the", patient)
    else:
        second = _event_sentence(draws, agent, verb, patient, place)
    return (first, second), "paraphrase" if same != draws.chance(0.03) else "different"


# Entailment: leaving something out follows, adding something is open, denying or recounting contradicts.

_NUMBERS = ("two", "three", "four", "five", "six", "seven")
_ANSWERS = ("entailment", "neutral", "contradiction")


def _entailment(draws: Draws) -> Example:
    event = draws.pick(EVENTS)
    noun, thing, place = plural(draws.pick(PEOPLE)), draws.pick(event.objects), draws.pick(PLACES)
    adjective, number, negative = draws.pick(ADJECTIVES), draws.pick(_NUMBERS), draws.chance(0.25)

    said, denied = f"{event.verb.past} the {thing}", f"did not {event.verb.base} the {thing}"
    if negative:
        said, denied = denied, said
    premise = sentence(number, adjective, noun, said, place)

    answer = draws.pick(_ANSWERS)
    if answer == "entailment":
        hypotheses = (
            sentence("some", noun, said),
            sentence(number, draws.pick(("people", noun)), said, place),
            sentence("there were", number, draws.pick(("people", noun)), place),
        )
    elif answer == "contradiction":
        hypotheses = (
            sentence("the", noun, denied, place),
            sentence("only", draws.other(_NUMBERS, number), noun, said),
            sentence("there was nobody", place),
        )
    else:
        states = ("hungry", "late", "rich", "angry", "married")
        hypotheses = (
            sentence("the", noun, said, draws.pick(REASONS)),
            sentence("the", noun, draws.pick(("were not", "were")), draws.pick(states)),
            sentence("the", noun, draws.pick(("liked", "did not like")), "the", draws.pick(ANIMALS)),
        )
    hypothesis = draws.pick(hypotheses)

    if draws.chance(0.03):
        answer = draws.other(_ANSWERS, answer)
    return (premise, hypothesis), answer


# Similarity: 0 to 5, one point and two thirds for each of agent, event and place that two sentences share,
# minus a little noise.


def _similarity(draws: Draws) -> Example:
    event = draws.pick(EVENTS)
    agent, thing, place = draws.pick(PEOPLE), draws.pick(event.objects), draws.pick(PLACES)
    first = sentence("the", agent, event.verb.past, "the", thing, place)

    num_kept = draws.below(4)
    kept = sorted([0, 1, 2], key=lambda part: (draws.below(1000), part))[:num_kept]
    if 0 not in kept:
        agent = draws.other(PEOPLE, agent)
    elif draws.chance(0.5):
        agent = SYNONYMS.get(agent, agent)
    if 1 not in kept:
        event = draws.other(EVENTS, event)
        thing = draws.pick(event.objects)
    if 2 not in kept:
        place = draws.other(PLACES, place)

    second = draws.pick(
        (
            sentence("the", agent, event.verb.past, "the", thing, place),
            sentence(place + ",", draws.pick(ADVERBS), "the", agent, event.verb.past, "the", thing),
        )
    )
    score = min(5.0, max(0.0, num_kept * 5 / 3 + draws.below(7) / 10 - 0.3))
    return (first, second), round(score, 2)


_TASKS: Mapping[str, _Task] = {
    "quickstart_acceptability": _Task(make=_acceptability, seed=1, num_train=2000, num_dev=250),
    "quickstart_sentiment": _Task(make=_sentiment, seed=2, num_train=1500, num_dev=250),
    "quickstart_paraphrase": _Task(make=_paraphrase, seed=3, num_train=2000, num_dev=250),
    "quickstart_entailment": _Task(make=_entailment, seed=4, num_train=2000, num_dev=300),
    "quickstart_similarity": _Task(make=_similarity, seed=5, num_train=80, num_dev=200),
}
