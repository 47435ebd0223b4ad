"""mt-dnn's data files as rows that our kinds read: its canonical TSV (texts) and, where asked, its JSON of token ids. Knows no recipe.

    NAME_SPLIT.tsv     id, label, premise[, hypothesis]                what prepro_std.py reads
                       id, ids, labels, premise, hypothesis ...        candidates; ids and labels joined by commas
                       id, label list, word list                       words, as Python lists
                       id, start:::end:::impossible:::answer, context, question
                       id, choices, answers, labels, premise, hypothesis ...     cloze
    NAME_SPLIT.json    one object a line: uid, label, token_id, type_id          what it writes

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
from mtdnn_ds.mt_dnn.task_def import Form, ImportedTask

Row = dict[str, Any]
_MAX_LISTED = 10
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
    """The canonical file (or, of documents, the text file) and the JSON of a split; JSON may be one folder deeper, as bert_base_uncased/."""
    text = next(
        (path for suffix in (".tsv", ".txt") if (path := data / f"{task}_{split}{suffix}").is_file()), None
    )
    prepared = [path for folder in ("", "*/") for path in sorted(data.glob(f"{folder}{task}_{split}.json"))]
    return text, prepared[0] if prepared else None


def write_rows(
    sources: Sequence[Path],
    task: ImportedTask,
    target: Path,
    *,
    tokenizer: Any = None,
    with_labels: bool = True,
) -> int:
    """Write the rows of `sources`, one after the other, as JSON lines; returns their number. Raises DataError with the first bad lines."""
    bad: list[str] = []
    num_bad = count = 0
    with target.open("w", encoding="utf-8") as out:
        for source in sources:
            broken: set[int] = set()
            for number, line in enumerate(lines_of(str(source), broken), 1):
                text = line.rstrip("\n").removesuffix("\r")
                if not text:
                    continue
                try:
                    if number in broken:
                        raise BadRow("not valid UTF-8")
                    rows = (
                        _json_rows(text, task, tokenizer)
                        if source.suffix == ".json"
                        else _READERS[task.form](text.split("\t"), task)
                    )
                    lines = [{**row, "line": f"{source.name}:{number}"} for row in rows]
                except (
                    ValueError,
                    KeyError,
                    TypeError,
                    SyntaxError,
                    IndexError,
                    RecursionError,
                    MemoryError,
                ) as error:
                    num_bad += 1
                    if len(bad) < _MAX_LISTED:
                        said = (
                            str(error)
                            if isinstance(error, BadRow)
                            else f"cannot be read ({type(error).__name__}: {error})"
                        )
                        bad.append(f"  {source}: line {number}: {said}")
                    continue
                for row in lines:
                    out.write(json.dumps(row if with_labels else _unlabelled(row)) + "\n")
                    count += 1
    if num_bad:
        raise DataError("\n".join([f"{num_bad:,} lines of task {task.theirs} cannot be read:", *bad]))
    return count


def _unlabelled(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in ("label", "tags", "answers")}


# Canonical lines


def _texts(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    _fields(fields, 2 + task.num_texts)
    yield {
        "id": fields[0],
        "label": fields[1],
        **{f"text{place}": text for place, text in enumerate(fields[2:], 1)},
    }


def _candidates(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    if len(fields) < 6:
        raise BadRow(
            f"{len(fields)} fields; a line of candidates has an id, their ids, their labels, a premise and two hypotheses at least"
        )
    yield from _ranked(fields[0], fields[2].split(","), fields[3], fields[4:], task)


def _cloze(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    if len(fields) < 6:
        raise BadRow(
            f"{len(fields)} fields; a cloze line has an id, choices, answers, labels, a premise and hypotheses"
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
        yield {
            "id": uid,
            "query": query,
            "candidate": candidate,
            "label": "relevant" if grade == max(grades) else "other",
        }


def _grade(label: str, labels: Sequence[str]) -> float:
    if label in labels:
        return float(labels.index(label))
    try:
        return float(label)
    except ValueError:
        raise BadRow(f"label '{label}' is neither a number nor one of {', '.join(labels)}") from None


def _words(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    _fields(fields, 3)
    yield {"id": fields[0], "tags": _list(fields[1]), "words": _list(fields[2])}


def _span(fields: Sequence[str], task: ImportedTask) -> Iterator[Row]:
    _fields(fields, 4)
    parts = fields[1].split(":::")
    if len(parts) < 4:
        raise BadRow(f"label '{fields[1][:40]}' is not start:::end:::impossible:::answer")
    start, end, impossible = (int(part) for part in parts[:3])
    context = fields[2].removesuffix(_END_OF_V2)
    if not impossible and not 0 <= start < end <= len(context):
        raise BadRow(f"the answer's characters {start} to {end} are not in its context of {len(context)}")
    answers = (
        {"text": [], "answer_start": []}
        if impossible
        else {"text": [context[start:end]], "answer_start": [start]}
    )
    yield {"id": fields[0], "question": fields[3], "context": context, "answers": answers}


_READERS: dict[Form, Callable[[Sequence[str], ImportedTask], Iterable[Row]]] = {
    "texts": _texts,
    "candidates": _candidates,
    "cloze": _cloze,
    "words": _words,
    "span": _span,
}


def _fields(fields: Sequence[str], wanted: int) -> None:
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
        grades = (
            row["olabel"]
            if "olabel" in row
            else [float(place == row["label"]) for place in range(len(pairs))]
        )
        return list(
            _ranked(uid, [str(grade) for grade in grades], pairs[0][0], [pair[1] for pair in pairs], task)
        )
    if task.form != "texts":
        raise BadRow(
            f"token ids of a {task.settings['kind']} task do not say where the answer's characters are"
        )
    texts = _decoded(ids, task.num_texts, tokenizer)
    label = task.labels[row["label"]] if task.labels and isinstance(row["label"], int) else row["label"]
    return [{"id": uid, "label": label, **{f"text{place}": text for place, text in enumerate(texts, 1)}}]


def _decoded(ids: Sequence[int], wanted: int, tokenizer: Any) -> list[str]:
    """The texts between the special tokens."""
    parts: list[list[int]] = [[]]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for token in ids:
        if token in special:
            parts += [[]] if parts[-1] else []
        else:
            parts[-1].append(token)
    texts = [tokenizer.decode(part).strip() for part in parts if part]
    if len(texts) != wanted:
        raise BadRow(
            f"{len(texts)} texts between special tokens instead of {wanted}; is this the tokenizer that the file was made with?"
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
    return {"id": uid, "words": [tokenizer.decode(piece).strip() for piece in pieces], "tags": tags}
