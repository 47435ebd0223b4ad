"""Choices of a question and candidates of a query:
rows, groups, sequences equal to transformers' own, groups never parted, ranks.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtdnn_ds.config.errors import DataError, TrainingError
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.batches.packing import pack
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.data.cache.tokenize import load_tokenizer
from mtdnn_ds.data.examples import make_examples
from mtdnn_ds.data.examples.base import TermOutputs
from mtdnn_ds.data.examples.choices import ChoiceExamples
from mtdnn_ds.data.rows.checked import CheckedRow, checked_rows
from mtdnn_ds.data.rows.readers import READERS
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.metrics import compute_metrics
from mtdnn_ds.tasks.spec import Source, TaskSpec


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def choice_spec(
    path: str, *, texts: tuple[str, ...] = ("q",), choices: tuple[str, ...] = ("c",), label: str | None = "y"
) -> TaskSpec:
    source = Source(format="jsonl", path=path, text_columns=texts, more_columns=choices, label_column=label)
    options = {"choice_columns": list(choices)}
    return TaskSpec(
        name="swag",
        kind="multiple_choice",
        labels=(),
        metrics=("accuracy",),
        splits={"train": source},
        options=options,
    )


def ranking_spec(
    path: str, *, group: str | None = None, label: str | None = "y", relevant: str | None = None
) -> TaskSpec:
    more = () if group is None else (group,)
    source = Source(format="jsonl", path=path, text_columns=("q", "c"), more_columns=more, label_column=label)
    options = {"group_column": group, "relevant_label": relevant}
    return TaskSpec(
        name="qa",
        kind="ranking",
        labels=("bad", "good"),
        metrics=("accuracy", "mrr"),
        splits={"train": source},
        options=options,
    )


def rows_of(spec: TaskSpec, skipped: Counter[str] | None = None) -> list[CheckedRow]:
    reader, source = READERS[spec.kind], spec.splits["train"]
    counted = Counter() if skipped is None else skipped
    return list(
        checked_rows(
            source, reader.parser(spec, source), on_bad_row="refuse", skipped=counted, grouped=reader.grouped
        )
    )


def examples_of(spec: TaskSpec, folder: Path, encoder: Path, max_length: int = 64) -> ChoiceExamples:
    split = prepare([spec], tokenizer_path=str(encoder), cache_dir=str(folder / "cache"))[spec.name]["train"]
    examples = make_examples(spec, split, max_length=max_length)
    assert isinstance(examples, ChoiceExamples)
    return examples


def problems_of(spec: TaskSpec) -> list[str]:
    with pytest.raises(DataError) as raised:
        rows_of(spec)
    return [line.strip() for line in str(raised.value).splitlines()[1:]]


# multiple_choice


def test_choices_come_from_a_list_or_from_columns_and_their_number_may_differ(tmp_path: Path) -> None:
    listed = written(
        tmp_path / "a.jsonl",
        [{"q": "Q", "c": ["x", "y"], "y": 1}, {"q": "R", "c": ["x", "y", "z"], "y": "C"}],
    )
    columns = written(
        tmp_path / "b.jsonl",
        [
            {"q": "Q", "a": "x", "b": "y", "c": None, "y": "1"},
            {"q": "R", "a": "x", "b": "y", "c": "z", "y": 2.0},
        ],
    )
    for spec in (choice_spec(listed), choice_spec(columns, choices=("a", "b", "c"))):
        assert [(row.texts, row.label, row.extra["right"]) for row in rows_of(spec)] == [
            (("Q", "x", "y"), 1.0, [0, 1]),
            (("R", "x", "y", "z"), 2.0, [0, 0, 1]),
        ]


def test_a_second_text_begins_every_choice(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", [{"s1": "He sat.", "s2": "Then he", "c": ["ran.", "slept."], "y": "A"}]
    )
    (row,) = rows_of(choice_spec(path, texts=("s1", "s2")))
    assert row.texts == ("He sat.", "Then he ran.", "Then he slept.")


def test_bad_choices_are_refused(tmp_path: Path) -> None:
    good = {"q": "Q", "c": ["x", "y"], "y": 0}
    wrong = [
        {"c": "x y"},
        {"c": ["x"]},
        {"c": ["x", ""]},
        {"c": ["x", 3]},
        {"y": 2},
        {"y": "C"},
        {"y": "a"},
        {"y": -1},
        {"y": None},
        {"q": ""},
    ]
    assert problems_of(choice_spec(written(tmp_path / "a.jsonl", [{**good, **each} for each in wrong]))) == [
        "line 1: column 'c' holds 'x y', not a list of choices",
        "line 2: 1 choices; a row needs two at least",
        "line 3: column 'c' is empty",
        "line 4: column 'c' holds 3, not a text",
        "line 5: unknown label 2; the right choice is 0 to 1, or A to B",
        "line 6: unknown label 'C'; the right choice is 0 to 1, or A to B",
        "line 7: unknown label 'a'; the right choice is 0 to 1, or A to B",
        "line 8: unknown label -1; the right choice is 0 to 1, or A to B",
        "line 9: the label is missing",
        "line 10: column 'q' is empty",
    ]
    columns = [
        {"q": "Q", "a": "x", "b": None, "c": "z", "y": 0},
        {"q": "Q", "a": "x", "b": "", "c": "", "y": 0},
    ]
    assert problems_of(choice_spec(written(tmp_path / "b.jsonl", columns), choices=("a", "b", "c"))) == [
        "line 1: column 'b' holds None, not a text",
        "line 2: 1 choices; a row needs two at least",
    ]


LONG = "a long line about ships and the sea " * 4
QUESTIONS = [
    ("Who?", ["he", "she did it"], 0),
    ("Where?", [LONG, "at home", "x"], 2),
    (LONG, ["so", LONG], 1),
]


@pytest.mark.parametrize("max_length", [64, 16])
def test_sequences_equal_transformers_pairs(max_length: int, tmp_path: Path, minilm: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"q": q, "c": c, "y": y} for q, c, y in QUESTIONS])
    examples = examples_of(choice_spec(path), tmp_path, minilm, max_length)
    order = np.array([2, 0, 1])
    gathered = examples.gather(order, np.zeros(3, dtype=np.int64))
    firsts = [q for q, c, _ in (QUESTIONS[example] for example in order) for _ in c]
    seconds = [choice for example in order for choice in QUESTIONS[example][1]]
    encoded = load_tokenizer(str(minilm))(
        firsts, seconds, truncation=True, max_length=max_length, padding=False
    )
    assert gathered.input_ids.tolist() == [token for ids in encoded["input_ids"] for token in ids]
    assert gathered.token_type_ids.tolist() == [kind for types in encoded["token_type_ids"] for kind in types]
    assert gathered.lengths.tolist() == [len(ids) for ids in encoded["input_ids"]]
    assert gathered.examples.tolist() == [0, 0, 1, 1, 2, 2, 2]
    (targets,) = gathered.targets
    assert targets.rows.tolist() == list(range(7)) and targets.labels.tolist() == [0, 1, 1, 0, 0, 0, 1]
    assert targets.examples.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert examples.lengths.tolist() == [
        sum(len(ids) for ids in encoded["input_ids"][part]) for part in (slice(2, 4), slice(4, 7), slice(2))
    ]
    outputs = TermOutputs(
        values=np.array([[3], [1], [0], [2], [1], [5], [4]], np.float32),
        labels=np.zeros(7),
        offsets=np.array([0, 2, 5, 7]),
    )
    decoded = examples.decode([outputs])
    assert (decoded.predictions.tolist(), decoded.references.tolist()) == ([0, 1, 0], [0, 2, 1])
    assert compute_metrics(["accuracy"], decoded.predictions, decoded.references) == {
        "accuracy": pytest.approx(1 / 3)
    }


# ranking


PAIRS = [
    ("Q1", "a", "bad"),
    ("Q2", "b", "good"),
    ("Q1", "c", "good"),
    ("Q3", "d", "bad"),
    ("Q2", "e", "bad"),
    ("Q4", "f", "good"),
    ("Q1", "g", 0),
]


def test_rows_of_a_query_become_one_example_in_the_order_of_their_first_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"q": q, "c": c, "y": y} for q, c, y in PAIRS])
    skipped: Counter[str] = Counter()
    rows = rows_of(ranking_spec(path), skipped)
    assert [(row.number, row.texts, row.extra["right"]) for row in rows] == [
        (1, ("Q1", "a", "c", "g"), [0, 1, 0]),
        (2, ("Q2", "b", "e"), [1, 0]),
    ]
    assert skipped == {
        "their query has only relevant candidates": 1,
        "their query has no relevant candidate": 1,
    }
    assert [row.extra["right"] for row in rows_of(ranking_spec(path, relevant="bad"))] == [[1, 0, 1], [0, 1]]
    unlabelled = rows_of(ranking_spec(path, label=None))
    assert [(row.texts[0], row.extra["right"]) for row in unlabelled] == [
        ("Q1", [-1, -1, -1]),
        ("Q2", [-1, -1]),
        ("Q3", [-1]),
        ("Q4", [-1]),
    ]


def test_a_group_column_tells_queries_apart(tmp_path: Path) -> None:
    rows = [("Q", "a", 1, 7), ("Q", "b", 0, "8"), ("Q", "c", 0, 7.0), ("Q", "d", 1, 8)]
    path = written(tmp_path / "a.jsonl", [{"q": q, "c": c, "y": y, "id": group} for q, c, y, group in rows])
    assert [row.texts for row in rows_of(ranking_spec(path, group="id"))] == [
        ("Q", "a", "c"),
        ("Q", "b", "d"),
    ]


def test_bad_candidates_are_refused(tmp_path: Path) -> None:
    good = {"q": "Q", "c": "a", "y": 1, "id": 1}
    path = written(
        tmp_path / "a.jsonl",
        [
            good,
            {**good, "q": "R"},
            {**good, "id": ""},
            {**good, "id": None},
            {**good, "y": "god"},
            {**good, "c": 5},
        ],
    )
    assert problems_of(ranking_spec(path, group="id")) == [
        "line 2: group '1' has another query than in line 1",
        "line 3: column 'id' is empty",
        "line 4: column 'id' is empty",
        "line 5: unknown label 'god'; did you mean 'good'? (known: bad, good)",
        "line 6: column 'c' holds 5, not a text",
    ]


def test_a_file_without_a_query_to_rank_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"q": "Q1", "c": "a", "y": 1}, {"q": "Q2", "c": "b", "y": 0}])
    with pytest.raises(DataError) as raised:
        rows_of(ranking_spec(path))
    reasons = (
        "1 left out: their query has no relevant candidate; "
        "1 left out: their query has only relevant candidates"
    )
    assert str(raised.value) == f"{path}: no usable row ({reasons})"


def test_a_query_is_never_parted_over_micro_batches_or_ranks(tmp_path: Path, minilm: Path) -> None:
    rows = [
        {"q": f"query {n}", "c": f"candidate {n} {c} " * (c + 1), "y": int(c == n % 3)}
        for c in range(4)
        for n in range(12)
    ]
    examples = examples_of(ranking_spec(written(tmp_path / "a.jsonl", rows)), tmp_path, minilm)
    assert examples.num_examples == 12
    packing = pack(
        examples.lengths, np.zeros(12, dtype=np.int64), world_size=2, max_tokens=200, hidden_size=32
    )
    assert packing.num_micro_batches > 1
    layout, seen = head_layout([examples.spec]), []
    for members in (members for rank in packing.micro_batches for members in rank if len(members)):
        epochs = np.zeros(len(members), dtype=np.int64)
        batch = collate(
            epochs,
            members,
            epochs,
            ExampleSets(examples=[examples], tasks=[0], layout=layout, filler_ids=np.array([101, 102])),
        )
        targets = batch.targets["choice"]
        assert np.bincount(targets.groups.numpy()).tolist() == [4] * len(members)
        assert batch.unit_counts.tolist() == [len(members)]
        # Labels and lengths show that the sequences of a group are those of its query.
        for group, example in enumerate(members):
            own = targets.groups.numpy() == group
            assert targets.labels.numpy()[own].argmax() == example % 3
            assert int(batch.cu_seqlens.diff()[targets.rows[own]].sum()) == examples.lengths[example]
        seen += members.tolist()
    assert sorted(seen) == list(range(12))


def test_ranks_by_hand() -> None:
    scores = [np.array([3.0, 2.0, 1.0]), np.array([0.5, 0.1, 0.2, 0.4]), np.array([1.0, 2.0])]
    relevant = [np.array([0, 0, 1]), np.array([0, 1, 0, 1]), np.array([0, 1])]
    # ranks 3, 2, 1
    assert compute_metrics(["accuracy", "mrr"], scores, relevant) == pytest.approx(
        {"accuracy": 1 / 3, "mrr": (1 / 3 + 1 / 2 + 1) / 3}
    )


def test_a_model_that_knows_nothing_earns_nothing() -> None:
    """A peer scores a random model 100: its ranks begin with the right candidate, which stands first.

    Ties never help here.
    """
    relevant = [np.array([1, 0, 0, 0])] * 1000
    constant = [np.zeros(4, dtype=np.float32)] * 1000
    assert compute_metrics(["accuracy", "mrr"], constant, relevant) == {"accuracy": 0.0, "mrr": 0.25}
    generator = np.random.default_rng(0)
    random = compute_metrics(["accuracy", "mrr"], list(generator.random((1000, 4))), relevant)
    assert random["accuracy"] == pytest.approx(0.25, abs=0.05)
    assert random["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, abs=0.05)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(
        TrainingError,
        match=r"^scores of candidates are not finite: the model has diverged; lower optimizer.lr$",
    ):
        compute_metrics(["mrr"], [np.array([np.nan, 1.0])], [np.array([1, 0])])


def test_qnli_questions_with_their_candidates(real_data: Path, tmp_path: Path, minilm: Path) -> None:
    from mtdnn_ds.config.recipe import Recipe
    from mtdnn_ds.tasks.resolve import resolve_tasks

    data = {"glue_dir": str(real_data / "glue")}
    recipe = {"encoder": {"path": "x"}, "train": {"steps": 1}, "tasks": ["qnli_ranking"], "data": data}
    (spec,) = resolve_tasks(Recipe.model_validate(recipe))
    split = prepare([spec], tokenizer_path=str(minilm), cache_dir=str(tmp_path), splits=["dev"])[spec.name][
        "dev"
    ]
    lines = (real_data / "glue/QNLI/dev.tsv").read_text(encoding="utf-8").removesuffix("\n").split("\n")[1:]
    groups: dict[str, list[bool]] = {}
    for line in lines:
        _, question, _, label = line.split("\t")
        groups.setdefault(question, []).append(label == "entailment")
    mixed = [flags for flags in groups.values() if any(flags) and not all(flags)]
    assert split.num_rows == len(mixed) == 1362
    assert split.list_values("right").tolist() == [int(flag) for flags in mixed for flag in flags]
    assert sum(split.skipped.values()) == len(lines) - sum(len(flags) for flags in mixed)


def test_an_example_that_no_micro_batch_holds_is_refused_before_training(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    from mtdnn_ds.config.errors import ConfigError
    from mtdnn_ds.config.recipe import Recipe
    from mtdnn_ds.runs.setup import prepare_run_data
    from mtdnn_ds.tasks.resolve import resolve_tasks

    path = written(tmp_path / "a.jsonl", [{"q": q, "c": c, "y": y} for q, c, y in QUESTIONS])
    task = {
        "kind": "multiple_choice",
        "text_columns": ["q"],
        "choice_columns": ["c"],
        "label_column": "y",
        "files": {"train": path},
    }
    recipe = Recipe.model_validate(
        {
            "encoder": {"path": str(tiny_encoder), "max_length": 16},
            "tasks": {"swag": task},
            "batch": {"max_tokens_per_micro_batch": 30},
            "train": {"steps": 1},
            "data": {"cache_dir": str(tmp_path / "cache")},
        }
    )
    with pytest.raises(ConfigError) as raised:
        prepare_run_data(recipe, resolve_tasks(recipe))
    assert str(raised.value) == (
        "batch.max_tokens_per_micro_batch=30: the longest example of swag/train (row 3) has 32 tokens, "
        "and an example is never parted; "
        "raise it, or lower encoder.max_length"
    )
