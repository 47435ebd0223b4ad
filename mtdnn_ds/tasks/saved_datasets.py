"""What a folder of datasets' save_to_disk says of a task: its splits, and columns and labels by their usual
names. Reads JSON only.

The names of tasksource (sentence1, sentence2, labels; inputs, choice0 ..., labels; tokens, labels) come
first, then those of common datasets of the hub. Nothing that a recipe says is changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtdnn_ds.config.recipe import Recipe, TaskSettings
from mtdnn_ds.tasks.kinds import KINDS
from mtdnn_ds.tasks.spec import TaskSpec

Features = Mapping[str, Mapping[str, Any]]

_TEXTS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"), ("text1", "text2"),
    ("text_a", "text_b"), ("sentence1",), ("sentence",), ("text",),
)  # fmt: skip
_TEXTS_OF_KIND: Mapping[str, Sequence[tuple[str, ...]]] = {
    "multiple_choice": (("inputs",), ("question",), ("context",)),
    "token_classification": (("tokens",), ("words",)),
    "span": (("question", "context"),),
    "conversational_span": (("questions", "story"),),
    "masked_lm": (("text",),),
    "ranking": (
        ("question", "sentence"),
        ("query", "passage"),
        *(names for names in _TEXTS if len(names) == 2),
    ),
    "similarity": tuple(names for names in _TEXTS if len(names) == 2),
}
_LABELS = ("labels", "label", "score")
_LABELS_OF_KIND: Mapping[str, Sequence[str]] = {
    "token_classification": ("labels", "ner_tags", "tags"),
    "span": ("answers",),
    "conversational_span": ("answers",),
    "masked_lm": (),
}
_CHOICE = re.compile(r"choice(\d+)")


def saved_splits(folder: Path) -> tuple[str, ...] | None:
    """Split names of a saved DatasetDict; () for a saved Dataset; None if the folder is neither."""
    if (folder / "dataset_dict.json").is_file():
        names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("splits: must be a list of names")
        return tuple(names)
    return () if (folder / "state.json").is_file() else None


def completed(settings: TaskSettings) -> TaskSettings:
    """The settings with what the saved dataset says of the rest; as they were where there is no such folder
    or nothing is recognised."""
    if settings.dataset is None or settings.files is not None or settings.hub is not None:
        return settings
    folder = Path(settings.dataset).expanduser()
    try:
        splits = saved_splits(folder)
        features = _features(folder, splits)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return settings  # said where the folder is opened
    if splits is None:
        return settings
    found: dict[str, Any] = {}
    if settings.splits is None and splits and (named := _named(splits)):
        found["splits"] = named
    kind = settings.kind or _kind(features)
    found |= {"kind": kind} if kind != settings.kind else {}
    if settings.text_columns is None and (texts := _first(_TEXTS_OF_KIND.get(kind or "", _TEXTS), features)):
        found["text_columns"] = list(texts)
    if settings.choice_columns is None and kind == "multiple_choice" and (choices := _choices(features)):
        found["choice_columns"] = choices
    label_column = settings.label_column
    if label_column is None:
        label_column = next(
            (name for name in _LABELS_OF_KIND.get(kind or "", _LABELS) if name in features), None
        )
        found |= {"label_column": label_column} if label_column else {}
    names = _class_names(features.get(label_column or "", {}))
    if settings.labels is None and names and (kind is None or kind not in KINDS or KINDS[kind].has_classes):
        found["labels"] = list(names)
    return settings.model_copy(update=found)


def choices_made(recipe: Recipe, specs: Collection[TaskSpec]) -> list[str]:
    """A line for each task of `specs` whose settings were completed, with what was chosen."""
    lines = []
    for spec in specs:
        settings = recipe.tasks.get(spec.name)
        full = settings if settings is None else completed(settings)
        if settings is None or full is None or full == settings:
            continue
        parts = [
            f"{key}: {_written(value)}"
            for key, value in full
            if value is not None and getattr(settings, key) is None
        ]
        lines.append(f"tasks.{spec.name}: as {settings.dataset} names them: {'; '.join(parts)}")
    return lines


def _written(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{ours} = {theirs}" for ours, theirs in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _features(folder: Path, splits: Sequence[str] | None) -> Features:
    """Features of the training split; all splits of a DatasetDict have equal ones."""
    inner = "train" if splits and "train" in splits else splits[0] if splits else ""
    path = folder / inner / "dataset_info.json"
    features = json.loads(path.read_text(encoding="utf-8"))["features"] if path.is_file() else {}
    if not isinstance(features, dict) or not all(
        isinstance(feature, dict | list) for feature in features.values()
    ):
        raise TypeError("features: must be a mapping")
    return {
        name: feature if isinstance(feature, dict) else {"feature": feature[0], "_type": "List"}
        for name, feature in features.items()
    }


def _named(names: Sequence[str]) -> dict[str, str]:
    """{ours: theirs} of the usual names: train, validation or dev, test; validation_matched becomes dev,
    validation_mismatched dev_mismatched."""
    splits = {"train": "train"} if "train" in names else {}
    for ours, words in (("dev", ("validation", "valid", "val", "dev")), ("test", ("test",))):
        for name in names:
            word = next((word for word in words if name == word or name.startswith(f"{word}_")), None)
            if word is not None:
                splits[
                    ours
                    if ours not in splits
                    else f"{ours}_{re.sub('[^A-Za-z0-9]+', '_', name.removeprefix(f'{word}_'))}"
                ] = name
    return splits if "train" in splits else {}


def _kind(features: Features) -> str | None:
    """The kind that columns and the type of the labels mean without a doubt; None if it must be said."""
    if "tokens" in features and any(
        _is_list(features.get(name, {})) for name in _LABELS_OF_KIND["token_classification"]
    ):
        return "token_classification"
    if "inputs" in features and len(_choices(features)) > 1 and "labels" in features:
        return "multiple_choice"
    if {"question", "context", "answers"} <= features.keys():
        return "span"
    label = next((features[name] for name in _LABELS if name in features), {})
    if label.get("_type") == "ClassLabel" and _first(_TEXTS, features):
        return "classification"
    return (
        "regression" if str(label.get("dtype", "")).startswith("float") and _first(_TEXTS, features) else None
    )


def _first(known: Sequence[tuple[str, ...]], features: Features) -> tuple[str, ...]:
    return next((names for names in known if all(name in features for name in names)), ())


def _choices(features: Features) -> list[str]:
    numbered = sorted(
        (name for name in features if _CHOICE.fullmatch(name)),
        key=lambda name: int(name.removeprefix("choice")),
    )
    return numbered or [name for name in ("choices_list", "choices") if _is_list(features.get(name, {}))][:1]


def _is_list(feature: Mapping[str, Any]) -> bool:
    return feature.get("_type") in ("List", "LargeList", "Sequence")


def _class_names(feature: Mapping[str, Any]) -> Sequence[str]:
    """Names of a ClassLabel, or of a list of them."""
    inner = feature.get("feature") if _is_list(feature) else feature
    names = inner.get("names") if isinstance(inner, dict) else None
    return (
        names
        if isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names)
        else ()
    )
