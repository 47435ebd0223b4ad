"""Settings of tagged words, choices, rankings and similarities:
what reaches the task, and the exact text of every refusal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec


def recipe(tasks: Any, **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {"encoder": {"path": "x"}, "train": {"steps": 1}, "tasks": tasks, **sections}
    )


def spec_of(task: dict[str, Any], **sections: Any) -> TaskSpec:
    (spec,) = resolve_tasks(recipe({"t": task}, **sections))
    return spec


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A right task of each kind, with files in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.conll", "a.jsonl", "a.csv"):
        (tmp_path / name).touch()
    return {
        "ner": {
            "kind": "token_classification",
            "labels": ["O", "B-per", "I-per"],
            "files": {"train": "a.conll", "test": "a.conll"},
        },
        "lists": {
            "kind": "token_classification",
            "labels": ["O", "B-per", "I-per"],
            "files": {"train": "a.jsonl"},
            "text_columns": ["tokens"],
            "label_column": "tags",
        },
        "choice": {
            "kind": "multiple_choice",
            "text_columns": ["s1", "s2"],
            "choice_columns": ["a", "b"],
            "label_column": "y",
            "files": {"train": "a.csv"},
        },
        "ranking": {
            "kind": "ranking",
            "text_columns": ["q", "c"],
            "label_column": "y",
            "labels": ["no", "yes"],
            "files": {"train": "a.csv"},
        },
        "similarity": {
            "kind": "similarity",
            "text_columns": ["a", "b"],
            "label_column": "y",
            "files": {"train": "a.csv"},
        },
    }


def test_conll_files_need_no_columns_and_test_sets_have_no_tags(tasks: dict[str, dict[str, Any]]) -> None:
    spec = spec_of(tasks["ner"])
    assert {
        split: (source.format, source.text_columns, source.label_column)
        for split, source in spec.splits.items()
    } == {
        "train": ("conll", ("0",), "-1"),
        "test": ("conll", ("0",), None),
    }
    assert spec.metrics == ("entity_f1",)
    source = spec_of({**tasks["ner"], "text_columns": ["1"], "label_column": "3"}).splits["train"]
    assert (source.text_columns, source.label_column) == (("1",), "3")


def test_columns_of_choices_and_groups_reach_the_source(tasks: dict[str, dict[str, Any]]) -> None:
    assert spec_of(tasks["choice"]).splits["train"].more_columns == ("a", "b")
    ranking = spec_of({**tasks["ranking"], "group_column": "id", "objective": "pairwise"})
    assert (ranking.splits["train"].more_columns, ranking.objective, ranking.metrics) == (
        ("id",),
        "pairwise",
        ("accuracy", "mrr"),
    )
    assert spec_of(tasks["ranking"]).objective == "softmax"


def test_a_similarity_has_no_head_and_so_no_dropout(tasks: dict[str, dict[str, Any]]) -> None:
    spec = spec_of({**tasks["similarity"], "score_range": [0, 5]})
    assert (spec.objective, spec.metrics, list(spec.options["score_range"])) == (
        "cosine",
        ("pearson", "spearman"),
        [0, 5],
    )


def test_builtin_tasks_of_these_kinds() -> None:
    wnut, ranking = resolve_tasks(recipe(["wnut17", "qnli_ranking"]))
    # ClassLabel names of leondz/wnut_17 on the Hugging Face hub
    assert wnut.labels == (
        "O",
        "B-corporation",
        "I-corporation",
        "B-creative-work",
        "I-creative-work",
        "B-group",
        "I-group",
        "B-location",
        "I-location",
        "B-person",
        "I-person",
        "B-product",
        "I-product",
    )
    assert {
        split: (source.path, source.split, source.text_columns, source.label_column)
        for split, source in wnut.splits.items()
    } == {
        "train": ("leondz/wnut_17", "train", ("tokens",), "ner_tags"),
        "dev": ("leondz/wnut_17", "validation", ("tokens",), "ner_tags"),
        "test": ("leondz/wnut_17", "test", ("tokens",), "ner_tags"),
    }
    assert (ranking.kind, ranking.labels, ranking.objective) == (
        "ranking",
        ("entailment", "not_entailment"),
        "softmax",
    )
    assert ranking.options["relevant_label"] == "entailment"
    assert ranking.splits["train"].text_columns == ("question", "sentence")


def test_wnut_dir_takes_the_files_that_are_there(official_files: Path) -> None:
    (spec,) = resolve_tasks(recipe(["wnut17"], data={"wnut_dir": str(official_files / "WNUT17")}))
    assert {
        split: (Path(source.path).name, source.format, source.label_column)
        for split, source in spec.splits.items()
    } == {
        "train": ("train.conll", "conll", "-1"),
        "dev": ("dev.conll", "conll", "-1"),
        "test": ("test.conll", "conll", "-1"),
    }


CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "not BIO": (
        "ner",
        {"labels": ["O", "per"]},
        ["labels: 'per' is no BIO label; they are O, and B-NAME and I-NAME for each kind of entity"],
    ),
    "no O": (
        "ner",
        {"labels": ["B-per", "I-per"]},
        ["labels: O is missing, the label of words outside every entity"],
    ),
    "half a pair": (
        "ner",
        {"labels": ["O", "B-per", "I-loc"]},
        ["labels: I-per, B-loc are missing; every kind of entity has B-NAME and I-NAME"],
    ),
    "no labels": (
        "ner",
        {"labels": None},
        ["labels: missing; a token_classification lists its label names, in class-id order"],
    ),
    "named columns of a .conll file": (
        "ner",
        {"text_columns": ["tokens"], "label_column": "tags"},
        [
            (
                "text_columns=tokens: columns of a .conll file have numbers; "
                "remove the key (word 0, tag -1, the last), or give a number"
            ),
            (
                "label_column=tags: columns of a .conll file have numbers; "
                "remove the key (word 0, tag -1, the last), or give a number"
            ),
        ],
    ),
    "words in a csv": (
        "lists",
        {"files": {"train": "a.csv"}},
        ["files.train=a.csv: its cells are texts, not lists of words; use .conll, .jsonl or .parquet"],
    ),
    "lists without columns": (
        "lists",
        {"text_columns": None, "label_column": None},
        [
            "text_columns: missing; every task of your own needs it",
            "label_column: missing; every task of your own needs it",
        ],
    ),
    "metric of another kind": (
        "ner",
        {"metrics": ["accuracy"]},
        [
            "metrics: metric 'accuracy' is for classification, multiple_choice, ranking; "
            "this task is token_classification, "
            "use entity_f1, entity_precision, entity_recall"
        ],
    ),
    "no choices": (
        "choice",
        {"choice_columns": None},
        ["choice_columns: missing; a multiple_choice needs it"],
    ),
    "a choice twice": ("choice", {"choice_columns": ["a", "a"]}, ["choice_columns: 'a' stands twice"]),
    "a choice that is another column": (
        "choice",
        {"choice_columns": ["y", "s2"]},
        [
            "choice_columns: 'y' is the column of the label too",
            "choice_columns: 's2' is the column of a text too",
        ],
    ),
    "labels of a multiple_choice": (
        "choice",
        {"labels": ["A", "B"]},
        ["labels: a multiple_choice has no label names; remove the key"],
    ),
    "unknown relevant label": (
        "ranking",
        {"relevant_label": "yse"},
        ["relevant_label=yse: not one of the labels; did you mean 'yes'? (known: no, yes)"],
    ),
    "group of candidates": (
        "ranking",
        {"group_column": "c"},
        [
            (
                "group_column: 'c' is a text or the label already; "
                "name another column, or remove it to group by the first text"
            )
        ],
    ),
    "one text": ("ranking", {"text_columns": ["q"]}, ["text_columns: a ranking has 2, not 1"]),
    "objective of another kind": (
        "ranking",
        {"objective": "cosine"},
        ["objective=cosine: a ranking has softmax, pairwise"],
    ),
    "range of a contrastive": (
        "similarity",
        {"objective": "contrastive", "score_range": [0, 5]},
        ["score_range: has no effect with objective=contrastive, whose labels are 0 and 1; remove it"],
    ),
    "range upside down": (
        "similarity",
        {"score_range": [5, 0]},
        ["score_range=[5.0, 0.0]: the score of cosine 0 must be below that of cosine 1"],
    ),
    "dropout of a similarity": (
        "similarity",
        {"dropout": 0.1},
        ["dropout: has no effect on a similarity, whose head has none; remove it"],
    ),
    "setting of another kind": (
        "similarity",
        {"relevant_label": "x"},
        ["relevant_label: has no effect on a similarity; it belongs to ranking; remove it"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refusals(case: str, tasks: dict[str, dict[str, Any]]) -> None:
    kind, changes, expected = CASES[case]
    with pytest.raises(ConfigError) as raised:
        spec_of({**tasks[kind], **changes})
    assert list(raised.value.problems) == [f"tasks.t.{problem}" for problem in expected]
