"""Sharing: which groups of tasks have encoder weights of their own. A record without tensors; model/ builds
from it, data/ lays out by it.

hard      one encoder for all tasks
soft      a copy of the encoder for each group; a penalty draws the copies to their mean
low_rank  one encoder, and for each group a change of low rank of every linear layer; a penalty draws the
          changes to zero
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["hard", "soft", "low_rank"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """How the tasks of a run share the encoder."""

    mode: Mode
    groups: Mapping[
        str, tuple[str, ...]
    ]  # name -> its tasks, in the order of their weights; empty with hard sharing
    group_of_task: tuple[int, ...]  # index into groups, of each of the run's tasks; empty with hard sharing
    penalty: float = 0.0
    rank: int = 0  # low_rank only

    @property
    def num_copies(self) -> int:
        """Whole encoders of the run."""
        if self.mode != "soft":
            return 1
        return len(self.groups)

    def copy_of(self, task: int) -> int:
        """Which of them a task's sequences run through."""
        if self.mode != "soft":
            return 0
        return self.group_of_task[task]

    def only_group_of(self, tasks: Sequence[str]) -> int | None:
        """The group of those of `tasks` that have one; None if none has, or they are in several."""
        found = {index for index, own in enumerate(self.groups.values()) if set(own) & set(tasks)}
        if len(found) != 1:
            return None
        return found.pop()


HARD = Sharing(mode="hard", groups={}, group_of_task=())


def share(
    tasks: Sequence[str],
    *,
    mode: Mode = "hard",
    groups: Mapping[str, Sequence[str]] | None = None,
    penalty: float = 0.0,
    rank: int = 0,
) -> Sharing:
    """The sharing of a run's tasks. `groups` holds each task once (config/crosscheck.py); None makes each
    task a group of its own."""
    if mode == "hard":
        return HARD

    if groups is None:
        groups = {name: (name,) for name in tasks}
    members = {name: tuple(own) for name, own in groups.items()}
    group_of = {task: index for index, own in enumerate(members.values()) for task in own}
    return Sharing(
        mode=mode,
        groups=members,
        group_of_task=tuple(group_of[task] for task in tasks),
        penalty=penalty,
        rank=rank if mode == "low_rank" else 0,
    )
