"""The check of a GLUE submission against what the leaderboard takes. Predicts nothing, mends nothing."""

from __future__ import annotations

import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mtdnn_ds.tasks.glue import GLUE_FILES, SCORE_RANGE, GlueFile

HEADER = "index\tprediction"
MOST_BYTES = 64 * 2**20  # of one file; the longest, QQP's, has 4 MB
MOST_LISTED = 20  # problems of one file
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def check_submission(
    submission: Path | Mapping[str, bytes], files: Sequence[GlueFile] = GLUE_FILES
) -> list[str]:
    """All that is wrong with a submission, each with its file and line; nothing if it can be handed in.

    `submission`: a zip file, or the contents of its files by name. Of one file's problems the first 20 are
    listed, and the others counted.
    """
    place = ""
    problems: list[str] = []
    if isinstance(submission, Path):
        contents, problems = _unzip(submission)
        place = f"{submission}: "
    else:
        contents = dict(submission)

    expected = {file.name: file for file in files}
    problems += [f"{place}{name} is missing" for name in expected if name not in contents]
    problems += [
        f"{place}{name} does not belong to a submission{_hint(name, expected)}"
        for name in contents
        if name not in expected
    ]
    for name, file in expected.items():
        if name in contents:
            of_file = _first(_file_problems(contents[name], file))
            problems += [f"{place}{name}{problem}" for problem in of_file]
    return problems


def _unzip(path: Path) -> tuple[dict[str, bytes], list[str]]:
    """Contents of each file by name, and what is wrong with the zip itself."""
    contents: dict[str, bytes] = {}
    problems: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            counts = Counter(item.filename for item in members)
            problems += [
                f"{path}: {name} stands in it {count} times" for name, count in counts.items() if count > 1
            ]
            for item in members:
                if item.file_size > MOST_BYTES:
                    problems.append(
                        f"{path}: {item.filename} has {item.file_size:,} bytes; "
                        f"no file of a submission has more than {MOST_BYTES:,}"
                    )
                    contents.setdefault(item.filename, b"")
                elif item.filename not in contents:
                    contents[item.filename] = archive.read(item)

    except FileNotFoundError:
        return {}, [f"{path}: no such file"]
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        return contents, [*problems, f"{path}: is not a whole, unencrypted zip file ({error})"]
    return contents, problems


def _hint(name: str, expected: Mapping[str, GlueFile]) -> str:
    own = name.rsplit("/", 1)[-1]
    if "/" in name and own in expected:
        return "; files stand at the top of the zip, in no folder"
    return ""


def _first(problems: Sequence[str]) -> list[str]:
    more = len(problems) - MOST_LISTED
    if more <= 0:
        return list(problems)
    return [*problems[:MOST_LISTED], f": ... and {more:,} more problems"]


def _file_problems(content: bytes, file: GlueFile) -> list[str]:
    """Problems of one file, each beginning with `: ` or `, line N: `. Line 1 is the header."""
    if content.startswith(b"\xef\xbb\xbf"):
        return [", line 1: begins with a byte order mark; write plain UTF-8"]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        return [f", line {number}: is not UTF-8"]
    if "\r" in text:
        number = text.count("\n", 0, text.index("\r")) + 1
        return [f", line {number}: ends with a carriage return; end lines with a newline alone"]

    header, *rows = text.removesuffix("\n").split("\n")
    problems = []
    if header != HEADER:
        problems.append(f", line 1: the header is {_shown(header)}, not 'index<tab>prediction'")
    if len(rows) != file.num_rows:
        problems.append(f": has {len(rows):,} rows, the test set has {file.num_rows:,}")
    if file.words and _are_clean(rows, file.words):
        return problems

    prediction_problem = _word_problem(file.words) if file.words else _score_problem
    for number, line in enumerate(rows):
        cells = line.split("\t")
        if len(cells) != 2:
            problems.append(f", line {number + 2}: has {len(cells)} fields instead of 2: {_shown(line)}")
            continue

        index, prediction = cells
        if index != str(number):
            problems.append(
                f", line {number + 2}: its index is {_shown(index)}, not {number}; "
                "rows go from 0 on in the order of the test set"
            )
        problem = prediction_problem(prediction)
        if problem is not None:
            problems.append(f", line {number + 2}: {problem}")
    return problems


def _are_clean(rows: Sequence[str], words: Sequence[str]) -> bool:
    """Whether no row has a problem: of QQP's 390,965 rows in a third of the time of a look at each."""
    if not all(row.count("\t") == 1 for row in rows):
        return False
    cells = "\t".join(rows).split("\t") if rows else []
    return cells[::2] == [str(index) for index in range(len(rows))] and set(cells[1::2]) <= set(words)


def _word_problem(words: Sequence[str]) -> Callable[[str], str | None]:
    known, listed = set(words), ", ".join(words)

    def problem(cell: str) -> str | None:
        if cell in known:
            return None
        return f"{_shown(cell)} is not a label of this task ({listed})"

    return problem


def _score_problem(cell: str) -> str | None:
    if _NUMBER.fullmatch(cell) is None or not math.isfinite(float(cell)):
        return f"{_shown(cell)} is not a number"
    low, high = SCORE_RANGE
    if not low <= float(cell) <= high:
        return f"{cell} is not between {low:g} and {high:g}"
    return None


def _shown(cell: str) -> str:
    if len(cell) > 40:
        cell = cell[:37] + "..."
    return repr(cell)
