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
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence1",),
    ("sentence",),
    ("text",),
)
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
    if (folder / "state.json").is_file():
        return ()
    return None


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

    kind = settings.kind or _kind(features)
    label_column = settings.label_column
    if label_column is None:
        label_column = _present(_LABELS_OF_KIND.get(kind or "", _LABELS), features)
    recognised: dict[str, Any] = {
        "splits": _named(splits),
        "kind": kind,
        "text_columns": list(_first(_TEXTS_OF_KIND.get(kind or "", _TEXTS), features)),
        "choice_columns": _choices(features) if kind == "multiple_choice" else [],
        "label_column": label_column,
    }
    if kind is None or kind not in KINDS or KINDS[kind].has_classes:
        recognised["labels"] = list(_class_names(features.get(label_column or "", {})))

    found = {key: value for key, value in recognised.items() if value and getattr(settings, key) is None}
    return settings.model_copy(update=found)


def choices_made(recipe: Recipe, specs: Collection[TaskSpec]) -> list[str]:
    """A line for each task of `specs` whose settings were completed, with what was chosen."""
    lines = []
    for spec in specs:
        settings = recipe.tasks.get(spec.name)
        if settings is None or completed(settings) == settings:
            continue
        chosen = [
            f"{key}: {_written(value)}"
            for key, value in completed(settings)
            if value is not None and getattr(settings, key) is None
        ]
        lines.append(f"tasks.{spec.name}: as {settings.dataset} names them: {'; '.join(chosen)}")
    return lines


def _written(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{ours} = {theirs}" for ours, theirs in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _features(folder: Path, splits: Sequence[str] | None) -> Features:
    """Features of the training split; all splits of a DatasetDict have equal ones."""
    names = splits or ("",)
    inner = "train" if "train" in names else names[0]
    path = folder / inner / "dataset_info.json"
    features = json.loads(path.read_text(encoding="utf-8"))["features"] if path.is_file() else {}

    if not isinstance(features, dict):
        raise TypeError("features: must be a mapping")
    described = {}
    for name, feature in features.items():
        if isinstance(feature, dict):
            described[name] = feature
        elif isinstance(feature, list) and feature:
            described[name] = {"feature": feature[0], "_type": "List"}
        else:
            raise TypeError("features: must be a mapping")
    return described


def _named(names: Sequence[str]) -> dict[str, str]:
    """{ours: theirs} of the usual names: train, validation or dev, test.

    validation_matched becomes dev, validation_mismatched dev_mismatched.
    """
    if "train" not in names:
        return {}
    splits = {"train": "train"}
    for ours, words in (("dev", ("validation", "valid", "val", "dev")), ("test", ("test",))):
        for name in names:
            word = next((word for word in words if name == word or name.startswith(f"{word}_")), None)
            if word is None:
                continue
            if ours not in splits:
                splits[ours] = name
            else:
                rest = re.sub("[^A-Za-z0-9]+", "_", name.removeprefix(f"{word}_"))
                splits[f"{ours}_{rest}"] = name
    return splits


def _kind(features: Features) -> str | None:
    """The kind that columns and the type of the labels mean without a doubt; None if it must be said."""
    tags = _LABELS_OF_KIND["token_classification"]
    if "tokens" in features and any(_is_list(features.get(name, {})) for name in tags):
        return "token_classification"
    if "inputs" in features and len(_choices(features)) > 1 and "labels" in features:
        return "multiple_choice"
    if {"question", "context", "answers"} <= features.keys():
        return "span"

    if not _first(_TEXTS, features):
        return None
    label = features.get(_present(_LABELS, features) or "", {})
    if label.get("_type") == "ClassLabel":
        return "classification"
    if str(label.get("dtype", "")).startswith("float"):
        return "regression"
    return None


def _present(names: Sequence[str], features: Features) -> str | None:
    return next((name for name in names if name in features), None)


def _first(known: Sequence[tuple[str, ...]], features: Features) -> tuple[str, ...]:
    return next((names for names in known if all(name in features for name in names)), ())


def _choices(features: Features) -> list[str]:
    numbered = [name for name in features if _CHOICE.fullmatch(name)]
    if numbered:
        return sorted(numbered, key=lambda name: int(name.removeprefix("choice")))
    return [name for name in ("choices_list", "choices") if _is_list(features.get(name, {}))][:1]


def _is_list(feature: Mapping[str, Any]) -> bool:
    return feature.get("_type") in ("List", "LargeList", "Sequence")


def _class_names(feature: Mapping[str, Any]) -> Sequence[str]:
    """Names of a ClassLabel, or of a list of them."""
    inner = feature.get("feature") if _is_list(feature) else feature
    names = inner.get("names") if isinstance(inner, dict) else None
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        return ()
    return names
