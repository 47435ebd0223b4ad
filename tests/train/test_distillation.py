"""Distillation in its parts: losses against torch's own, the teachers' mean, stored files, targets in
micro-batches, refusals.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.processes import run_command
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from mtdnn_ds.batch import Targets
from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.load import dump_recipe, load_recipe
from mtdnn_ds.data.batches.collate import ExampleSets, collate
from mtdnn_ds.data.cache.soft_targets import (
    RowsByExample,
    read_outputs,
    soft_file,
    soft_targets,
    write_outputs,
)
from mtdnn_ds.data.examples import Gathered, TargetRows
from mtdnn_ds.data.examples.distilled import DistilledExamples
from mtdnn_ds.losses.distillation import Distillation
from mtdnn_ds.losses.forms import build_losses
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.resolve import resolve_tasks
from mtdnn_ds.tasks.spec import TaskSpec
from mtdnn_ds.train.distillation.teachers import find_teachers

NAN = float("nan")


def spec(name: str, kind: str, labels: tuple[str, ...] = (), **changes: Any) -> TaskSpec:
    return replace(TaskSpec(name=name, kind=kind, labels=labels, metrics=(), splits={}), **changes)


SPECS = (
    spec("three", "classification", ("a", "b", "c")),
    spec("two", "classification", ("no", "yes")),
    spec("san", "classification", ("no", "yes"), head="san"),
    spec("score", "regression"),
    spec("choice", "multiple_choice"),
    spec("tag", "token_classification", ("O", "B-X")),
)
LAYOUT = head_layout(SPECS)


def targets_of(
    term_ids: list[int],
    labels: list[float],
    groups: list[int] | None = None,
    soft: list[list[float]] | None = None,
) -> Targets:
    groups = list(range(len(labels))) if groups is None else groups
    return Targets(
        rows=torch.arange(len(labels)),
        term_ids=torch.tensor(term_ids),
        labels=torch.tensor(labels, dtype=torch.float32),
        groups=torch.tensor(groups),
        examples=np.arange(len(set(groups))),
        extra={} if soft is None else {"soft": torch.tensor(soft)},
    )


def losses_of(form: str, outputs: Tensor, targets: Targets, distillation: Distillation | None) -> Tensor:
    return (
        build_losses(LAYOUT, SPECS, "cpu", distillation)
        .of_batch({form: outputs}, {form: targets})[form]
        .losses
    )


def outputs_for(head: str, rows: int) -> Tensor:
    torch.manual_seed(0)
    return (3 * torch.randn(rows, LAYOUT.num_columns(head))).requires_grad_()


def assert_agree(
    form: str, outputs: Tensor, targets: Targets, distillation: Distillation, theirs: list[Tensor]
) -> None:
    """Every unit's loss, and the gradient of a weighted sum of them."""
    ours, expected = losses_of(form, outputs, targets, distillation), torch.stack(theirs)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    weights = torch.arange(1.0, len(expected) + 1)
    (own,) = torch.autograd.grad((ours * weights).sum(), outputs, retain_graph=True)
    (plain,) = torch.autograd.grad((expected * weights).sum(), outputs)
    torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-6)


def test_class_losses_are_cross_entropy_and_kl_div_times_the_squared_temperature() -> None:
    """Tasks of three and of two classes, and a row without a teacher, in one micro-batch."""
    outputs = outputs_for("sequence", 3)
    soft = [[0.7, 0.2, 0.1], [1.0, 0.0, NAN], [NAN, NAN, NAN]]
    targets = targets_of([0, 1, 0], [2, 1, 0], soft=soft)
    own = [outputs[0, 0:3], outputs[1, 3:5], outputs[2, 0:3]]
    hard = [cross_entropy(scores, torch.tensor(label)) for scores, label in zip(own, (2, 1, 0), strict=True)]
    kl = [
        kl_div((own[row] / 3).log_softmax(0), torch.tensor(soft[row][: len(own[row])]), reduction="sum")
        for row in (0, 1)
    ]
    theirs = [0.6 * 9 * kl[0] + 0.4 * hard[0], 0.6 * 9 * kl[1] + 0.4 * hard[1], hard[2]]
    assert_agree("class", outputs, targets, Distillation(temperature=3.0, weight=0.6), theirs)


def test_log_probabilities_of_san_are_distilled_as_they_are() -> None:
    scores = outputs_for("san", 2)
    targets = targets_of([2, 2], [0, 1], soft=[[0.9, 0.1], [0.3, 0.7]])
    outputs = scores.log_softmax(1)
    hard = [-outputs[0, 0], -outputs[1, 1]]
    # (log q) / T and (scores) / T differ by a constant, which a softmax does not see.
    kl = [
        kl_div((scores[row] / 2).log_softmax(0), targets.extra["soft"][row], reduction="sum")
        for row in (0, 1)
    ]
    ours = losses_of("san", outputs, targets, Distillation(temperature=2.0, weight=0.5))
    torch.testing.assert_close(ours, torch.stack([0.5 * 4 * kl[row] + 0.5 * hard[row] for row in (0, 1)]))


def test_tags_are_distilled_token_by_token() -> None:
    outputs = outputs_for("token", 3)
    targets = targets_of([5, 5, 5], [0, 1, 0], groups=[0, 0, 0], soft=[[0.5, 0.5], [0.1, 0.9], [NAN, NAN]])
    hard = [cross_entropy(outputs[row], torch.tensor(label)) for row, label in enumerate((0, 1, 0))]
    kl = [kl_div(outputs[row].log_softmax(0), targets.extra["soft"][row], reduction="sum") for row in (0, 1)]
    assert_agree(
        "tag",
        outputs,
        targets,
        Distillation(temperature=1.0, weight=0.25),
        [*(0.25 * kl[row] + 0.75 * hard[row] for row in (0, 1)), hard[2]],
    )


def test_choices_are_distilled_over_the_rows_of_an_example() -> None:
    outputs = outputs_for("sequence", 7)
    soft = [[0.2], [0.8], [0.5], [0.3], [0.2], [NAN], [NAN]]
    targets = targets_of([4] * 7, [0, 1, 1, 0, 0, 1, 0], groups=[0, 0, 1, 1, 1, 2, 2], soft=soft)
    scores = outputs[:, LAYOUT.terms[4].first_column]
    own = [scores[0:2], scores[2:5], scores[5:7]]
    hard = [cross_entropy(part, torch.tensor(right)) for part, right in zip(own, (1, 0, 0), strict=True)]
    kl = [
        kl_div((part / 2).log_softmax(0), torch.tensor(soft)[rows, 0], reduction="sum")
        for part, rows in ((own[0], slice(0, 2)), (own[1], slice(2, 5)))
    ]
    assert_agree(
        "choice",
        outputs,
        targets,
        Distillation(temperature=2.0, weight=0.5),
        [2 * kl[0] + 0.5 * hard[0], 2 * kl[1] + 0.5 * hard[1], hard[2]],
    )


def test_scores_learn_the_teachers_score_and_the_label() -> None:
    outputs = outputs_for("sequence", 2)
    targets = targets_of([3, 3], [1.0, 4.0], soft=[[2.0], [NAN]])
    own = outputs[:, LAYOUT.terms[3].first_column]
    theirs = [0.25 * (own[0] - 2) ** 2 + 0.75 * (own[0] - 1) ** 2, (own[1] - 4) ** 2]
    assert_agree("score", outputs, targets, Distillation(temperature=5.0, weight=0.25), theirs)


@pytest.mark.parametrize(
    ("form", "term", "soft"), [("class", 1, [[0.9, 0.1], [0.5, 0.5]]), ("score", 3, [[0.3], [2.0]])]
)
def test_weight_0_is_plain_training_and_weight_1_ignores_labels(
    form: str, term: int, soft: list[list[float]]
) -> None:
    outputs = outputs_for("sequence", 2)
    plain, taught, other = (
        targets_of([term] * 2, [1, 0]),
        targets_of([term] * 2, [1, 0], soft=soft),
        targets_of([term] * 2, [0, 1], soft=soft),
    )
    nothing, everything = Distillation(temperature=2.0, weight=0.0), Distillation(temperature=2.0, weight=1.0)
    assert torch.equal(losses_of(form, outputs, taught, nothing), losses_of(form, outputs, plain, None))
    assert torch.equal(
        losses_of(form, outputs, taught, everything), losses_of(form, outputs, other, everything)
    )


@pytest.mark.parametrize("form", ["class", "score", "choice", "tag"])
def test_a_micro_batch_without_soft_targets_or_without_rows_keeps_its_losses(form: str) -> None:
    head = "token" if form == "tag" else "sequence"
    term = next(index for index, term in enumerate(LAYOUT.terms) if term.form == form)
    settings = Distillation(temperature=2.0, weight=0.5)
    one = targets_of([term], [0.0 if form != "choice" else 1.0])
    assert torch.equal(
        losses_of(form, outputs_for(head, 1), one, settings), losses_of(form, outputs_for(head, 1), one, None)
    )
    empty = replace(
        targets_of([], []),
        term_ids=torch.zeros(0, dtype=torch.int64),
        rows=torch.zeros(0, dtype=torch.int64),
        groups=torch.zeros(0, dtype=torch.int64),
    )
    losses = losses_of(form, outputs_for(head, 0), empty, settings)
    assert losses.shape == (0,) and losses.requires_grad


# The mean of teachers


def rows(values: list[list[float]], offsets: list[int]) -> RowsByExample:
    return RowsByExample(values=np.array(values, dtype=np.float32), offsets=np.array(offsets))


def test_probabilities_of_several_teachers_are_averaged_at_the_temperature() -> None:
    log3 = float(np.log(3))
    first, second = rows([[2 * log3, 0.0]], [0, 1]), rows([[0.0, 0.0]], [0, 1])
    np.testing.assert_allclose(
        soft_targets("classes", [first, second], 2.0).values,
        [[(0.75 + 0.5) / 2, (0.25 + 0.5) / 2]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(soft_targets("classes", [first], 1.0).values, [[0.9, 0.1]], rtol=1e-6)


def test_probabilities_over_the_rows_of_an_example() -> None:
    log3 = float(np.log(3))
    teacher = rows([[log3], [0.0], [0.0], [0.0], [log3 + 500]], [0, 2, 5])
    np.testing.assert_allclose(
        soft_targets("rows", [teacher], 1.0).values[:, 0], [0.75, 0.25, 0, 0, 1], rtol=1e-6, atol=1e-12
    )


def test_scores_are_averaged_whatever_the_temperature() -> None:
    assert soft_targets(
        "number", [rows([[1.0], [4.0]], [0, 1, 2]), rows([[2.0], [0.0]], [0, 1, 2])], 7.0
    ).values.tolist() == [[1.5], [2.0]]


def test_teachers_that_read_fewer_tokens_teach_those() -> None:
    far, near = rows([[0.0, 0], [0, 0], [0, 0], [5, 5]], [0, 3, 4]), rows([[1.0, 1], [9, 9]], [0, 1, 2])
    mean = soft_targets("classes", [far, near], 1.0)
    assert mean.offsets.tolist() == [0, 1, 2] and mean.values.tolist() == [[0.5, 0.5], [0.5, 0.5]]


# Examples and micro-batches


class FixedExamples:
    """Example e has e + 1 supervised tokens, labelled e."""

    num_examples = 3
    lengths = np.array([4, 4, 4])
    rows = np.arange(3)
    split: Any = None

    def __init__(self, width: int) -> None:
        self.width = width

    def gather(self, examples_B: np.ndarray, epochs_B: np.ndarray) -> Gathered:
        owner = np.repeat(np.arange(len(examples_B)), examples_B + 1)
        number = np.concatenate([np.arange(example + 1) for example in examples_B])
        ids = np.repeat(examples_B, 4)
        targets = TargetRows(
            rows=4 * owner + number, labels=examples_B[owner].astype(np.float32), examples=owner
        )
        return Gathered(
            input_ids=ids,
            token_type_ids=0 * ids,
            lengths=np.full(len(examples_B), 4),
            examples=np.arange(len(examples_B)),
            targets=[targets],
        )

    def decode(self, outputs: Any) -> Any: ...

    def source_row(self, example: int) -> int:
        return example


def test_soft_targets_go_with_their_example_and_row() -> None:
    soft = rows(
        [[0.1], [0.2], [0.3], [0.4]], [0, 1, 2, 4]
    )  # example 1 lacks its second row, example 2 its third
    (targets,) = DistilledExamples(FixedExamples(1), soft).gather(np.array([2, 0, 1]), np.zeros(3)).targets
    np.testing.assert_array_equal(
        targets.extra["soft"][:, 0], np.array([0.3, 0.4, NAN, 0.1, 0.2, NAN], dtype=np.float32)
    )


def test_tasks_with_and_without_teachers_share_a_micro_batch() -> None:
    """Two classes taught, three classes taught, and two classes not taught: what a task lacks is NaN."""
    specs = [
        spec(name, "token_classification", labels)
        for name, labels in (("x", ("O", "B")), ("y", ("O", "B", "I")), ("z", ("O", "B")))
    ]
    sets = [
        DistilledExamples(FixedExamples(2), rows([[0.1, 0.9]] * 6, [0, 1, 3, 6])),
        DistilledExamples(FixedExamples(3), rows([[0.2, 0.3, 0.5]] * 6, [0, 1, 3, 6])),
        FixedExamples(2),
    ]
    batch = collate(
        np.array([0, 1, 2]),
        np.array([0, 0, 1]),
        np.zeros(3, dtype=np.int64),
        ExampleSets(examples=sets, tasks=range(3), layout=head_layout(specs), filler_ids=np.zeros(0)),
    )
    targets = batch.targets["tag"]
    assert targets.term_ids.tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(
        targets.extra["soft"].numpy(),
        np.array([[0.1, 0.9, NAN], [0.2, 0.3, 0.5], [NAN] * 3, [NAN] * 3], dtype=np.float32),
    )
    plain = collate(
        np.array([2]),
        np.array([1]),
        np.zeros(1, dtype=np.int64),
        ExampleSets(examples=sets, tasks=range(3), layout=head_layout(specs), filler_ids=np.zeros(0)),
    )
    assert plain.targets["tag"].extra == {}


# Files


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from mtdnn_ds.data.cache import soft_targets as module

def half(arrays, path):
    Path(path).write_bytes(b"half a file")
    os.kill(os.getpid(), signal.SIGKILL)

module.save_file = half
rows = module.RowsByExample(values=np.zeros((1, 2), np.float32), offsets=np.array([0, 1]))
module.write_outputs(Path(sys.argv[1]), rows)
"""


def test_a_kill_while_storing_leaves_no_half_file(tmp_path: Path, said: list[str]) -> None:
    file = soft_file(str(tmp_path / "cache"), "rte", "0123456789abcdef")
    assert run_command(["-c", KILLED, str(file)]).returncode == -signal.SIGKILL
    assert read_outputs(file) is None and said == []
    assert [path.name for path in file.parent.glob("*.building-*")] != []
    write_outputs(file, rows([[1.0, 2.0]], [0, 1]))
    stored = read_outputs(file)
    assert stored is not None and stored.values.tolist() == [[1.0, 2.0]] and stored.offsets.tolist() == [0, 1]
    assert list(file.parent.glob("*.building-*")) == []


def test_a_damaged_file_is_computed_again_and_that_is_said(tmp_path: Path, said: list[str]) -> None:
    file = soft_file(str(tmp_path), "rte", "0123456789abcdef")
    write_outputs(file, rows([[1.0, 2.0]], [0, 1]))
    os.truncate(file, 60)
    assert read_outputs(file) is None
    assert said[0].startswith(f"{file}: is damaged (") and said[0].endswith("); computing it again")


# Refusals


TABLE = {"kind": "classification", "text_columns": ["text"], "label_column": "label", "labels": ["no", "yes"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\na,yes\n")
    return tmp_path


def write_recipe(path: Path, tasks: dict[str, Any], distillation: dict[str, Any] | None = None) -> str:
    own = {name: {"files": {"train": "rows.csv"}, **TABLE, **task} for name, task in tasks.items()}
    recipe = {
        "encoder": {"path": "bert-base-uncased"},
        "tasks": own,
        "train": {"steps": 3},
        "distillation": distillation or {},
    }
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def write_teacher(folder: Path, tasks: dict[str, Any]) -> str:
    (folder / "best" / "average").mkdir(parents=True)
    (folder / "best" / "average" / "model.safetensors").write_bytes(b"")
    write_recipe(folder / "recipe.yaml", tasks)
    return str(folder)


def refusal(folder: Path, tasks: dict[str, Any], distillation: dict[str, Any]) -> list[str]:
    recipe = load_recipe(write_recipe(folder / "student.yaml", tasks, distillation), {})
    with pytest.raises(ConfigError) as caught:
        find_teachers(recipe, resolve_tasks(recipe))
    return list(caught.value.problems)


def test_other_labels_or_another_order_are_refused_with_both(folder: Path) -> None:
    write_teacher(folder / "run", {"mine": {"labels": ["yes", "no"]}})
    assert refusal(folder, {"mine": {}}, {"teachers": ["run"]}) == [
        "distillation.teachers: run: task 'mine' has the labels yes, no there and no, yes here; "
        "write them in the same order, or leave the task out of distillation.tasks"
    ]


def test_kinds_that_cannot_be_distilled_are_refused(folder: Path) -> None:
    ranking = {"kind": "ranking", "text_columns": ["text", "other"], "objective": "pairwise"}
    write_teacher(
        folder / "run", {"ranked": ranking, "mine": {}, "score": {"kind": "regression", "labels": None}}
    )
    assert refusal(folder, {"ranked": ranking, "mine": {}, "score": {}}, {"teachers": ["run"]}) == [
        "distillation.teachers: run: task 'ranked': a ranking with objective=pairwise cannot be "
        "distilled, only tasks that score classes, "
        "choices or numbers; leave the task out of distillation.tasks",
        "distillation.teachers: run: task 'score' is a regression there and a classification here; "
        "leave the task out of distillation.tasks, or rename it",
    ]


def test_teachers_that_are_not_there_are_refused_all_at_once(folder: Path) -> None:
    write_teacher(folder / "run", {"mine": {}})
    assert refusal(
        folder, {"mine": {}}, {"teachers": ["none", "run", "./run"], "checkpoint": "best/mine"}
    ) == [
        "distillation.teachers: none: not a run folder (recipe.yaml is missing); give the --output_dir of "
        "a training run",
        "distillation.checkpoint best/mine: not in run; (known: best/average, latest)",
        "distillation.teachers: ./run stands twice, which would count it twice; name it once",
    ]


def test_tasks_without_a_teacher_are_refused_where_they_are_named(folder: Path) -> None:
    write_teacher(folder / "run", {"mine": {}})
    assert refusal(folder, {"mine": {}, "other": {}}, {"teachers": ["run"], "tasks": ["mine", "other"]}) == [
        "distillation.tasks: no teacher has the task 'other' (they have mine); leave it out"
    ]
    assert refusal(folder, {"other": {}}, {"teachers": ["run"]}) == [
        "distillation.teachers: they have none of the run's tasks (they have mine); name other runs"
    ]
    recipe = load_recipe(
        write_recipe(folder / "student.yaml", {"mine": {}, "other": {}}, {"teachers": ["run"]}), {}
    )
    (teacher,) = find_teachers(recipe, resolve_tasks(recipe))
    assert [task.name for task in teacher.specs] == ["mine"]


def test_settings_without_teachers_have_no_effect_and_are_refused(folder: Path) -> None:
    path = write_recipe(folder / "student.yaml", {"mine": {}}, {"weight": 0.3, "tasks": ["mien"]})
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, {})
    assert list(caught.value.problems) == [
        f"{path}: distillation.tasks: has no effect without distillation.teachers; remove it, or name the "
        f"run folders to learn from",
        f"{path}: distillation.weight: has no effect without distillation.teachers; remove it, or name "
        f"the run folders to learn from",
        f"{path}: distillation.tasks: there is no task 'mien' in the run; did you mean 'mine'? (known: "
        f"mine); remove it, or add the task",
    ]


def test_a_resolved_recipe_without_teachers_has_no_distillation(folder: Path) -> None:
    recipe = load_recipe(write_recipe(folder / "student.yaml", {"mine": {}}), {})
    assert "distillation" not in yaml.safe_load(dump_recipe(recipe))
    with_teachers = load_recipe(
        write_recipe(folder / "student.yaml", {"mine": {}}, {"teachers": ["run"]}), {}
    )
    assert yaml.safe_load(dump_recipe(with_teachers))["distillation"] == {
        "teachers": ["run"],
        "checkpoint": "best/average",
        "temperature": 2.0,
        "weight": 0.5,
    }
