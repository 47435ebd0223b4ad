"""Documents: a text cut into its sentences, which become the texts of a prepared row.

Makes no examples (data/examples/documents.py). Every line that is not blank is a paragraph, and a paragraph
is cut where a sentence ends: after . ! ? or an ellipsis, with closing quotes and brackets, before a space and
something that is not a small letter; but not after an initial ("J. Smith") or an abbreviation of the list
below. Ideographic full stops end a sentence without a space. The cut is there for next-sentence prediction
and for chunks that begin well, so a wrong one costs little.
"""

from __future__ import annotations

import math
import re

from mtdnn_ds.data.rows.checked import CheckedRow, RowParser, text_problem
from mtdnn_ds.data.sources.lines import Cells, RowProblem
from mtdnn_ds.tasks.spec import Source, TaskSpec

_ABBREVIATION = re.compile(
    r"Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Col|Lt|Sen|Rep|Rev|Hon|vs|cf|ca|Nos?|[Vv]ol|pp?|eds?|Fig"
    r"|e\.g|i\.e|al|approx|[A-HJ-Z]"  # initials
)
_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+["'”’」』）]*(?=[^"'”’」』）])""")
_NEXT = re.compile(r"\s*(\S)")


def sentences(text: str) -> tuple[str, ...]:
    """Sentences of a text in order.

    Those of a paragraph add up to it, so all but its first begin with the space before them.
    """
    found: list[str] = []
    for line in text.split("\n"):
        paragraph = line.strip()
        if paragraph:
            found += _of_paragraph(paragraph)
    return tuple(found)


def _of_paragraph(paragraph: str) -> list[str]:
    parts, start = [], 0
    for match in _END.finditer(paragraph):
        if _ends_sentence(paragraph, match):
            parts.append(paragraph[start : match.end()])
            start = match.end()
    return [*parts, paragraph[start:]]


def _ends_sentence(paragraph: str, match: re.Match[str]) -> bool:
    following = _NEXT.match(paragraph, match.end())
    if following is None or following[1].islower():
        return False

    before = paragraph[paragraph.rfind(" ", 0, match.start()) + 1 : match.start()].lstrip("\"'“‘(")
    return match.group() != "." or _ABBREVIATION.fullmatch(before) is None


def document(spec: TaskSpec, source: Source) -> RowParser:
    """The parser of masked_lm: one cell with the text of a document, no label."""
    column = (source.text_columns or ("text",))[0]

    def parse(number: int, cells: Cells) -> CheckedRow | RowProblem:
        if problem := text_problem(cells[0], column):
            return problem
        return CheckedRow(number, sentences(str(cells[0])), math.nan)

    return parse
