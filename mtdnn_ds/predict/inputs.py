"""Which columns of an input a task reads, and how: one text, two, words, choices, a question about a text. Reads no file and no text.

A text stands in a column `text`, a pair in `text_a` and `text_b`; rows with columns are read by the task's own column names, else by usual ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mtdnn_ds.config.errors import ConfigError, DataError, did_you_mean
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.spec import TaskSpec

ViewKind = Literal["text", "pair", "words", "choices", "two", "windows", "turns"]

_ONE = (("text",), ("sentence",))
_TWO = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "candidate"),
)
_QUESTION = (("question", "context"), ("question", "story"), ("text_a", "text_b"))
_WORDS = (("words",), ("tokens",), *_ONE)
_NEEDS: Mapping[ViewKind, str] = {
    "text": "one text",
    "pair": "two texts",
    "words": "a text, or a list of words",
    "choices": "a text and its choices",
    "two": "two texts",
    "windows": "a question and its context",
    "turns": "a question, its context, and perhaps a history of [question, answer] pairs",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInput:
    """What a task was trained to read."""

    kind: ViewKind
    texts: tuple[str, ...]  # its own names of the text columns
    more: tuple[str, ...] = ()  # of further columns (choices)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The columns of an input that a task reads."""

    task: int  # index into the model's tasks
    kind: ViewKind
    texts: tuple[str, ...]
    more: tuple[str, ...] = ()


def task_input(spec: TaskSpec, recipe: Recipe) -> TaskInput | None:
    """What the task reads; None for masked_lm, which has no answer to give."""
    if spec.kind == "masked_lm":
        return None
    texts = _own_columns(spec, recipe)
    if spec.kind == "token_classification" or (spec.custom is not None and spec.custom.reads == "token"):
        return TaskInput(kind="words", texts=texts[:1])
    if spec.kind == "multiple_choice":
        return TaskInput(kind="choices", texts=texts, more=tuple(spec.options["choice_columns"]))
    kinds: Mapping[str, ViewKind] = {
        "similarity": "two",
        "span": "windows",
        "conversational_span": "turns",
        "ranking": "pair",
    }
    return TaskInput(kind=kinds.get(spec.kind, "pair" if len(texts) == 2 else "text"), texts=texts)


def _own_columns(spec: TaskSpec, recipe: Recipe) -> tuple[str, ...]:
    """Text columns by their names: of the recipe, of the built-in task on the hub, or of the data that the task was trained on."""
    if spec.name in BUILTIN_TASKS:
        return next(iter(BUILTIN_TASKS[spec.name].remote.values())).text_columns
    settings = recipe.tasks.get(spec.name)
    if settings is not None and settings.text_columns:
        return tuple(settings.text_columns)
    return next(
        (source.text_columns for source in spec.splits.values()),
        ("words",) if spec.kind == "token_classification" else ("text",),
    )


def asked_tasks(
    names: Sequence[str] | str, specs: Sequence[TaskSpec], setting: str = "--task"
) -> tuple[int, ...] | None:
    """Indices of the tasks named ("a,b" or a list); None for "all". Raises ConfigError with the closest names."""
    if names == "all" or list(names) == ["all"]:
        return None
    wanted = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    known = [spec.name for spec in specs]
    problems = [
        f"{setting} {name}: the model has no task '{name}'{did_you_mean(name, [*known, 'all'])}"
        for name in wanted
        if name not in known
    ]
    problems += [
        f"{setting} {name}: a masked_lm has no answer to a text; leave it out (embed writes what its encoder makes of texts)"
        for name in wanted
        if name in known and specs[known.index(name)].kind == "masked_lm"
    ]
    problems += [
        f"{setting}: '{name}' stands twice"
        for name in sorted({name for name in wanted if wanted.count(name) > 1})
    ]
    if not wanted:
        problems.append(f"{setting}: names no task; give some of {', '.join(known)}, or all")
    if problems:
        raise ConfigError(problems)
    return tuple(known.index(name) for name in wanted)


def read_as(
    task: int,
    reads: TaskInput,
    columns: Sequence[str],
    chosen: Sequence[str] = (),
    is_list: frozenset[str] = frozenset(),
) -> Reading | None:
    """How a task reads rows that have `columns`, of which `is_list` hold lists; None if they lack what it needs.

    `chosen`: the text columns that the user has named.
    """
    count = {"words": 1, "windows": 2, "turns": 2, "choices": len(reads.texts)}.get(
        reads.kind, 2 if reads.kind in ("pair", "two") else 1
    )
    usual = {"words": _WORDS, "windows": _QUESTION, "turns": _QUESTION}.get(
        reads.kind, _ONE if count == 1 else _TWO
    )
    candidates = [tuple(chosen)] if chosen else [reads.texts, *usual]
    usable = set(columns) if reads.kind == "words" else set(columns) - is_list
    texts = next((names for names in candidates if len(names) == count and set(names) <= usable), None)
    more: tuple[str, ...] | None = ()
    if reads.kind == "choices":
        more = next((names for names in (reads.more, ("choices",)) if set(names) <= set(columns)), None)
    if reads.kind == "turns":
        more = ("history",) if "history" in columns else ()
    if texts is None or more is None:
        return None
    return Reading(task=task, kind=reads.kind, texts=texts, more=more)


def needs_of(reads: TaskInput) -> str:
    """What a task reads, in words."""
    return _NEEDS[reads.kind]


def rows_of(texts: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Texts, pairs and dicts of columns as rows. Raises DataError naming those that are none of these."""
    if isinstance(texts, (str, Mapping)):
        raise DataError(
            "texts: give a list, of texts, of (text, text) pairs or of dicts with a task's columns"
        )
    rows: list[Mapping[str, Any]] = []
    problems = []
    for number, text in enumerate(texts, 1):
        if isinstance(text, str):
            rows.append({"text": text})
        elif isinstance(text, Mapping) and text and all(isinstance(name, str) for name in text):
            rows.append(text)
        elif isinstance(text, (tuple, list)) and len(text) == 2:
            rows.append({"text_a": text[0], "text_b": text[1]})
        else:
            problems.append(
                f"text {number}: is a {type(text).__name__}; give a text, a pair of texts, or a dict with a task's columns"
            )
    if problems:
        raise DataError(problems[:10])
    return rows
