"""Which columns of an input a task reads, and how: one text, two, words, choices, a question. Reads no file.

A text stands in a column `text`, a pair in `text_a` and `text_b`; rows with columns are read by the task's
own column names, else by usual ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtdnn_ds.config.errors import ConfigError, DataError, did_you_mean
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.kinds import KINDS, InputForm
from mtdnn_ds.tasks.spec import TaskSpec

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
_USUAL: Mapping[InputForm, Sequence[tuple[str, ...]]] = {
    "words": _WORDS,
    "windows": _QUESTION,
    "turns": _QUESTION,
}
_NUM_TEXTS: Mapping[InputForm, int] = {"text": 1, "words": 1, "pair": 2, "two": 2, "windows": 2, "turns": 2}
_NEEDS: Mapping[InputForm, str] = {
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

    kind: InputForm
    texts: tuple[str, ...]  # its own names of the text columns
    more: tuple[str, ...] = ()  # of further columns (choices)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The columns of an input that a task reads."""

    task: int  # index into the model's tasks
    kind: InputForm
    texts: tuple[str, ...]
    more: tuple[str, ...] = ()


def task_input(spec: TaskSpec, recipe: Recipe) -> TaskInput | None:
    """What the task reads; None for masked_lm, which has no answer to give."""
    if not has_answer(spec):
        return None

    texts = _own_columns(spec, recipe)
    if reads_words(spec):
        return TaskInput(kind="words", texts=texts[:1])

    kind = KINDS[spec.kind].reads if spec.custom is None else None
    if kind == "choices":
        return TaskInput(kind=kind, texts=texts, more=tuple(spec.options["choice_columns"]))
    if kind is not None:
        return TaskInput(kind=kind, texts=texts)
    return TaskInput(kind="pair" if len(texts) == 2 else "text", texts=texts)


def has_answer(spec: TaskSpec) -> bool:
    """Whether prediction has something to say of a row."""
    return spec.custom is not None or KINDS[spec.kind].has_answer


def reads_words(spec: TaskSpec) -> bool:
    """Whether the task answers for each word of a text."""
    if spec.custom is not None:
        return spec.custom.reads == "token"
    return KINDS[spec.kind].reads == "words"


def _own_columns(spec: TaskSpec, recipe: Recipe) -> tuple[str, ...]:
    """Names of its text columns: a built-in task's on the hub, the recipe's, or the training data's."""
    if spec.name in BUILTIN_TASKS:
        return next(iter(BUILTIN_TASKS[spec.name].remote.values())).text_columns

    settings = recipe.tasks.get(spec.name)
    if settings is not None and settings.text_columns:
        return tuple(settings.text_columns)

    source = next(iter(spec.splits.values()), None)
    if source is not None:
        return source.text_columns
    if spec.custom is None and reads_words(spec):
        return ("words",)
    return ("text",)


def asked_tasks(
    names: Sequence[str] | str, specs: Sequence[TaskSpec], setting: str = "--task"
) -> tuple[int, ...] | None:
    """Indices of the tasks named ("a,b" or a list); None for "all".

    Raises ConfigError with the closest names.
    """
    if names == "all" or list(names) == ["all"]:
        return None

    wanted = list(names)
    if isinstance(names, str):
        wanted = [name.strip() for name in names.split(",")]
    known = [spec.name for spec in specs]
    problems = [
        f"{setting} {name}: the model has no task '{name}'{did_you_mean(name, [*known, 'all'])}"
        for name in wanted
        if name not in known
    ]
    problems += [
        f"{setting} {name}: a {specs[known.index(name)].kind} has no answer to a text; "
        "leave it out (embed writes what its encoder makes of texts)"
        for name in wanted
        if name in known and not has_answer(specs[known.index(name)])
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
    """How a task reads rows of `columns`, of which `is_list` hold lists; None if they lack what it needs.

    `chosen`: the text columns that the user has named.
    """
    count = _NUM_TEXTS.get(reads.kind, len(reads.texts))
    usual = _USUAL.get(reads.kind, _ONE if count == 1 else _TWO)
    candidates = [tuple(chosen)] if chosen else [reads.texts, *usual]
    usable = set(columns)
    if reads.kind != "words":
        usable -= is_list
    texts = next((names for names in candidates if len(names) == count and set(names) <= usable), None)

    more: tuple[str, ...] | None = ()
    if reads.kind == "choices":
        more = next((names for names in (reads.more, ("choices",)) if set(names) <= set(columns)), None)
    if reads.kind == "turns" and "history" in columns:
        more = ("history",)
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
                f"text {number}: is a {type(text).__name__}; "
                "give a text, a pair of texts, or a dict with a task's columns"
            )

    if problems:
        raise DataError(problems[:10])
    return rows
