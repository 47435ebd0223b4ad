"""The pages (README.md, docs/ and others) as tests read them: blocks, commands and tables. Runs nothing.

Not a test file.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from helpers.processes import ROOT

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
PLACEHOLDERS = ("runs/", "PATH/", "mine/")  # the user's own folders

# The comment after a command that no test can run ends so: "# needs a GPU".
NEEDS = (
    "a GPU",
    "a cluster",
    "a node",
    "SLURM's programs",
    "Docker",
    "Apptainer",
    "GLUE's test files",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command of a page."""

    words: list[str]
    comment: str
    line: int  # of the page, from 1

    @property
    def needs(self) -> str | None:
        """What a machine must have for it that not every one has; None: it runs anywhere."""
        found = re.search(r"\bneeds (.+)$", self.comment)
        return found and found[1]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, without their fences."""
    return [block for _, block in _blocks(page, language)]


def commands(page: str) -> Iterator[Command]:
    """The commands of a page's bash blocks, in order; a backslash joins lines, a comment ends a command."""
    for first, block in _blocks(page, "bash"):
        joined = ""
        for number, line in enumerate(block.splitlines(), first):
            joined += line
            if joined.endswith("\\"):
                joined = joined[:-1] + " "
                continue
            words = shlex.split(joined, comments=True)
            if words:
                _, _, comment = joined.partition(" #")
                yield Command(words=words, comment=comment.strip(), line=number)
            joined = ""


def rows_under(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table after the line that begins with `heading`, without its two head lines."""
    lines = text_of(page).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(heading))
    first = next(number for number in range(start, len(lines)) if lines[number].startswith("|"))

    table = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return table[2:]


def _blocks(page: str, language: str) -> list[tuple[int, str]]:
    """(number of its first line, text) of each block."""
    text = text_of(page)
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]
