"""Sources of a user's own task: from files, a saved dataset or a hub name to one Source for each split. Opens
no data file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mtdnn_ds.config.errors import did_you_mean
from mtdnn_ds.config.recipe import TaskSettings
from mtdnn_ds.tasks.kinds import KindFacts
from mtdnn_ds.tasks.saved_datasets import saved_splits
from mtdnn_ds.tasks.spec import Format, Source

_FORMATS: Mapping[str, Format] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
_SPLIT_NAME = re.compile(r"train|(dev|test)(_[A-Za-z0-9_]{1,60})?")
_NAMED_BY_LAYOUT: Mapping[Format, tuple[tuple[str, str], str]] = {
    "squad": (("question", "context"), "answers"),
    "conversations": (("question", "story"), "answers"),
}
"""Text columns and label column of files whose layout names them."""
_DEFAULT_COLUMNS: Mapping[Format, tuple[tuple[str, ...], str]] = {"conll": (("0",), "-1")}
"""Text columns and label column of files without a header, where they are not given."""
COLUMN_NUMBER = re.compile(r"-?\d+")


def user_splits(
    where: str, settings: TaskSettings, facts: KindFacts | None, problems: list[str], absent: list[str]
) -> dict[str, Source]:
    """{split: source}; files and folders that are not there are named in `absent`, and their splits left
    out."""
    given = [key for key in ("files", "dataset", "hub") if getattr(settings, key) is not None]
    if len(given) != 1:
        what = f"{' and '.join(given)} are both given" if given else "no rows"
        problems.append(f"{where}: {what}; give exactly one of files, dataset, hub")
        return {}

    if settings.files is not None:
        place = f"{where}.files"
        if settings.splits is not None:
            problems.append(
                f"{where}.splits: has no effect beside files, whose keys already name the splits; remove it"
            )
        formats = {**_FORMATS, **(facts.formats if facts else {})}
        splits = _file_splits(where, settings, settings.files, formats, problems, absent)
        given_splits = set(settings.files)
    else:
        place = f"{where}.splits"
        splits = _dataset_splits(where, settings, problems, absent)
        given_splits = set(splits if settings.splits is None else settings.splits)

    problems += _idle_columns(where, settings, splits)
    for split in sorted(given_splits):
        if _SPLIT_NAME.fullmatch(split) is None:
            problems.append(f"{place}.{split}: unknown split; use train, dev, dev_NAME, test or test_NAME")
    if "train" not in given_splits and (settings.files is not None or given_splits):
        problems.append(f"{place}: has no train split; a task of a run is trained")
    return splits


def _idle_columns(where: str, settings: TaskSettings, splits: Mapping[str, Source]) -> Iterator[str]:
    """Names of columns for files that have none, or whose layout names them."""
    formats = {source.format for source in splits.values()}
    if not formats:
        return
    for key in ("text_columns", "label_column"):
        if getattr(settings, key) and formats <= _NAMED_BY_LAYOUT.keys():
            yield f"{where}.{key}: has no effect on JSON files, whose layout names their parts; remove it"
    if settings.text_columns and formats == {"text"}:
        yield f"{where}.text_columns: has no effect on .txt files, which have no columns; remove it"


def _label_column(split: str, column: str | None) -> str | None:
    """Test splits are predicted, so their labels are never read; a labelled test set can be named
    dev_test."""
    if split.startswith("test"):
        return None
    return column


def _file_splits(
    where: str,
    settings: TaskSettings,
    files: Mapping[str, str],
    formats: Mapping[str, Format],
    problems: list[str],
    absent: list[str],
) -> dict[str, Source]:
    splits: dict[str, Source] = {}
    for split, file in files.items():
        path = Path(file).expanduser()
        form = formats.get(path.suffix.lower())
        if form is None:
            problems.append(
                f"{where}.files.{split}={file}: unknown file type '{path.suffix}'; use {', '.join(formats)}"
            )
        elif not path.is_file():
            absent.append(f"{where}.files.{split}={file}: no such file (looked for {path.absolute()})")
        else:
            splits[split] = _file_source(form, path, split, settings)

    return splits


def _file_source(form: Format, path: Path, split: str, settings: TaskSettings) -> Source:
    if form in _NAMED_BY_LAYOUT:
        text_columns, label_column = _NAMED_BY_LAYOUT[form]
        return Source(
            format=form,
            path=str(path),
            text_columns=text_columns,
            label_column=_label_column(split, label_column),
        )

    default_texts, default_label = _DEFAULT_COLUMNS.get(form, ((), None))
    texts = tuple(settings.text_columns or ())
    has_numbers = bool(texts) and all(COLUMN_NUMBER.fullmatch(column) for column in texts)
    return Source(
        format=form,
        path=str(path),
        text_columns=texts or default_texts,
        label_column=_label_column(split, settings.label_column or default_label),
        nested=settings.kind == "conversational_span",
        more_columns=_more_columns(settings) if form in _FORMATS.values() else (),
        header=not has_numbers,
        # A tab-separated file has no quoting (IANA text/tab-separated-values; GLUE's files rely on it), a CSV
        # file has (RFC 4180).
        quoted=form == "csv",
    )


def _dataset_splits(
    where: str, settings: TaskSettings, problems: list[str], absent: list[str]
) -> dict[str, Source]:
    if settings.hub is not None:
        path, _, config = settings.hub.partition(":")
        return _named_splits(where, settings, "hub", path, config or None, None, problems)

    assert settings.dataset is not None
    folder = Path(settings.dataset).expanduser()
    try:
        theirs = saved_splits(folder)
    except (ValueError, KeyError, TypeError, RecursionError):
        problems.append(
            f"{where}.dataset={settings.dataset}: its dataset_dict.json is not readable; "
            "save the dataset again with save_to_disk"
        )
        return {}
    if theirs is None:
        absent.append(
            f"{where}.dataset={settings.dataset}: not a folder written by datasets' save_to_disk "
            "(no dataset_dict.json, no state.json)"
        )
        return {}

    if theirs == () and settings.splits is not None:
        problems.append(
            f"{where}.splits: {settings.dataset} holds one Dataset without splits, which becomes train; "
            "remove the key"
        )
        return {}
    if theirs == ():  # one Dataset instead of a DatasetDict
        return {"train": _dataset_source("datasets", str(folder), None, None, "train", settings)}
    return _named_splits(where, settings, "datasets", str(folder), None, theirs, problems)


def _named_splits(
    where: str,
    settings: TaskSettings,
    form: Format,
    path: str,
    config: str | None,
    theirs: Sequence[str] | None,
    problems: list[str],
) -> dict[str, Source]:
    """`theirs`: the dataset's splits; None where they are not known."""
    if settings.splits is None:
        known = f" (it has: {', '.join(theirs)})" if theirs else ""
        problems.append(
            f"{where}.splits: missing; say which of its splits is what, "
            f"e.g. {{train: train, dev: validation}}{known}"
        )
        return {}

    sources = {}
    for ours, split in settings.splits.items():
        if theirs is not None and split not in theirs:
            hint = did_you_mean(split, theirs)
            problems.append(f"{where}.splits.{ours}={split}: {settings.dataset} has no split '{split}'{hint}")
        sources[ours] = _dataset_source(form, path, config, split, ours, settings)
    return sources


def _dataset_source(
    form: Format, path: str, config: str | None, split: str | None, ours: str, settings: TaskSettings
) -> Source:
    return Source(
        format=form,
        path=path,
        config=config,
        split=split,
        text_columns=tuple(settings.text_columns or ()),
        label_column=_label_column(ours, settings.label_column),
        nested=settings.kind == "conversational_span",
        more_columns=_more_columns(settings),
    )


def _more_columns(settings: TaskSettings) -> tuple[str, ...]:
    """Columns beside texts and label that the kind reads, each once."""
    columns = list(settings.choice_columns or ())
    if settings.group_column:
        columns.append(settings.group_column)
    return tuple(columns)
