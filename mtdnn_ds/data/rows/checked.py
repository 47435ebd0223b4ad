"""Checked rows: texts that are texts and labels that are class ids or scores. Repairs nothing.

Every bad row is found before training. A label may be given as a class name, as a class id ("0" .. "C-1",
0 .. C-1), or as one of the source's label words. If any class name is itself an integer ("1", "2", "3" ...),
ids are not accepted: the name decides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mtdnn_ds.config.errors import DataError, did_you_mean
from mtdnn_ds.data.sources.lines import Cells, RowProblem
from mtdnn_ds.data.sources.names import place_of, row_word
from mtdnn_ds.data.sources.tables import iterate_rows
from mtdnn_ds.tasks.builtin import NO_GOLD_LABEL
from mtdnn_ds.tasks.spec import CustomKind, Source, TaskSpec

_MAX_LISTED = 10
_NO_GOLD_ID = -1.0
_LARGEST_SCORE = float(np.finfo(np.float32).max)

LabelParser = Callable[[object], "float | RowProblem"]


class CheckedRow(NamedTuple):
    """One usable row. `label` is a class id or a score, NaN where the source or the kind has none."""

    number: int  # as a person would look it up, see data/sources/tables.py
    texts: tuple[str, ...]
    label: float
    extra: Mapping[str, Any] = {}  # what the kind keeps beside the texts: data/rows/readers.py


RowParser = Callable[[int, Cells], "CheckedRow | RowProblem"]
"""(row number, cells: text columns, more_columns, label column if any) -> the row, or why it is unusable."""

GroupRows = Callable[[Iterator[CheckedRow], "Counter[str]"], Iterator[CheckedRow]]
"""Makes one row of several; counts the rows that it leaves out, by reason."""


def checked_rows(
    source: Source,
    parse: RowParser,
    *,
    on_bad_row: Literal["refuse", "skip"],
    skipped: Counter[str],
    grouped: GroupRows | None = None,
) -> Iterator[CheckedRow]:
    """Usable rows in file order; left-out rows are counted by reason in `skipped`, complete at the end.

    `grouped` makes one row of several (ranking: all candidates of a question). Rows whose annotators did not
    agree (label words of `NO_GOLD_LABEL`), and QQP's broken ones, are left out in either mode. Raises
    DataError, at the end of the source, if it has bad rows and `on_bad_row` is "refuse" (the first 10 are
    listed), or if no row is left.
    """
    rows = _usable_rows(source, parse, on_bad_row=on_bad_row, skipped=skipped)
    if grouped is None:
        yield from rows
        return

    num_good = 0
    for row in grouped(rows, skipped):
        num_good += 1
        yield row
    if num_good == 0:
        raise DataError(_no_usable_row(source, skipped))


def _usable_rows(
    source: Source, parse: RowParser, *, on_bad_row: Literal["refuse", "skip"], skipped: Counter[str]
) -> Iterator[CheckedRow]:
    bad: list[str] = []
    num_bad = num_rows = num_good = 0

    for number, cells in iterate_rows(source):
        num_rows += 1
        checked = cells if isinstance(cells, RowProblem) else parse(number, cells)
        if isinstance(checked, CheckedRow):
            num_good += 1
            yield checked
        elif checked.left_out or on_bad_row == "skip":
            skipped[checked.reason] += 1
        else:
            num_bad += 1
            if len(bad) < _MAX_LISTED:
                bad.append(f"  {row_word(source)} {number}: {checked.detail}")

    if num_bad:
        if num_bad > len(bad):
            bad.append(f"  ... and {num_bad - len(bad):,} more")
        head = (
            f"{place_of(source)}: {num_bad:,} of {num_rows:,} rows cannot be used; "
            "mend them, or leave them out with data.on_bad_row: skip"
        )
        raise DataError("\n".join([head, *bad]))
    if num_rows == 0:
        raise DataError(f"{place_of(source)}: has no rows")
    if num_good == 0:
        raise DataError(_no_usable_row(source, skipped))


def _no_usable_row(source: Source, skipped: Counter[str]) -> str:
    reasons = "; ".join(f"{count:,} left out: {reason}" for reason, count in sorted(skipped.items()))
    return f"{place_of(source)}: no usable row ({reasons})"


def texts_and_label(spec: TaskSpec, source: Source) -> RowParser:
    """The parser of kinds whose row is one or two texts and one label, whatever their kind makes of it."""
    label_of = label_parser(spec, source)
    num_texts = len(source.text_columns)

    def parse(number: int, cells: Cells) -> CheckedRow | RowProblem:
        texts = cells[:num_texts]
        for text, column in zip(texts, source.text_columns, strict=True):
            if problem := text_problem(text, column):
                return problem

        label = label_of(cells[-1])
        if isinstance(label, RowProblem):
            return label
        return CheckedRow(number, texts, label)  # type: ignore[arg-type]

    return parse


def text_problem(text: object, column: str, *, may_be_empty: bool = False) -> RowProblem | None:
    """Why a cell cannot be used as a text, or None."""
    if not isinstance(text, str):
        return RowProblem("not a text", f"column '{column}' holds {shown(text)}, not a text")
    if not text.strip() and not may_be_empty:
        return RowProblem("empty text", f"column '{column}' is empty")

    if half := _surrogate(text):
        return RowProblem(
            "half a character",
            f"column '{column}' holds U+{ord(half):04X}, half of a character's two-part code; "
            "write the character whole",
        )
    return None


def _surrogate(text: str) -> str | None:
    r"""The first lone surrogate, or None.

    JSON can spell it (\ud83d without its other half), but UTF-8, and so every tokenizer, cannot.
    """
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def label_parser(spec: TaskSpec, source: Source) -> LabelParser:
    """From a label cell to a class id or a score; NaN for every row of a source without labels."""
    if source.label_column is None:
        return lambda cell: math.nan
    if spec.custom is not None:
        return _custom_label_parser(spec, spec.custom)
    if not spec.labels:
        return parse_score
    return class_parser(spec.labels, source.label_words or {})


def _custom_label_parser(spec: TaskSpec, kind: CustomKind) -> LabelParser:
    def parse(cell: object) -> float | RowProblem:
        try:
            label = float(kind.parse_label(cell, spec))
        except ValueError as error:
            return RowProblem("bad label", f"label {shown(cell)}: {error}")
        except Exception as error:  # whatever the user's own code raises is said, with its row
            return RowProblem("bad label", f"label {shown(cell)}: {type(error).__name__}: {error}")

        if not math.isfinite(label):
            return RowProblem(
                "bad label", f"label {shown(cell)}: parse_label of kind {kind.name} gave {label}"
            )
        return label

    return parse


def class_parser(labels: Sequence[str], label_words: Mapping[str, str]) -> LabelParser:
    """From a class name, class id or label word to the class id."""
    ids = _accepted_labels(labels, label_words)

    def parse_class(cell: object) -> float | RowProblem:
        word = label_word(cell)
        if word is not None and word in ids:
            if ids[word] == _NO_GOLD_ID:
                return RowProblem("no gold label", "no gold label", left_out=True)
            return ids[word]

        if word is None or not word.strip():
            return RowProblem("missing label", "the label is missing")
        return RowProblem("unknown label", f"unknown label {shown(cell)}{did_you_mean(word, labels)}")

    return parse_class


def _accepted_labels(labels: Sequence[str], label_words: Mapping[str, str]) -> dict[str, float]:
    """Every accepted spelling -> class id or _NO_GOLD_ID. Names win over label words, and those over ids."""
    names = {label: float(class_id) for class_id, label in enumerate(labels)}
    id_of_name = {**names, NO_GOLD_LABEL: _NO_GOLD_ID}
    words = {word: id_of_name[name] for word, name in label_words.items()}

    if any(_is_integer(label) for label in labels):
        return {**words, **names}
    ids = {str(class_id): float(class_id) for class_id in range(len(labels))}
    return {**ids, **words, **names}


def _is_integer(word: str) -> bool:
    return word.removeprefix("-").isdecimal()


def label_word(cell: object) -> str | None:
    """A cell as a word; None and NaN are missing.

    1, 1.0 (how a column with gaps stores it) and true are "1".
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool) or (isinstance(cell, float) and cell.is_integer()):
        return str(int(cell))
    return str(cell)


def parse_score(cell: object) -> float | RowProblem:
    """A cell as a finite number of float32's range."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return RowProblem("missing label", "the score is missing")

    try:
        score = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return RowProblem("invalid score", f"score {shown(cell)} is not a number")
    except OverflowError:  # a whole number of JSON may have hundreds of digits
        score = math.inf

    if not abs(score) <= _LARGEST_SCORE:  # NaN compares false
        return RowProblem("invalid score", f"score {shown(cell)} is not a finite number")
    return score


def shown(cell: object) -> str:
    """A cell as messages show it: its repr, in 60 characters at most."""
    text = repr(cell)
    if len(text) > 60:
        text = text[:57] + "..."
    return text
