"""Errors a user can cause, each with what, where and what to do; plus the closest-name helper. Not for our
own mistakes (assert)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Base of everything that ends a command with exit code 2 and its message instead of a traceback."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(UserError):
    """A recipe, a DeepSpeed JSON or a flag is wrong. Carries every problem found."""


class DataError(UserError):
    """A data file or a row of it is wrong. Each problem names file and row."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or does not fit the recipe. Each problem names both values."""


class TrainingError(UserError):
    """Training cannot go on (a loss that is not finite, a loss scale at its minimum). Exit code 1: work was
    begun."""


class Stopped(Exception):
    """The run was asked to stop, and everything is saved: exit code 85. No error of the user's, so no
    UserError. Its text is what is printed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'mnli'? (known: cola, mnli, ...)"` for a misspelt name.

    Only the known names if none is close.
    """
    names = sorted(set(known))
    listed = ", ".join(names[:24])
    if len(names) > 24:
        listed += ", ..."

    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'? (known: {listed})"
    return f"; (known: {listed})"
