"""The launcher above this process: is it still there?

Knows deepspeed, torchrun and SLURM by name; sends no signals. `deepspeed` on one node dies of SIGTERM and
leaves its launch.py and all ranks running; a torchrun agent killed by -9 leaves its ranks. A shell is no
launcher: it may go while its job stays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# Words of a command line, and what its process is called in messages.
_LAUNCHERS = {
    "deepspeed.launcher.launch": "deepspeed's launch.py",
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
    "torchrun": "torchrun",
    "slurmstepd": "slurmstepd",
}
_RUNNERS = ("deepspeed", "ds", "deepspeed.launcher.runner")


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A process above this one. `started` tells it from a later process of the same number."""

    name: str
    pid: int
    started: str


def launchers_above() -> tuple[Ancestor, ...]:
    """This process's parent if it is a launcher, and the deepspeed runner above launch.py.

    Empty where there is no /proc.
    """
    parent = os.getppid()
    name = _launcher_name(_command(parent))
    stat = _stat(parent)
    if name is None or stat is None:
        return ()
    launcher = Ancestor(name, parent, stat.started)

    runner = _stat(stat.parent)
    is_run = any(_is(part, word) for part in _command(stat.parent) for word in _RUNNERS)
    if name == _LAUNCHERS["deepspeed.launcher.launch"] and runner is not None and is_run:
        return launcher, Ancestor("deepspeed", stat.parent, runner.started)
    return (launcher,)


def gone(ancestors: tuple[Ancestor, ...]) -> Ancestor | None:
    """The first of them that lives no more. A zombie does not live."""
    for ancestor in ancestors:
        if start_time(ancestor.pid) != ancestor.started:
            return ancestor
    return None


def start_time(pid: int) -> str | None:
    """When a living process was started, in the kernel's count; None if there is none, or no /proc."""
    stat = _stat(pid)
    if stat is None or stat.state in "ZX":
        return None
    return stat.started


class _Stat(NamedTuple):
    """What the kernel says of a process."""

    parent: int
    started: str
    state: str


def _launcher_name(command: Sequence[str]) -> str | None:
    for word, name in _LAUNCHERS.items():
        if any(_is(part, word) for part in command):
            return name
    return None


def _is(part: str, word: str) -> bool:
    """Whether a part of a command line is `word`, with its folder or a colon.

    `/usr/bin/torchrun`, `-m torch.distributed.run` and `slurmstepd: [42.0]` are; a script's own argument that
    contains the word is not.
    """
    return Path(part.split(":")[0]).name == word


def _command(pid: int) -> list[str]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
    return words[:4]  # python -u -m MODULE


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return _Stat(parent=int(fields[1]), started=fields[19], state=fields[0])
