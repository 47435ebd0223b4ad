"""mt-dnn's data files as rows that our kinds read: its canonical TSV and its JSON of token ids. No recipe.

    NAME_SPLIT.tsv     id, label, premise[, hypothesis]                what its prepro_std reads
                       id, ids, labels, premise, hypothesis ...        candidates; ids, labels with commas
                       id, label list, word list                       words, as Python lists
                       id, start:::end:::impossible:::answer, context, question
                       id, choices, answers, labels, premise, hypothesis ...     cloze
    NAME_SPLIT.json    one object a line: uid, label, token_id, type_id    what it writes

Lists are read as literals, never evaluated.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mtdnn_ds.config.errors import DataError
from mtdnn_ds.data.sources.lines import lines_of
from mtdnn_ds.mt_dnn.names import Form
from mtdnn_ds.mt_dnn.task_def import ImportedTask

Row = dict[str, Any]
_MAX_LISTED = 10
_LABELS = ("label", "tags", "answers")
# What a line that is not of its format can raise in json, ast.literal_eval and the readers below.
_UNREADABLE = (ValueError, KeyError, TypeError, SyntaxError, IndexError, RecursionError, MemoryError)
_END_OF_V2 = " EOSEOS"  # squad_prepro.py's mark at the end of the contexts of SQuAD 2.0
COLUMNS: dict[Form, dict[str, Any]] = {
    "texts": {"label_column": "label"},
    "candidates": {"text_columns": ["query", "candidate"], "label_column": "label", "group_column": "line"},
    "cloze": {"text_columns": ["query", "candidate"], "label_column": "label", "group_column": "line"},
    "words": {"text_columns": ["words"], "label_column": "tags"},
    "span": {"text_columns": ["question", "context"], "label_column": "answers"},
    "documents": {},
}
"""Columns of the rows that the readers below make."""


class BadRow(ValueError):
    """A line that is not what its format says."""


def find_files(data: Path, task: str, split: str) -> tuple[Path | None, Path | None]:
    """The canonical file (of documents, the text file) and the JSON of token ids of a split.

    JSON may be one folder deeper, as in bert_base_uncased/.
    """
    texts = [data / f"{task}_{split}{suffix}" for suffix in (".tsv", ".txt")]
    text = next((path for path in texts if path.is_file()), None)

    name = f"{task}_{split}.json"
    prepared = next(iter([*sorted(data.glob(name)), *sorted(data.glob(f"*/{name}"))]), None)
    return text, prepared


def write_rows(
    sources: Sequence[Path],
    task: ImportedTask,
    target: Path,
    *,
    tokenizer: Any = None,
    with_labels: bool = True,
) -> int:
    """Write the rows of `sources`, one after the other, as JSON lines; returns their number.

    `tokenizer` decodes token ids; without labels the columns label, tags and answers are left out. Raises
    DataError with the first bad lines.
    """
    bad: list[str] = []
    num_bad = count = 0
    with target.open("w", encoding="utf-8") as out:
        for source in sources:
            not_utf8: set[int] = set()
            for number, line in enumerate(lines_of(str(source), not_utf8), 1):
                text = line.rstrip("\n").removesuffix("\r")
                if not text:
                    continue

                try:
                    if number in not_utf8:
                        raise BadRow("not valid UTF-8")
                    rows = _rows_of_line(text, source, task, tokenizer)
                except _UNREADABLE as error:
                    num_bad += 1
                    if len(bad) < _MAX_LISTED:
                        bad.append(f"  {source}: line {number}: {_reason(error)}")
                    continue

                for row in rows:
                    row["line"] = f"{source.name}:{number}"
                    if not with_labels:
                        row = {key: value for key, value in row.items() if key not in _LABELS}
                    out.write(json.dumps(row) + "\n")
                    count += 1

    if num_bad:
        raise DataError("\n".join([f"{num_bad:,} lines of task {task.theirs} cannot be read:", *bad]))
    return count


def _rows_of_line(text: str, source: Path, task: ImportedTask, tokenizer: Any) -> list[Row]:
    if source.suffix == ".json":
        return list(_json_rows(text, task, tokenizer))
    return list(_READERS[task.form](text.split("\t"), task))


def _reason(error: Exception) -> str:
    if isinstance(error, BadRow):
        return str(error)
    return f"cannot be read ({type(error).__name__}: {error})"


# Canonical lines


def _texts(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    _check_number(fields, 2 + task.num_texts)
    yield {"id": fields[0], "label": fields[1], **_text_columns(fields[2:])}


def _candidates(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    if len(fields) < 6:
        raise BadRow(
            f"{len(fields)} fields; a line of candidates has an id, their ids, their labels, a premise "
            "and two hypotheses at least"
        )
    yield from _ranked(fields[0], fields[2].split(","), fields[3], fields[4:], task)


def _cloze(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    if len(fields) < 6:
        raise BadRow(
            f"{len(fields)} fields; a cloze line has an id, choices, answers, labels, a premise and "
            "hypotheses"
        )
    yield from _ranked(fields[0], [str(label) for label in _list(fields[3])], fields[4], fields[5:], task)


def _ranked(
    uid: str, labels: Sequence[str], query: str, candidates: Sequence[str], task: ImportedTask
) -> Iterator[Row]:
    """One row for each candidate; those with the highest label of the line are the relevant ones."""
    if len(labels) != len(candidates):
        raise BadRow(f"{len(labels)} labels for {len(candidates)} hypotheses")

    grades = [_grade(label.strip(), task.labels) for label in labels]
    for grade, candidate in zip(grades, candidates, strict=True):
        label = "relevant" if grade == max(grades) else "other"
        yield {"id": uid, "query": query, "candidate": candidate, "label": label}


def _grade(label: str, labels: Sequence[str]) -> float:
    """A label's place among those of the definition, or the number that it is."""
    if label in labels:
        return float(labels.index(label))
    try:
        return float(label)
    except ValueError:
        raise BadRow(f"label '{label}' is neither a number nor one of {', '.join(labels)}") from None


def _words(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    _check_number(fields, 3)
    yield {"id": fields[0], "tags": _list(fields[1]), "words": _list(fields[2])}


def _span(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    _check_number(fields, 4)
    parts = fields[1].split(":::")
    if len(parts) < 4:
        raise BadRow(f"label '{fields[1][:40]}' is not start:::end:::impossible:::answer")
    start, end, impossible = (int(part) for part in parts[:3])
    context = fields[2].removesuffix(_END_OF_V2)

    answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
    if not impossible:
        if not 0 <= start < end <= len(context):
            raise BadRow(f"the answer's characters {start} to {end} are not in its context of {len(context)}")
        answers = {"text": [context[start:end]], "answer_start": [start]}
    yield {"id": fields[0], "question": fields[3], "context": context, "answers": answers}


_READERS: dict[Form, Callable[[Sequence[str], ImportedTask], Iterable[Row]]] = {
    "texts": _texts,
    "candidates": _candidates,
    "cloze": _cloze,
    "words": _words,
    "span": _span,
}


def _text_columns(texts: Sequence[str]) -> dict[str, str]:
    return {f"text{place}": text for place, text in enumerate(texts, 1)}


def _check_number(fields: Sequence[str], wanted: int) -> None:
    if len(fields) != wanted:
        raise BadRow(f"{len(fields)} fields instead of {wanted}")


def _list(text: str) -> list[Any]:
    value = ast.literal_eval(text)
    if not isinstance(value, list | tuple):
        raise BadRow(f"{text[:40]} is not a list")
    return list(value)


# Token ids


def _json_rows(line: str, task: ImportedTask, tokenizer: Any) -> Iterable[Row]:
    row = json.loads(line)
    uid, ids = str(row["uid"]), row["token_id"]
    if task.form == "words":
        return [_decoded_words(uid, ids, row["label"], task, tokenizer)]

    if task.form in ("candidates", "cloze"):
        pairs = [_decoded(each, 2, tokenizer) for each in ids]
        if "olabel" in row:
            grades = row["olabel"]
        else:
            grades = [float(place == row["label"]) for place in range(len(pairs))]
        query, candidates = pairs[0][0], [pair[1] for pair in pairs]
        return _ranked(uid, [str(grade) for grade in grades], query, candidates, task)

    if task.form != "texts":
        raise BadRow(
            f"token ids of a {task.settings['kind']} task do not say where the answer's characters are"
        )

    texts = _decoded(ids, task.num_texts, tokenizer)
    label = row["label"]
    if task.labels and isinstance(label, int):
        label = task.labels[label]
    return [{"id": uid, "label": label, **_text_columns(texts)}]


def _decoded(ids: Sequence[int], wanted: int, tokenizer: Any) -> list[str]:
    """The texts between the special tokens."""
    parts: list[list[int]] = [[]]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for token in ids:
        if token not in special:
            parts[-1].append(token)
        elif parts[-1]:
            parts.append([])

    texts = [tokenizer.decode(part).strip() for part in parts if part]
    if len(texts) != wanted:
        raise BadRow(
            f"{len(texts)} texts between special tokens instead of {wanted}; is this the tokenizer that the "
            "file was made with?"
        )
    return texts


def _decoded_words(
    uid: str, ids: Sequence[int], labels: Sequence[int], task: ImportedTask, tokenizer: Any
) -> Row:
    """Words put together of their pieces, which are labelled X."""
    pieces: list[list[int]] = []
    tags: list[str] = []
    for token, label in zip(ids, labels, strict=True):
        tag = task.labels[label]
        if tag in ("CLS", "SEP"):
            continue
        if tag == "X" and pieces:
            pieces[-1].append(token)
        else:
            pieces.append([token])
            tags.append(tag)

    words = [tokenizer.decode(piece).strip() for piece in pieces]
    return {"id": uid, "words": words, "tags": tags}
