"""What fuzzing has found, as literal cases with their messages:
each was a traceback, a hang, or taken in silence. Draws nothing (test_fuzz.py does).
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from mtdnn_ds.checkpoint.find import open_checkpoint
from mtdnn_ds.checkpoint.manifest import damage, write_manifest
from mtdnn_ds.cli import read_arguments
from mtdnn_ds.commands.verbs import VERBS
from mtdnn_ds.config.deepspeed import load_deepspeed_json
from mtdnn_ds.config.errors import CheckpointError, ConfigError, UserError
from mtdnn_ds.config.load import dump_recipe, load_recipe
from mtdnn_ds.config.stages import load_runs
from mtdnn_ds.data.plan.rates import Mixture
from mtdnn_ds.data.plan.step_plan import MAX_STEPS, StepPlan
from mtdnn_ds.monitor.run_monitor import cut_metrics
from mtdnn_ds.tasks.resolve import resolve_tasks

ENCODER = "encoder: {path: here}\n"
REST = "tasks: [cola]\ntrain: {steps: 4}\n"

RECIPES = {
    "a list among the tasks": (
        ENCODER + "tasks: [[], cola]\ntrain: {steps: 4}",
        "tasks=[[], 'cola']: must be a mapping",
    ),
    "aliases that mean 9^8 values": (
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{n}: &{n} [{','.join(['*' + o] * 9)}]\n" for o, n in zip("abcdefg", "bcdefgh", strict=True)
        ),
        "f.yaml:1: holds more than 100,000 values, aliases written out; make it smaller",
    ),
    "an alias to what it is in": (
        "a: &a [*a]",
        "f.yaml:1: this value contains itself through its alias; write it out",
    ),
    "merged into itself": (
        "a: &a {<<: *a}",
        "f.yaml:1: this value contains itself through its alias; write it out",
    ),
    "60 lists in each other": (
        "a: " + "[" * 60 + "]" * 60,
        "f.yaml:1: values are nested more than 50 deep; write them flatter",
    ),
    "20,000 open brackets": ("[" * 20_000, "f.yaml: values are nested more than 50 deep; write them flatter"),
    "a tag of a date": (
        "a: !!timestamp never",
        "f.yaml:1: tag 'tag:yaml.org,2002:timestamp' has no meaning here; remove it",
    ),
    "a tag of a number": (
        "a: 1\nb: !!int many",
        "f.yaml:2: 'many' is no int, as its tag says; remove the tag",
    ),
    "a tag that runs code": ("a: !!python/name:os.system ''", "has no meaning here; remove it"),
    "a number of 5,000 digits": (
        "a: " + "9" * 5000,
        "f.yaml:1: a number of 5,000 digits; write a smaller one",
    ),
    "U+0000 by an escape": ('a: "\\0"', "f.yaml:1: text holds U+0000, which is no character; remove it"),
    "half a character by an escape": (
        'a: "\\ud800"',
        "f.yaml:1: text holds U+D800, which is no character; remove it",
    ),
    "more steps than 64 bits": (
        ENCODER + f"tasks: [cola]\ntrain: {{steps: {10**30}}}",
        "train.steps: is a number of 31 digits; whole numbers go up to 4,294,967,296",
    ),
    "a negative one": (
        ENCODER + REST + f"batch: {{examples_per_step: {-(10**30)}}}",
        "batch.examples_per_step: is a number of 31 digits",
    ),
    "a path of 300 letters": (
        f"encoder: {{path: {'a' * 300}}}\n" + REST,
        "is too long for a path (2,000 bytes, 200 for each name in it); use shorter names",
    ),
    "a home of nobody": (
        "encoder: {path: ~nobody_here/bert}\n" + REST,
        "encoder.path: ~nobody_here/bert: there is no user nobody_here; write the whole path",
    ),
    "a cache of nobody": (
        ENCODER + REST + "data: {cache_dir: ~nobody_here/x}",
        "data.cache_dir: ~nobody_here/x: there is no user nobody_here",
    ),
    "a name too long for a folder": (
        ENCODER + f"tasks: {{{'t' * 300}: {{kind: classification}}}}\ntrain: {{steps: 4}}",
        "a task name is made of up to 100 letters",
    ),
    "600,000 bytes": (
        "#" * 600_000,
        "f.yaml: is larger than 512 KiB, so it is no recipe; give the right file",
    ),
}


@pytest.mark.parametrize(("text", "message"), RECIPES.values(), ids=list(RECIPES))
def test_recipe_is_refused(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        [resolve_tasks(stage.recipe) for stage in load_runs("f.yaml", {})]
    assert message in str(refused.value)


def test_aliases_in_reason_are_taken(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(
        ENCODER
        + "tasks:\n  cola: &same {dropout: 0.2}\n  rte: *same\n  sst2: {<<: *same}\ntrain: {steps: 4}\n"
    )
    tasks = load_recipe(str(tmp_path / "f.yaml"), {}).tasks
    assert [tasks[name].dropout for name in ("cola", "rte", "sst2")] == [0.2, 0.2, 0.2]


def test_invisible_characters_come_back(tmp_path: Path) -> None:
    """Written as escapes, they are texts like others;
    a run's own recipe.yaml held them as they are, and could not be read again.
    """
    (tmp_path / "f.yaml").write_text(
        ENCODER
        + 'tasks: {mine: {kind: classification, labels: ["a\\u202e", "\\x85é"]}}\n'
        + "train: {steps: 4}\n"
    )
    recipe = load_recipe(str(tmp_path / "f.yaml"), {})
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "again.yaml"), {}) == recipe
    assert recipe.tasks["mine"].labels == ["a\u202e", "\x85é"]


JSONS = {
    "60 lists in each other": (
        '{"a": ' + "[" * 60 + "]" * 60 + "}",
        "f.json: values are nested more than 50 deep; write them flatter",
    ),
    "20,000 open brackets": ("[" * 20_000, "f.json: values are nested more than 50 deep; write them flatter"),
    "a number of 5,000 digits": (
        '{"a": ' + "9" * 5000 + "}",
        "f.json: a number of more than 400 digits; write a smaller one",
    ),
    "a number that is infinite": (
        '{"gradient_clipping": 1e999}',
        "f.json: a number that is inf; write one that JSON knows, below 1e308",
    ),
    "half a character": ('{"a": "\\ud800"}', "f.json: text holds U+D800, which is no character; remove it"),
    "a key twice": ('{"c": 1,\n"c": 2}', "f.json:2: key 'c' is given twice; keep one"),
    "a key twice, where YAML cannot tell the line": (
        '{"' + "k" * 2000 + '": 1, "c": 1,\n"c": 2}',
        "f.json: key 'c' is given twice; keep one",
    ),
}


@pytest.mark.parametrize(("text", "message"), JSONS.values(), ids=list(JSONS))
def test_json_is_refused(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.json").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_deepspeed_json("f.json")
    assert str(refused.value) == message


def test_json_that_yaml_cannot_read_is_taken(tmp_path: Path) -> None:
    """A key of more than 1,024 characters: a traceback of the YAML parser, which only knows the lines."""
    (tmp_path / "f.json").write_text(json.dumps({"k" * 2000: 1}))
    assert load_deepspeed_json(str(tmp_path / "f.json")) == {"k" * 2000: 1}


@pytest.mark.timeout(20)
def test_pipes_and_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe without a writer would be waited for, and /dev/zero read, for ever."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for path in ("pipe", "/dev/zero", "/dev/null"):
        for read in (lambda path=path: load_recipe(path, {}), lambda path=path: load_deepspeed_json(path)):
            with pytest.raises(
                ConfigError,
                match=f"{path}: is a pipe or a device, and a .* is read more than once; save it to a file",
            ):
                read()  # type: ignore[no-untyped-call]
    task = {"kind": "classification", "text_columns": ["a"], "label_column": "b", "labels": ["x", "y"]}
    Path("folder.csv").mkdir()
    os.mkfifo("pipe.csv")
    for name in ("folder.csv", "pipe.csv"):
        Path("f.yaml").write_text(
            json.dumps(
                {
                    "encoder": {"path": "x"},
                    "tasks": {"t": {**task, "files": {"train": name}}},
                    "train": {"steps": 4},
                }
            )
        )
        with pytest.raises(ConfigError, match=rf"tasks\.t\.files\.train={name}: no such file"):
            resolve_tasks(load_recipe("f.yaml", {}))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(ConfigError, match="socket: cannot read this recipe: No such device or address"):
            load_recipe("socket", {})
    for path in ("a\x00b", "\ud800", "a" * 5000, "", "."):
        with pytest.raises(ConfigError):
            load_recipe(path, {})


FLAGS = {
    "a flag without a name": (
        "tasks",
        ["--=x"],
        "'--=x': the name of a flag begins with a letter; write --name value",
    ),
    "a folder of 300 letters": (
        "train",
        ["--output_dir", "a" * 300],
        f"--output_dir {'a' * 60}: is too long for a path",
    ),
    "a file name of no encoding": (
        "evaluate",
        ["--run_dir", "a\udcff"],
        "holds U+DCFF, which is no character; rename the file or folder",
    ),
}


@pytest.mark.parametrize(("verb", "arguments", "message"), FLAGS.values(), ids=list(FLAGS))
def test_flag_is_refused(verb: str, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_arguments(VERBS[verb], arguments)
    assert message in str(refused.value)


def test_epochs_that_are_too_many_steps_are_refused() -> None:
    mixture = Mixture(rates="uniform", temperature=1.0, cap=1, anneal_to=1.0, mixing="per_example")
    plan = dict(mixture=mixture, examples_per_step=1, seed=0, data_fingerprint="")
    with pytest.raises(ConfigError, match="a run of more than 4,294,967,296 steps; make it shorter"):
        StepPlan(sizes={"a": 1}, total_steps=10**300, **plan)  # type: ignore[arg-type]
    assert StepPlan(sizes={"a": 1, "b": 9}, total_steps=MAX_STEPS, **plan).drawn(MAX_STEPS).tolist() == [
        2**31,
        2**31,
    ]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "manifest", ['{"files": {"a": {"bytes": 1e999, "sha256": ""}}}', "[" * 9000, "\ufeff"]
)
def test_a_broken_manifest_is_damage(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    assert damage(tmp_path) == "manifest.json is not readable"
    (tmp_path / "run_state.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(
        json.dumps({"files": {name: {"bytes": 2, "sha256": "x"} for name in ("b" * 300, "run_state.json")}})
    )
    assert damage(tmp_path) == f"{'b' * 200} is missing"


@pytest.mark.parametrize("state", ["[]", "{}", '{"step": "x"}', "[" * 9000, ""])
def test_a_run_state_without_a_step_is_refused(state: str, tmp_path: Path) -> None:
    (tmp_path / "run_state.json").write_text(state)
    write_manifest(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"run_state\.json is as it was written, but names no step; resume from another checkpoint",
    ):
        open_checkpoint(tmp_path)


def test_a_deep_line_of_a_log_is_cut(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + "[" * 9000 + "\n")
    assert cut_metrics(tmp_path / "metrics.jsonl", 1) == 1
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("names", ["[1]", '"train"', "{}", "[" * 9000])
def test_a_saved_dataset_with_broken_names_is_refused(names: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ' + names + "}")
    recipe = (
        f"tasks: {{mine: {{kind: classification, dataset: {tmp_path}, "
        f"text_columns: [a], label_column: b, labels: [x, y]}}}}\ntrain: {{steps: 4}}\n"
    )
    (tmp_path / "f.yaml").write_text(ENCODER + recipe)
    with pytest.raises(
        UserError, match=r"its dataset_dict\.json is not readable; save the dataset again with save_to_disk"
    ):
        resolve_tasks(load_recipe(str(tmp_path / "f.yaml"), {}))
