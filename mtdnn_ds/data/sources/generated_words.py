"""Words of the generated quickstart tasks, seeded choices among them, and sentences.

The tasks are in generated.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Item = TypeVar("Item")


class Draws:
    """Choices from one seeded stream.

    Only `Generator.random` is used, whose doubles are PCG64's raw bits (stable over NumPy versions).
    """

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

    def maybe(self, probability: float, words: Sequence[str]) -> str:
        """One of `words`, or none ("")."""
        if self.chance(probability):
            return self.pick(words)
        return ""


def sentence(*parts: str) -> str:
    """The parts that are not empty, with a capital letter and a full stop."""
    text = " ".join(part for part in parts if part)
    return text[0].upper() + text[1:] + "."


def plural(noun: str) -> str:
    if noun.endswith(("s", "ch", "sh", "x")):
        return noun + "es"
    return noun + "s"


class Verb(NamedTuple):
    """Forms of a transitive verb."""

    base: str
    present: str  # third person singular
    past: str
    participle: str


class Event(NamedTuple):
    """A verb and what it can be done to."""

    verb: Verb
    objects: tuple[str, ...]


_MEALS = ("soup", "cake", "bread", "salad", "pizza")
_VEHICLES = ("car", "bicycle", "boat", "truck", "motorcycle")
_TEXTS = ("letter", "novel", "poem", "report", "message")
_FURNITURE = ("chair", "table", "fence", "door", "cabinet")
_INSTRUMENTS = ("piano", "guitar", "violin", "trumpet", "flute")
_DEVICES = ("computer", "camera", "radio", "telephone", "clock")
_ANIMALS = ("dog", "horse", "cat", "rabbit", "parrot")

EVENTS = (
    Event(Verb("eat", "eats", "ate", "eaten"), _MEALS),
    Event(Verb("prepare", "prepares", "prepared", "prepared"), _MEALS),
    Event(Verb("steal", "steals", "stole", "stolen"), _VEHICLES),
    Event(Verb("drive", "drives", "drove", "driven"), _VEHICLES),
    Event(Verb("wash", "washes", "washed", "washed"), _VEHICLES),
    Event(Verb("write", "writes", "wrote", "written"), _TEXTS),
    Event(Verb("forget", "forgets", "forgot", "forgotten"), _TEXTS),
    Event(Verb("throw away", "throws away", "threw away", "thrown away"), _TEXTS),
    Event(Verb("break", "breaks", "broke", "broken"), _FURNITURE),
    Event(Verb("paint", "paints", "painted", "painted"), _FURNITURE),
    Event(Verb("sell", "sells", "sold", "sold"), _INSTRUMENTS),
    Event(Verb("play", "plays", "played", "played"), _INSTRUMENTS),
    Event(Verb("give back", "gives back", "gave back", "given back"), _DEVICES),
    Event(Verb("choose", "chooses", "chose", "chosen"), _DEVICES),
    Event(Verb("hide", "hides", "hid", "hidden"), _DEVICES),
    Event(Verb("feed", "feeds", "fed", "fed"), _ANIMALS),
    Event(Verb("draw", "draws", "drew", "drawn"), _ANIMALS),
)

PEOPLE = (
    "teacher", "doctor", "farmer", "lawyer", "burglar", "toddler", "soldier", "sailor", "singer", "baker",
    "actor", "pilot", "tailor", "student", "painter", "officer", "gardener", "author", "driver", "neighbor",
    "tourist", "nurse", "engineer", "king", "boss",
)  # fmt: skip

PLACES = (
    "in the garden", "at the station", "near the river", "behind the school", "in the kitchen",
    "on the bridge", "at the market", "in the hotel", "on the beach", "in the basement", "outside the church",
    "in the park", "at the airport", "under the tower", "on the roof", "by the lake",
)  # fmt: skip

TIMES = (
    "before dinner",
    "after the storm",
    "during the holidays",
    "in the evening",
    "on Sunday",
    "at midnight",
    "quickly",
    "together",
)

ADJECTIVES = (
    "young",
    "old",
    "tall",
    "quiet",
    "friendly",
    "nervous",
    "clever",
    "tired",
    "famous",
    "strange",
    "brave",
    "lazy",
)

ADVERBS = ("perhaps", "suddenly", "apparently", "finally", "luckily")

ANIMALS = _ANIMALS

REASONS = (
    "because it was a birthday",
    "for the first time",
    "to help a friend",
    "while it was raining",
    "after a long trip",
    "for money",
)

REVIEWED = (
    "film", "plot", "acting", "music", "ending", "service", "food", "room", "story", "cast", "script",
    "hotel", "concert", "staff", "view", "book", "menu", "dialogue", "pacing", "atmosphere",
)  # fmt: skip

GOOD = (
    "wonderful", "brilliant", "delightful", "charming", "excellent", "funny", "superb", "moving", "great",
    "fresh", "impressive", "lovely", "clever", "enjoyable", "beautiful", "perfect", "memorable",
    "fascinating",
)  # fmt: skip

BAD = (
    "terrible", "boring", "awful", "dull", "disappointing", "horrible", "clumsy", "stale", "weak", "annoying",
    "tedious", "dreadful", "ugly", "poor", "messy", "mediocre", "forgettable", "painful",
)  # fmt: skip

SYNONYMS: Mapping[str, str] = {
    "teacher": "schoolmaster", "doctor": "physician", "lawyer": "attorney", "burglar": "robber",
    "toddler": "infant", "soldier": "trooper", "sailor": "seaman", "singer": "vocalist", "actor": "performer",
    "pilot": "aviator", "student": "pupil", "painter": "artist", "officer": "policeman", "author": "writer",
    "tourist": "traveler", "king": "monarch", "boss": "manager", "car": "automobile", "bicycle": "bike",
    "boat": "ship", "truck": "lorry", "motorcycle": "motorbike", "letter": "note", "poem": "verse",
    "cabinet": "cupboard", "dog": "hound", "horse": "pony", "cat": "kitten", "rabbit": "bunny",
    "computer": "laptop", "telephone": "phone", "violin": "fiddle",
}  # fmt: skip
