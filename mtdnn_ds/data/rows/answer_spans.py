"""The span of a text that comes closest to an answer somebody wrote in their own words.

Characters only; no tokens.
"""

from __future__ import annotations

import re
from collections import Counter

from mtdnn_ds.tasks.answer_metrics import normalised

_WORD = re.compile(r"\S+")


def best_span(text: str, answer: str, start: int, end: int) -> tuple[int, int] | None:
    """Characters of the words within text[start:end] with the highest F1 with `answer`.

    None if no word is in common. F1 is that of tasks/answer_metrics.py. Of equally good spans the shortest,
    and of those the first. Example: of "there lived a little white kitten" and the answer "a white kitten!"
    it is "white kitten".
    """
    wanted = Counter(normalised(answer).split())
    words = [
        (match.start(), match.end(), normalised(match.group()).split())
        for match in _WORD.finditer(text, start, end)
    ]
    # A best span begins and ends with a word of the answer: without other words at its ends it has as much in
    # common and is shorter.
    matching = [
        index for index, (_, _, tokens) in enumerate(words) if any(token in wanted for token in tokens)
    ]

    best: tuple[float, int, int, int] | None = None
    for first in matching:
        left = wanted.copy()
        common = length = 0
        for last in range(first, matching[-1] + 1):
            for token in words[last][2]:
                length += 1
                if left[token] > 0:
                    left[token] -= 1
                    common += 1

            f1 = 2 * common / (length + wanted.total())
            if best is None or (f1, -length) > (best[0], -best[1]):
                best = (f1, length, words[first][0], words[last][1])
            if common == wanted.total():
                break  # any longer one is worse

    if best is None:
        return None
    return _without_marks(text, best[2], best[3])


def _without_marks(text: str, start: int, end: int) -> tuple[int, int]:
    """Without punctuation that belongs to the sentence around it."""
    while start < end - 1 and text[start] in "\"'([":
        start += 1
    while start < end - 1 and text[end - 1] in "\"')],;:.!?":
        end -= 1
    return start, end


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The same characters without white space around them."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
