"""check_task: every kind passes on a few hand-written rows,
and each fault of a kind of one's own is found and said.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import ROOT
from torch import nn

from mtdnn_ds import CustomKind, check_task
from mtdnn_ds.config.errors import ConfigError, DataError, TrainingError
from mtdnn_ds.config.recipe import DataSettings
from mtdnn_ds.tasks.kinds import KINDS
from mtdnn_ds.tasks.plugins import load_plugins
from mtdnn_ds.tasks.resolve import builtin_task

TEXTS = (
    "The river was high after the rain.",
    "Nobody had closed the old mill, and its wheel turned all night.",
    "A small boat drifted past the bridge. The boys waved.",
    "In the morning the water had gone back.",
)
PAIRS = [
    {"a": first, "b": second, "label": label}
    for (first, second), label in zip(
        zip(TEXTS, TEXTS[::-1], strict=True), ("yes", "no", "no", "yes"), strict=True
    )
]
PAIR = {"text_columns": ["a", "b"], "label_column": "label"}
LABELS = ["no", "yes"]


def answered(context: str, *answers: str) -> dict[str, Any]:
    return {"text": list(answers), "answer_start": [context.index(answer) for answer in answers]}


STORY = "Ann has a red bike. She rides it to school every day, and her brother walks."
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "classification": ({"kind": "classification", **PAIR, "labels": LABELS}, PAIRS),
    "classification with san": ({"kind": "classification", **PAIR, "labels": LABELS, "head": "san"}, PAIRS),
    "regression": (
        {"kind": "regression", **PAIR},
        [{**row, "label": number} for number, row in enumerate(PAIRS)],
    ),
    "multiple_choice": (
        {
            "kind": "multiple_choice",
            "text_columns": ["q"],
            "choice_columns": ["choices"],
            "label_column": "right",
        },
        [
            {"q": text, "choices": list(TEXTS[: 2 + number % 3]), "right": number % 2}
            for number, text in enumerate(TEXTS)
        ],
    ),
    "ranking": (
        {"kind": "ranking", **PAIR, "labels": LABELS, "relevant_label": "yes"},
        [
            {"a": query, "b": text, "label": LABELS[place == number]}
            for number, query in enumerate(TEXTS)
            for place, text in enumerate(TEXTS)
        ],
    ),
    "token_classification": (
        {
            "kind": "token_classification",
            "text_columns": ["words"],
            "label_column": "tags",
            "labels": ["O", "B-X", "I-X"],
        },
        [{"words": text.split(), "tags": ["B-X", "I-X", *["O"] * (len(text.split()) - 2)]} for text in TEXTS],
    ),
    "span": (
        {
            "kind": "span",
            "text_columns": ["question", "context"],
            "label_column": "answers",
            "max_answer_tokens": 10,
            "null_threshold": 0.0,
        },
        [
            {"question": "What was high?", "context": TEXTS[0], "answers": answered(TEXTS[0], "The river")},
            {
                "question": "What turned?",
                "context": TEXTS[1],
                "answers": answered(TEXTS[1], "wheel", "its wheel"),
            },
            {"question": "Who slept?", "context": TEXTS[2], "answers": {"text": [], "answer_start": []}},
        ],
    ),
    "conversational_span": (
        {"kind": "conversational_span", "text_columns": ["questions", "story"], "label_column": "answers"},
        [
            {
                "story": STORY,
                "questions": ["What colour is the bike?", "Does she walk?", "Who walks?"],
                "answers": {
                    "input_text": ["red", "no", "her brother"],
                    "answer_start": [
                        STORY.index("red"),
                        STORY.index("She rides"),
                        STORY.index("her brother"),
                    ],
                    "answer_end": [STORY.index("red") + 3, STORY.index(" to school"), STORY.index(" walks")],
                },
            }
        ],
    ),
    "masked_lm": (
        {"kind": "masked_lm", "text_columns": ["text"], "next_sentence": True},
        [{"text": " ".join(TEXTS)}, {"text": STORY}],
    ),
    "similarity": (
        {"kind": "similarity", **PAIR},
        [{**row, "label": number / 3} for number, row in enumerate(PAIRS)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_passes(name: str) -> None:
    settings, rows = CASES[name]
    report = check_task(settings, rows)
    assert (
        report.kind == settings["kind"]
        and report.examples >= 1
        and all(np.isfinite(list(report.metrics.values())))
    )
    assert min(report.units.values()) >= 1 and len(report.micro_batches) == 3
    assert f"task ({report.kind}): passed" in str(report)


def test_no_kind_is_left_out() -> None:
    assert {settings["kind"] for settings, _ in CASES.values()} == set(KINDS)


def test_the_shipped_kind_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with Path("recipes/own_kind/dev.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kind = load_plugins(["recipes/own_kind/ordinal.py"])["ordinal"]
    settings = {
        "kind": kind,
        "text_columns": ["review"],
        "label_column": "rating",
        "labels": ["poor", "fair", "good", "excellent"],
    }
    report = check_task(settings, rows)
    assert str(report).splitlines()[:2] == [
        "task (ordinal): passed",
        "  rows      8, as 8 examples of 141 tokens",
    ]
    assert list(report.metrics) == ["accuracy", "within_one"] and report.units == {"ordinal": 8}


def test_a_spec_and_rows_from_a_file(tmp_path: Path, tiny_encoder: Path) -> None:
    rows = [
        {"premise": row["a"], "hypothesis": row["b"], "label": number % 3} for number, row in enumerate(PAIRS)
    ]
    report = check_task(builtin_task("mnli", DataSettings()), rows, encoder=tiny_encoder)
    assert (report.task, report.kind, report.rows) == ("mnli", "classification", 4)
    (tmp_path / "rows.csv").write_text("text,label\nfine weather,yes\nbad luck,no\n")
    settings = {"kind": "classification", "text_columns": ["text"], "label_column": "label", "labels": LABELS}
    assert check_task(settings, tmp_path / "rows.csv").rows == 2


# Faults


def kind(**changes: Any) -> CustomKind:
    settings: dict[str, Any] = dict(
        name="stars",
        num_outputs=lambda spec: 2,
        parse_label=lambda cell, spec: float(cell),
        loss=lambda outputs, labels: (outputs.sum(dim=1) - labels) ** 2,
        predict=lambda outputs: outputs.sum(axis=1),
        metrics={"closeness": lambda predictions, labels: -float(np.abs(predictions - labels).mean())},
    )
    return CustomKind(**{**settings, **changes})


class Unused(nn.Linear):
    """Has a parameter that takes no part."""

    def __init__(self, size: int, num: int) -> None:
        super().__init__(size, num)
        self.spare = nn.Parameter(torch.zeros(1))


class Centred(nn.Linear):
    """Rows depend on each other."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(states)
        return outputs - outputs.mean(dim=0, keepdim=True) * 0.5


class Forgetful(nn.Module):
    """Computes with a tensor that no state dict has."""

    def __init__(self, size: int, num: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, num)
        self.shift = torch.randn(num)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.linear(states) + self.shift.to(states.dtype)


def mean_everywhere(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return ((outputs.sum(dim=1) - labels) ** 2).mean().expand(len(labels)) / len(labels)


FAULTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "mean": (
        {"loss": lambda outputs, labels: outputs.mean()},
        ConfigError,
        "kind stars: its loss gave () for 4 rows, and must give (4,)",
    ),
    "hidden mean": (
        {"loss": mean_everywhere},
        ConfigError,
        r"in one micro-batch and to .* in \d; a row's loss must not depend on the rows beside it",
    ),
    "shape": ({"loss": lambda outputs, labels: outputs}, ConfigError, "its loss gave (4, 2) for 4 rows"),
    "constant": (
        {"loss": lambda outputs, labels: labels * 1.0},
        ConfigError,
        "check_task: the loss does not depend on the model's outputs (no gradient)",
    ),
    "not finite": (
        {"loss": lambda outputs, labels: outputs[:, 0] / 0},
        ConfigError,
        "check_task: the loss is (nan|-?inf); it must be a finite number",
    ),
    "outputs": (
        {"head": lambda size, num: nn.Linear(size, num + 1)},
        ConfigError,
        "kind stars: its head turns states of shape (2, 32) into (2, 3) and must give (2, 2)",
    ),
    "unused": (
        {"head": Unused},
        ConfigError,
        "check_task: no gradient for heads.stars_head.of_tasks.0.spare in some micro-batch",
    ),
    "rows together": (
        {"head": Centred},
        ConfigError,
        "a row's (loss|outputs) must not depend on the rows beside it",
    ),
    "half": (
        {"head": lambda size, num: FloatOnly(size, num)},
        ConfigError,
        "check_task: fails with a model in bf16, as runs on GPUs have it",
    ),
    "unsaved": (
        {"head": Forgetful},
        ConfigError,
        "check_task: saved and loaded weights give other outputs (stars)",
    ),
    "predict": (
        {"predict": lambda outputs: outputs},
        TrainingError,
        "kind stars: predict made float32 of shape (4, 2)",
    ),
    "metric": (
        {"metrics": {"m": lambda predictions, labels: float("nan")}},
        TrainingError,
        "kind stars: metric 'm' of 4 predictions is nan",
    ),
    "label": ({"parse_label": lambda cell, spec: float("x")}, DataError, "4 of 4 rows cannot be used"),
}


class FloatOnly(nn.Linear):
    """Casts to float32 in front of weights that may be bf16."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states.float())


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_said(name: str) -> None:
    changes, error, expected = FAULTS[name]
    rows = [{"text": text, "stars": number} for number, text in enumerate(TEXTS)]
    pattern = expected if "|" in expected or ".*" in expected else None
    with pytest.raises(error) as raised:
        check_task({"kind": kind(**changes), "text_columns": ["text"], "label_column": "stars"}, rows)
    if pattern is None:
        assert expected in str(raised.value)
    else:
        assert raised.match(pattern.replace("(no", r"\(no"))


def test_a_sound_kind_with_and_without_a_head_passes() -> None:
    rows = [{"text": text, "stars": number} for number, text in enumerate(TEXTS)]
    for head in (
        None,
        lambda size, num: nn.Sequential(nn.Linear(size, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, num)),
    ):
        check_task({"kind": kind(head=head), "text_columns": ["text"], "label_column": "stars"}, rows)


def test_a_kind_that_labels_words_passes() -> None:
    rows = [{"words": text.split(), "sizes": [len(word) for word in text.split()]} for text in TEXTS]
    report = check_task(
        {"kind": kind(reads="token"), "text_columns": ["words"], "label_column": "sizes"}, rows
    )
    assert report.units == {"stars": sum(len(text.split()) for text in TEXTS)}
    with pytest.raises(DataError, match=r"line 1: .*not a list of words"):
        check_task(
            {"kind": kind(reads="token"), "text_columns": ["words"], "label_column": "sizes"},
            [{"words": "a b", "sizes": [1, 1]}],
        )


def test_wrong_settings_and_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"check_task: no rows; give at least one"):
        check_task(CASES["regression"][0], [])
    with pytest.raises(
        ConfigError,
        match=r"check_task: unknown setting 'tasks.task.lables'; did you mean 'tasks.task.labels'\?",
    ):
        check_task({**CASES["classification"][0], "lables": LABELS}, PAIRS)
    with pytest.raises(ConfigError, match=r"tasks.task.metrics: unknown metric 'accurcy'"):
        check_task({**CASES["classification"][0], "metrics": ["accurcy"]}, PAIRS)
    spec = dataclasses.replace(builtin_task("mnli", DataSettings()), splits={})
    with pytest.raises(
        ConfigError,
        match=(
            r"check_task: task mnli has no split that says which columns its rows have; "
            r"give settings instead"
        ),
    ):
        check_task(spec, PAIRS)


def test_the_page_shows_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/own_kind.md: its file is the shipped one, and its call prints its report.

    Digits after a point differ between machines.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend("recipes/own_kind")
    page = Path("docs/own_kind.md").read_text()
    record, call = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert record in Path("recipes/own_kind/ordinal.py").read_text()
    exec(call, {})
    (shown,) = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    without_decimals = re.compile(r"\.\d+")
    assert without_decimals.sub("", capsys.readouterr().out) == without_decimals.sub("", shown)
