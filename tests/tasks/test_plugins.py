"""Task kinds of the user's own: what a plugin file may say, the text of every refusal.

Real runs: train/test_head_runs.py.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.processes import ROOT

from mtdnn_ds import CustomKind
from mtdnn_ds.config.errors import ConfigError, DataError, TrainingError
from mtdnn_ds.config.load import dump_recipe, load_recipe
from mtdnn_ds.config.recipe import Recipe
from mtdnn_ds.data.cache.build import prepare
from mtdnn_ds.losses.custom import custom_losses
from mtdnn_ds.model.heads.custom import build_custom_heads
from mtdnn_ds.model.multitask import build_model
from mtdnn_ds.tasks.layout import head_layout
from mtdnn_ds.tasks.metrics import compute_metrics
from mtdnn_ds.tasks.plugins import load_plugins
from mtdnn_ds.tasks.resolve import resolve_tasks

EXAMPLE = "recipes/own_kind/ordinal.py"
KIND_LINES = """
from mtdnn_ds import CustomKind

KIND = CustomKind(
    name="stars",
    num_outputs=lambda spec: 1,
    parse_label=lambda cell, spec: float(cell),
    loss=lambda outputs, labels: (outputs[:, 0] - labels) ** 2,
    predict=lambda outputs: outputs[:, 0],
    metrics={"closeness": lambda predictions, labels: -abs(predictions - labels).mean()},
)
"""


def kind(**changes: Any) -> CustomKind:
    settings: dict[str, Any] = dict(
        name="stars",
        num_outputs=lambda spec: 1,
        parse_label=lambda cell, spec: float(cell),
        loss=lambda outputs, labels: (outputs[:, 0] - labels) ** 2,
        predict=lambda outputs: outputs[:, 0],
        metrics={"closeness": lambda predictions, labels: -float(np.abs(predictions - labels).mean())},
    )
    return CustomKind(**{**settings, **changes})


def refused(paths: list[str]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        load_plugins(paths)
    return raised.value.problems


# Loading


def test_the_shipped_kind_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kinds = load_plugins([EXAMPLE])
    assert list(kinds) == ["ordinal"]
    assert (kinds["ordinal"].reads, kinds["ordinal"].has_labels, list(kinds["ordinal"].metrics)) == (
        "sequence",
        True,
        ["accuracy", "within_one"],
    )
    assert load_plugins([EXAMPLE]) == kinds, "a file is run once"


def test_several_kinds_of_one_file_and_no_leftovers_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text(
        KIND_LINES.replace("KIND = ", "ONE = ")
        + "import dataclasses\nKINDS = [ONE, dataclasses.replace(ONE, name='moons')]\n"
    )
    assert list(load_plugins([str(file), str(file)])) == ["stars", "moons"]
    assert [path.name for path in tmp_path.iterdir()] == ["two.py"]


def test_a_changed_file_is_run_again_and_has_another_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "kind.py"
    file.write_text(KIND_LINES)
    first = load_plugins([str(file)])["stars"]
    file.write_text(KIND_LINES.replace("float(cell)", "9 + int(cell)"))
    second = load_plugins([str(file)])["stars"]
    assert first.parse_label("1", None) == 1.0  # type: ignore[arg-type]
    assert second.parse_label("1", None) == 10.0  # type: ignore[arg-type]
    assert len(first.fingerprint) == 64 and first.fingerprint != second.fingerprint


LOADING = {
    "syntax": (
        "KIND = CustomKind(\nname='x'\nloss=3)",
        "plugins: {file}, line 2: SyntaxError: invalid syntax. Perhaps you forgot a comma?",
    ),
    "raises": (
        "import os\n\nos.nothing()\n",
        "plugins: {file}, line 3: AttributeError: module 'os' has no attribute 'nothing'",
    ),
    "exits": ("raise SystemExit('done')", "plugins: {file}, line 1: SystemExit: done"),
    "missing": (
        "x = 1\n",
        (
            "plugins: {file}: defines neither KIND nor KINDS; "
            "write one of KIND = CustomKind(...) and KINDS = [CustomKind(...), ...]"
        ),
    ),
    "both": (
        KIND_LINES + "KINDS = [KIND]\n",
        (
            "plugins: {file}: defines both KIND and KINDS; "
            "write one of KIND = CustomKind(...) and KINDS = [CustomKind(...), ...]"
        ),
    ),
    "type": ("KIND = {'name': 'stars'}\n", "plugins: {file}: KIND holds a dict, not a CustomKind"),
    "list": (KIND_LINES.replace("KIND =", "KINDS ="), None),
    "empty list": ("KINDS = []\n", "plugins: {file}: KINDS must be a list of CustomKind(...), not []"),
    "entry": ("KINDS = [3]\n", "plugins: {file}: KINDS holds a int, not a CustomKind"),
    "built in": (
        KIND_LINES.replace("stars", "span"),
        "plugins: {file}: 'span' is the name of a built-in kind or loss; give yours another one",
    ),
    "form": (
        KIND_LINES.replace("stars", "score"),
        "plugins: {file}: 'score' is the name of a built-in kind or loss; give yours another one",
    ),
    "no metrics": (
        KIND_LINES.replace(
            '{"closeness": lambda predictions, labels: -abs(predictions - labels).mean()}', "{}"
        ),
        (
            "plugins: {file}, line 4: TypeError: CustomKind 'stars': "
            "metrics must map at least one name to a function, e.g. {{'accuracy': accuracy}}"
        ),
    ),
    "no loss": (
        "\n".join(line for line in KIND_LINES.splitlines() if "loss=" not in line),
        "plugins: {file}, line 4: TypeError: CustomKind missing 1 required keyword-only argument: 'loss'",
    ),
}


@pytest.mark.parametrize("case", LOADING)
def test_what_is_wrong_with_a_file_is_said_with_its_line(case: str, tmp_path: Path) -> None:
    text, expected = LOADING[case]
    file = tmp_path / "kind.py"
    file.write_text(text)
    (problem,) = refused([str(file)])
    if expected is None:
        assert problem.startswith(
            f"plugins: {file}: KINDS must be a list of CustomKind(...), not CustomKind(name='stars'"
        )
    else:
        assert problem == expected.format(file=file)


def test_all_files_problems_come_at_once(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(KIND_LINES)
    a, b = str(tmp_path / "a.py"), str(tmp_path / "b.py")
    assert refused([a, b, f"{tmp_path}/gone.py", "notes.txt"]) == (
        f"plugins: {b}: a kind 'stars' is defined in {a} already; rename one of them",
        (
            f"plugins: {tmp_path}/gone.py: "
            f"cannot be read (No such file or directory; looked for {tmp_path}/gone.py)"
        ),
        "plugins: notes.txt: is not a Python file (.py)",
    )


RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "name": (
        {"name": "my-kind"},
        "CustomKind 'my-kind': name is made of letters, digits and '_', and begins with a letter",
    ),
    "reads": ({"reads": "words"}, "CustomKind 'stars': reads is 'sequence' or 'token', not 'words'"),
    "function": ({"loss": "mse"}, "CustomKind 'stars': loss must be a function, not 'mse'"),
    "head": ({"head": 3}, "CustomKind 'stars': head must be a function or None, not 3"),
    "metrics": (
        {"metrics": ["accuracy"]},
        "CustomKind 'stars': metrics must map at least one name to a function, e.g. {'accuracy': accuracy}",
    ),
    "metric name": (
        {"metrics": {"": max}},
        "CustomKind 'stars': metrics: a name is made of letters, digits and '_', not ''",
    ),
    "metric": ({"metrics": {"a": 1}}, "CustomKind 'stars': metrics['a'] must be a function, not 1"),
    "two at once": (
        {"loss": lambda outputs: outputs, "metrics": {"a": lambda x: x}},
        "CustomKind 'stars': loss must take (outputs, labels); metrics['a'] must take (predictions, labels)",
    ),
    "head arguments": (
        {"head": lambda size: None},
        "CustomKind 'stars': head must take (hidden_size, num_outputs)",
    ),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_wrong_record_says_what_it_needs(case: str) -> None:
    changes, expected = RECORDS[case]
    with pytest.raises(TypeError) as raised:
        kind(**changes)
    assert str(raised.value) == expected


# In a recipe


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "kind.py").write_text(KIND_LINES)
    (tmp_path / "train.csv").write_text("text,stars\nfine,4\nbad,1\nso so,2.5\n")
    return {
        "encoder": {"path": "x"},
        "plugins": [str(tmp_path / "kind.py")],
        "train": {"steps": 1},
        "tasks": {
            "mine": {
                "kind": "stars",
                "files": {"train": str(tmp_path / "train.csv")},
                "text_columns": ["text"],
                "label_column": "stars",
            }
        },
    }


def test_a_task_of_an_own_kind_is_resolved(own: dict[str, Any]) -> None:
    (spec,) = resolve_tasks(Recipe.model_validate(own))
    assert (spec.kind, spec.metrics, spec.head, spec.objective, dict(spec.options)) == (
        "stars",
        ("closeness",),
        "linear",
        None,
        {},
    )
    assert spec.custom is not None and spec.custom.name == "stars"
    (term,) = head_layout([spec]).terms
    assert (term.form, term.head, term.reads, term.unit, term.num_outputs) == (
        "stars",
        "sequence",
        "sequence",
        "row",
        1,
    )


def test_refusals_of_a_task_of_an_own_kind(own: dict[str, Any]) -> None:
    def problems(**changes: Any) -> tuple[str, ...]:
        task = {**own["tasks"]["mine"], **changes}
        with pytest.raises(ConfigError) as raised:
            resolve_tasks(Recipe.model_validate({**own, "tasks": {"mine": task}}))
        return raised.value.problems

    assert problems(metrics=["closenes"], labels=["a", "b"], head="san", stride=3) == (
        "tasks.mine.labels: a stars has no label names; remove the key",
        "tasks.mine.stride: has no effect on a stars; it belongs to span and conversational_span; remove it",
        (
            "tasks.mine.metrics: kind stars has no metric 'closenes'; "
            "did you mean 'closeness'? (known: closeness)"
        ),
        "tasks.mine.head=san: is for classification of pairs, this task is a stars; remove it",
    )
    (unknown,) = problems(kind="star")
    assert unknown.startswith(
        "tasks.mine.kind=star: unknown kind; did you mean 'stars'? (known: classification, "
    )
    assert unknown.endswith("; a kind of your own comes from a file that plugins names")


def test_wrong_plugins_are_said_once(own: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_tasks(Recipe.model_validate({**own, "plugins": ["gone.py"]}))
    assert [problem.split(" (")[0] for problem in raised.value.problems] == [
        "plugins: gone.py: cannot be read"
    ]


def test_a_wrong_number_of_outputs_is_refused(own: dict[str, Any]) -> None:
    for wrong, expected in (
        (
            lambda spec: 0,
            "tasks.mine: num_outputs of kind stars gave 0; it must give a whole number, at least 1",
        ),
        (
            lambda spec: spec.nothing,
            (
                "tasks.mine: num_outputs of kind stars failed: "
                "AttributeError: 'TaskSpec' object has no attribute 'nothing'"
            ),
        ),
    ):
        with pytest.raises(ConfigError) as raised:
            resolve_tasks(Recipe.model_validate(own), own_kinds={"stars": kind(num_outputs=wrong)})
        assert raised.value.problems == (expected,)


def test_the_recipe_keeps_its_plugins_and_the_flag_replaces_them(own: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(own))
    recipe = load_recipe(str(path), {"plugins": "a.py,b/c.py"})
    assert recipe.plugins == ["a.py", "b/c.py"]
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "again.yaml"), {}) == recipe
    assert "plugins" not in dump_recipe(Recipe.model_validate({**own, "plugins": [], "tasks": ["rte"]}))


def test_rows_are_read_anew_when_the_file_changes(
    own: dict[str, Any], tmp_path: Path, tiny_encoder: Path
) -> None:
    def labels() -> list[float]:
        specs = resolve_tasks(Recipe.model_validate(own))
        prepared = prepare(specs, tokenizer_path=str(tiny_encoder), cache_dir=str(tmp_path / "cache"))
        return prepared["mine"]["train"].labels.tolist()

    assert labels() == [4.0, 1.0, 2.5]
    (tmp_path / "kind.py").write_text(KIND_LINES.replace("float(cell)", "10 * float(cell)"))
    assert labels() == [40.0, 10.0, 25.0]


def test_bad_labels_are_said_with_their_rows(own: dict[str, Any], tmp_path: Path, tiny_encoder: Path) -> None:
    (tmp_path / "train.csv").write_text("text,stars\nfine,4\nbad,many\nodd,nan\n")
    specs = resolve_tasks(Recipe.model_validate(own))
    with pytest.raises(DataError) as raised:
        prepare(specs, tokenizer_path=str(tiny_encoder), cache_dir=str(tmp_path / "cache"))
    assert str(raised.value).splitlines()[1:] == [
        "  line 3: label 'many': could not convert string to float: 'many'",
        "  line 4: label 'nan': parse_label of kind stars gave nan",
    ]
    specs = resolve_tasks(
        Recipe.model_validate(own), own_kinds={"stars": kind(parse_label=lambda cell, spec: {"4": 4}[cell])}
    )
    with pytest.raises(DataError, match=r"line 3: label 'many': KeyError: 'many'"):
        prepare(specs, tokenizer_path=str(tiny_encoder), cache_dir=str(tmp_path / "cache"))


# What a kind computes is checked


def test_a_loss_that_is_not_one_number_a_row_is_refused(own: dict[str, Any]) -> None:
    from mtdnn_ds.batch import Targets
    from mtdnn_ds.losses.sums import term_table

    every = torch.arange(3)
    targets = Targets(
        rows=every,
        term_ids=torch.zeros(3, dtype=torch.int64),
        labels=torch.ones(3),
        groups=every,
        examples=np.arange(3),
    )
    for loss, got in (
        (lambda outputs, labels: ((outputs[:, 0] - labels) ** 2).mean(), "()"),
        (lambda outputs, labels: outputs, "(3, 1)"),
        (lambda outputs, labels: 0.5, "float"),
    ):
        specs = resolve_tasks(Recipe.model_validate(own), own_kinds={"stars": kind(loss=loss)})
        layout = head_layout(specs)
        with pytest.raises(ConfigError) as raised:
            losses = custom_losses(specs[0].custom, layout)  # type: ignore[arg-type]
            losses(torch.zeros(3, 1), targets, term_table(layout, "cpu"))
        assert str(raised.value) == (
            f"kind stars: its loss gave {got} for 3 rows, and must give (3,), the loss of each row: "
            "no mean and no sum, because the objective divides by the rows of the whole step"
        )


def test_rows_of_a_kind_go_to_their_own_tasks_and_nothing_waits_for_the_device(own: dict[str, Any]) -> None:
    from mtdnn_ds.batch.packed import Targets, _map_tensors
    from mtdnn_ds.losses.sums import term_table

    tasks = dict.fromkeys(("first", "second", "third"), next(iter(own["tasks"].values())))
    calls: list[list[float]] = []

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.device.type == "cpu":
            calls.append(labels.tolist())
        return outputs[:, 0] - labels

    specs = resolve_tasks(
        Recipe.model_validate({**own, "tasks": tasks}), own_kinds={"stars": kind(loss=loss)}
    )
    layout = head_layout(specs)
    losses = custom_losses(specs[0].custom, layout)  # type: ignore[arg-type]
    targets = Targets(
        rows=torch.arange(5),
        term_ids=torch.tensor([2, 0, 2, 0, 2]),  # the second task has no row
        labels=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
        groups=torch.arange(5),
        examples=np.arange(5),
    )
    outputs = torch.tensor([[10.0 * row, 0.0, 100.0 * row] for row in range(5)])
    assert targets.term_counts.tolist() == [2, 0, 3]
    assert losses(outputs, targets, term_table(layout, "cpu")).tolist() == [-1.0, 8.0, 197.0, 26.0, 395.0]
    assert calls == [[2.0, 4.0], [1.0, 3.0, 5.0]]

    # On the meta device tensors have no values: whatever asked for one would fail.
    elsewhere = _map_tensors(targets, lambda tensor: tensor.to("meta"))
    assert losses(outputs.to("meta"), elsewhere, term_table(layout, "meta")).shape == (5,)


def test_predictions_and_metrics_are_numbers() -> None:
    with pytest.raises(
        TrainingError,
        match=(
            r"^kind stars: predict made float32 of shape \(1,\) of outputs of shape \(3, 1\); "
            r"it must give \(3,\), one number for each row$"
        ),
    ):
        kind(predict=lambda outputs: outputs[:1, 0]).predictions(np.zeros((3, 1), dtype=np.float32))
    for value in (math.nan, math.inf):
        with pytest.raises(
            TrainingError,
            match=rf"^kind stars: metric 'm' of 2 predictions is {value}; it must be a finite number$",
        ):
            compute_metrics(
                ["m"],
                np.ones(2),
                np.ones(2),
                kind(metrics={"m": lambda predictions, labels, value=value: value}),
            )


def test_heads_of_tasks_are_their_own_and_drawn_from_seed_and_task() -> None:
    def build(tasks: tuple[str, ...], seed: int = 0, make: Any = torch.nn.Linear) -> Any:
        columns = {index: range(2 * index, 2 * index + 2) for index in range(len(tasks))}
        return build_custom_heads(
            make,
            kind="k",
            tasks=tasks,
            hidden_size=4,
            columns=columns,
            dropout_M=[0.0] * len(tasks),
            dropout="none",
            seed=seed,
        )

    both, alone, other = build(("a", "b")), build(("b",)), build(("a", "b"), seed=1)
    assert torch.equal(both.of_tasks[1].weight, alone.of_tasks[0].weight)
    assert not torch.equal(both.of_tasks[0].weight, both.of_tasks[1].weight)
    assert not torch.equal(both.of_tasks[0].weight, other.of_tasks[0].weight)
    states = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    outputs = both(states, torch.tensor([1, 0, 1]), [1, 2])
    for row, task in enumerate((1, 0, 1)):
        torch.testing.assert_close(outputs[row, 2 * task : 2 * task + 2], both.of_tasks[task](states[row]))
        assert not outputs[row, 2 - 2 * task : 4 - 2 * task].any(), "columns of the other task are 0"
    both(states[:0], torch.zeros(0, dtype=torch.int64), [0, 0]).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in both.parameters())
    with pytest.raises(
        ConfigError, match=r"^kind k: its head made a list; it must return a torch.nn.Module$"
    ):
        build(("a",), make=lambda size, num: [])
    with pytest.raises(
        ConfigError,
        match=(
            r"^kind k: its head turns states of shape \(2, 4\) into \(2, 3\) "
            r"and must give \(2, 2\), a row of outputs for each row$"
        ),
    ):
        build(("a",), make=lambda size, num: torch.nn.Linear(size, num + 1))


def test_dropout_of_task_and_head_is_switched_off_with_the_rest(
    own: dict[str, Any], tiny_encoder: Path
) -> None:
    def make(size: int, num: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(size, num))

    specs = resolve_tasks(Recipe.model_validate(own), own_kinds={"stars": kind(head=make)})
    specs = (dataclasses.replace(specs[0], dropout=0.4),)
    states = torch.ones(5, 32)
    for dropout in ("model", "none"):
        head = build_model(
            encoder_path=str(tiny_encoder), specs=specs, layout=head_layout(specs), dropout=dropout
        ).heads["stars_head"]  # type: ignore[arg-type]
        assert head.dropout_M.tolist() == pytest.approx([0.4 if dropout == "model" else 0.0])
        arguments = (states, torch.zeros(5, dtype=torch.int64), [5])
        assert torch.equal(head(*arguments), head(*arguments)) == (dropout == "none")


# Commands


def test_the_command_tasks_lists_kinds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtdnn_ds.cli import main

    monkeypatch.chdir(ROOT)
    assert main(["tasks", "--plugins", EXAMPLE]) == 0
    said = capsys.readouterr().out
    assert (
        "kinds of your own" in said
        and "ordinal   sequence   its own   listed by the task   accuracy, within_one" in said
    )
    assert main(["tasks", "--recipe", "recipes/own_kind.yaml"]) == 0
    assert (
        "reviews                ordinal          poor, fair, "
        "good, excellent   accuracy, within_one   train 24, dev 8"
    ) in capsys.readouterr().out
    assert main(["tasks", "--plugins", "gone.py"]) == 2
    assert main(["evaluate", "runs/x", "--plugins", EXAMPLE]) == 2
    assert (
        "--plugins: evaluate takes no settings; they come from the run's recipe.yaml"
        in capsys.readouterr().err
    )
