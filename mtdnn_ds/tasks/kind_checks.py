"""What single kinds ask of their settings beyond the table in tasks/kinds.py. Opens no data file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.recipe import TaskSettings
from mtdnn_ds.tasks.spec import Kind
from mtdnn_ds.tasks.user_sources import COLUMN_NUMBER


def kind_problems(where: str, settings: TaskSettings, labels: Sequence[str]) -> list[str]:
    """Problems of a task of the user's own; `where` is "tasks.NAME"."""
    check = _CHECKS.get(settings.kind or "")
    if check is None:
        return []
    return [f"{where}.{problem}" for problem in check(settings, labels)]


def _token_classification(settings: TaskSettings, labels: Sequence[str]) -> Iterator[str]:
    yield from _bio_problems(labels)

    files = settings.files or {}
    suffixes = {split: Path(file).suffix.lower() for split, file in files.items()}
    for split, suffix in suffixes.items():
        if suffix in (".csv", ".tsv"):
            yield (
                f"files.{split}={files[split]}: its cells are texts, not lists of words; "
                "use .conll, .jsonl or .parquet"
            )
    if ".conll" in suffixes.values():
        yield from _named_columns("text_columns", settings.text_columns or ())
        if settings.label_column is not None:
            yield from _named_columns("label_column", [settings.label_column])


def _bio_problems(labels: Sequence[str]) -> Iterator[str]:
    entities = [label for label in labels if label[:2] in ("B-", "I-") and label[2:]]
    wrong = [label for label in labels if label != "O" and label not in entities]
    if wrong:
        yield (
            f"labels: '{wrong[0]}' is no BIO label; they are O, and B-NAME and I-NAME for each kind of entity"
        )
    if labels and "O" not in labels:
        yield "labels: O is missing, the label of words outside every entity"

    wanted = dict.fromkeys(f"{other}-{label[2:]}" for label in entities for other in ("B", "I"))
    missing = [label for label in wanted if label not in labels]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        yield f"labels: {', '.join(missing)} {verb} missing; every kind of entity has B-NAME and I-NAME"


def _named_columns(key: str, columns: Sequence[str]) -> Iterator[str]:
    named = [column for column in columns if COLUMN_NUMBER.fullmatch(column) is None]
    if named:
        yield (
            f"{key}={named[0]}: columns of a .conll file have numbers; "
            "remove the key (word 0, tag -1, the last), or give a number"
        )


def _multiple_choice(settings: TaskSettings, labels: Sequence[str]) -> Iterator[str]:
    taken = dict.fromkeys(settings.text_columns or (), "a text")
    if settings.label_column:
        taken[settings.label_column] = "the label"

    choices = settings.choice_columns or []
    for column in dict.fromkeys(choices):
        if choices.count(column) > 1:
            yield f"choice_columns: '{column}' stands twice"
        if column in taken:
            yield f"choice_columns: '{column}' is the column of {taken[column]} too"


def _ranking(settings: TaskSettings, labels: Sequence[str]) -> Iterator[str]:
    if settings.relevant_label is not None and labels and settings.relevant_label not in labels:
        yield (
            f"relevant_label={settings.relevant_label}: not one of the "
            f"labels{did_you_mean(settings.relevant_label, labels)}"
        )
    columns = [*(settings.text_columns or ()), settings.label_column]
    if settings.group_column is not None and settings.group_column in columns:
        yield (
            f"group_column: '{settings.group_column}' is a text or the label already; name another column, "
            "or remove it to group by the first text"
        )


def _similarity(settings: TaskSettings, labels: Sequence[str]) -> Iterator[str]:
    if settings.score_range is None:
        return
    if settings.objective == "contrastive":
        yield "score_range: has no effect with objective=contrastive, whose labels are 0 and 1; remove it"
    elif settings.score_range[0] >= settings.score_range[1]:
        yield f"score_range={settings.score_range}: the score of cosine 0 must be below that of cosine 1"


_CHECKS: Mapping[Kind, Callable[[TaskSettings, Sequence[str]], Iterator[str]]] = {
    "token_classification": _token_classification,
    "multiple_choice": _multiple_choice,
    "ranking": _ranking,
    "similarity": _similarity,
}
