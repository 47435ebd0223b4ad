"""The pages are true: commands parse, examples load, settings, tags, files and worked numbers are those of
the code. Trains nothing.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.pages import PAGES, PLACEHOLDERS, blocks, commands, rows_under, text_of
from helpers.processes import ROOT

from mtdnn_ds.cli import read_arguments
from mtdnn_ds.commands.verbs import VERBS, Verb
from mtdnn_ds.config.deepspeed_check import key_problems
from mtdnn_ds.config.schema import field_docs
from mtdnn_ds.config.stages import load_runs
from mtdnn_ds.data.plan.rates import Mixture
from mtdnn_ds.data.plan.step_plan import StepPlan, steps_for_epochs
from mtdnn_ds.losses.objective import task_scales, term_coefficients
from mtdnn_ds.monitor.flops import activation_bytes, model_state_bytes
from mtdnn_ds.monitor.run_monitor import ONLY_WHEN_ON, EvalRecord, StepRecord
from mtdnn_ds.tasks.builtin import BUILTIN_TASKS
from mtdnn_ds.tasks.metrics import METRICS
from mtdnn_ds.tasks.resolve import resolve_tasks

PROJECT_FOLDERS = (
    "benchmarks",
    "containers",
    "docs",
    "ds_configs",
    "examples",
    "launchers",
    "mtdnn_ds",
    "recipes",
    "tests",
)
DEEPSPEED_FLAGS = (
    "--num_accelerators",
    "--num_gpus",
    "--num_nodes",
    "--hostfile",
    "--include",
    "--master_addr",
    "--master_port",
    "--node_rank",
    "--no_ssh",
)
TORCHRUN_FLAGS = (
    "--standalone",
    "--nnodes",
    "--nproc_per_node",
    "--max-restarts",
    "--rdzv_backend",
    "--rdzv_endpoint",
    "--rdzv_id",
)
SBATCH_FLAGS = (
    "--nodes",
    "--gpus-per-node",
    "--cpus-per-gpu",
    "--ntasks-per-node",
    "--time",
    "--array",
    "--job-name",
    "--dependency",
)


BUNDLES_SCRIPT = "./install_and_run.sh"

PIP_WORDS = {".", "-e", ".[dev]", ".[serve,export]", "mtdnn_ds[quickstart]"}


@pytest.fixture(autouse=True)
def in_the_projects_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def blocks_of_all_pages(language: str) -> list[Any]:
    found = [
        (page, number, block) for page in PAGES for number, block in enumerate(blocks(page, language), 1)
    ]
    return [pytest.param(page, block, id=f"{page}-{number}") for page, number, block in found]


def numbers(cell: str) -> list[float]:
    return [float(part.replace(",", "")) for part in cell.split("/")]


# Commands


def check_command(words: list[str]) -> None:
    """Fails, with the project's own message, if the words are not a command that would begin to work."""
    while re.fullmatch(r"[A-Z][A-Z_]*=.*", words[0]):
        name = words[0].split("=")[0]
        assert name.startswith("TORCH_") or name in text_of("launchers/train.sbatch"), f"nothing reads {name}"
        words = words[1:]
    program = words[0]
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), flags=re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} <= targets, words
    elif program == "deepspeed":
        rest = words[1:]
        while rest[0].startswith("--"):
            assert rest[0] in DEEPSPEED_FLAGS, words
            rest = rest[1 if rest[0] == "--no_ssh" else 2 :]
        assert rest[0] == "launchers/train.py", words
        check_verb(VERBS["train"], rest[1:])
    elif words[:3] == ["python", "-m", "mtdnn_ds"]:
        assert words[3] in VERBS, words
        check_verb(VERBS[words[3]], words[4:])
    elif program == "mtdnn_ds":
        check_command(["python", "-m", *words])
    elif program == "pip":
        assert words[:2] == ["pip", "install"] and set(words[2:]) <= PIP_WORDS, words
    elif program == "torchrun":
        flags, rest = flags_with_values(words[1:])
        assert set(flags) <= set(TORCHRUN_FLAGS), words
        if rest[:2] == ["-m", "mtdnn_ds"]:
            assert VERBS[rest[2]].from_launcher, words
            check_verb(VERBS[rest[2]], rest[3:])
        else:
            assert rest[0] == "launchers/train.py", words
            check_verb(VERBS["train"], rest[1:])
    elif program == "sbatch":
        flags, rest = flags_with_values(words[1:])
        assert set(flags) <= set(SBATCH_FLAGS) and rest[0] == "launchers/train.sbatch", words
        check_verb(VERBS["train"], ["--recipe", *rest[1:]])
    elif program in ("srun", "mpirun"):
        first = next(number for number, word in enumerate(words) if word in ("python", BUNDLES_SCRIPT))
        assert "=" in words[first - 1] and all(
            word.startswith("-") or "=" in word or word.isdigit() for word in words[1:first]
        ), words
        check_command([*words[first:]])
    elif program == BUNDLES_SCRIPT:
        if words[1:2] == ["python"]:
            check_command(words[1:])
        elif words[1:]:
            check_verb(VERBS["train"], ["--recipe", *words[1:]])
    elif words[:4] == ["python3", "-m", "pip", "list"]:
        assert words[4:] == ["--format=freeze", ">", "installed.txt"], words
    elif words[:2] == ["python", "launchers/train.py"]:
        check_verb(VERBS["train"], words[2:])
    elif words[:2] == ["python", "tests/helpers/slurm_cluster.py"]:
        assert words[2] in ("start", "stop") and words[3].startswith(PLACEHOLDERS), words
    elif words[:2] == ["python", "examples/own_data.py"]:
        assert set(flags_with_values([*words[2::2], "end"])[0]) <= {"--encoder", "--output_dir"}, words
    elif program in ("docker", "apptainer"):
        assert words[1] == "build" and any(
            word.startswith("containers/") and Path(word).is_file() for word in words
        ), words
    elif program == "tensorboard":
        assert words[1] == "--logdir" and len(words) == 3, words
    else:
        assert words == ["source", ".venv/bin/activate"], f"no check for the command {words}"


def flags_with_values(words: list[str]) -> tuple[list[str], list[str]]:
    """Names of the leading --name=value and --name flags, and the words after them."""
    number = next(index for index, word in enumerate(words) if not word.startswith("--"))
    return [word.split("=")[0] for word in words[:number]], words[number:]


def check_verb(verb: Verb, arguments: list[str]) -> None:
    """Flags by the command line's own reader, settings and tasks by the recipe's."""
    values = read_arguments(verb, arguments)
    for flag in ("recipe", "deepspeed_config"):
        path = values.get(flag)
        assert path is None or path.startswith(PLACEHOLDERS) or Path(path).is_file(), f"{path} does not exist"
    recipe = values.get("recipe")
    if recipe is None or recipe.startswith(PLACEHOLDERS):
        return
    overrides = {
        name: text for name, text in values["overrides"].items() if not text.startswith(PLACEHOLDERS)
    }
    for stage in load_runs(recipe, overrides):
        resolve_tasks(stage.recipe)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_valid(page: str) -> None:
    """Also those that need what a test has not; test_doc_commands.py runs the others."""
    for command in commands(page):
        check_command(command.words)


@pytest.mark.parametrize(
    "command",
    [
        "sbatch launchers/train.sbatch recipes/nope.yaml",
        "make trian",
        "python -m mtdnn_ds plan --train.setps 1",
        "deepspeed launchers/train.py --recipe recipes/nope.yaml",
        "rm -rf runs",
    ],
)
def test_a_wrong_command_would_be_found(command: str) -> None:
    with pytest.raises(Exception, match=r"trian|setps|nope|no check for"):
        check_command(shlex.split(command))


# Examples


@pytest.mark.parametrize(("page", "block"), blocks_of_all_pages("yaml"))
def test_yaml_examples_load(page: str, block: str, tmp_path: Path) -> None:
    example = yaml.safe_load(block.replace("mine/", "recipes/"))  # what a walk has copied
    whole = {"encoder": {"path": "bert-base-uncased"}, "tasks": ["cola"], "train": {"steps": 1000}, **example}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    for stage in load_runs(str(tmp_path / "recipe.yaml"), {}):
        assert [spec.name for spec in resolve_tasks(stage.recipe) if not stage.source] == (
            [] if stage.source else list(whole["tasks"])
        )


def test_the_example_of_an_own_task_is_that_of_the_recipe() -> None:
    shipped = yaml.safe_load(text_of("recipes/own_task.yaml"))["tasks"]
    (in_readme,) = blocks("README.md", "yaml")
    assert yaml.safe_load(in_readme)["tasks"] == shipped
    in_page = yaml.safe_load(blocks("docs/tasks.md", "yaml")[0])["tasks"]["support"]
    assert in_page.items() <= shipped["support"].items()


def test_json_examples_have_the_fields_of_the_code() -> None:
    (deepspeed,) = blocks("docs/recipes.md", "json")
    assert key_problems(json.loads(deepspeed), "docs/recipes.md") == []
    training, evaluation = (json.loads(block) for block in blocks("docs/tensorboard.md", "json"))
    assert list(training) == list(step_record().json_fields())
    assert list(evaluation) == list(EvalRecord(step=1, eval={}, average=0.0).json_fields())
    fields = re.findall(
        r"`(\w+)`", " ".join(row[0] for row in rows_under("docs/tensorboard.md", "An evaluation line:"))
    )
    assert set(fields) == {*training, *evaluation}


# Tables of settings, tags, tasks, metrics, flags


def test_the_table_of_settings_is_that_of_the_recipe() -> None:
    table = rows_under("docs/recipes.md", "## Settings")
    expected = [[f"`{doc.name}`", doc.type.replace("|", "\\|"), doc.default] for doc in field_docs()]
    assert [row[:3] for row in table] == expected
    for row, doc in zip(table, field_docs(), strict=True):
        assert row[3] == doc.description.replace("|", "\\|") if doc.description else row[3], (
            f"the meaning of {doc.name}"
        )


def test_the_table_of_train_flags_is_that_of_the_command() -> None:
    assert [row[0].strip("`") for row in rows_under("docs/recipes.md", "Other flags of `train`")] == [
        f"--{flag.name}" for flag in VERBS["train"].flags
    ]


def test_the_tables_of_tags_are_those_of_the_board() -> None:
    record = EvalRecord(step=1, eval={"TASK": {"METRIC": 0.5}}, average=0.5)
    of_some_runs = {
        "regularizer": 1.0,
        "penalty": 1.0,
        "task_scale": {"TASK": 1.0},
        "task_grad_norm": {"TASK": 1.0},
    }
    step = replace(step_record(), **of_some_runs)
    tags = {tag for tag, _ in (*step.scalars(), *record.scalars())}
    always, sometimes = (
        {row[0].strip("`") for row in rows_under("docs/tensorboard.md", heading)}
        for heading in ("## Tags", "Runs that have one of these")
    )
    assert always | sometimes == tags
    assert {tag.partition("/")[0] for tag in sometimes} == set(of_some_runs) == set(ONLY_WHEN_ON)


def test_the_table_of_tasks_is_that_of_the_code() -> None:
    described = [
        [f"`{name}`", task.kind, ", ".join(task.labels) or "-", ", ".join(task.metrics)]
        for name, task in BUILTIN_TASKS.items()
    ]
    assert [row[:4] for row in rows_under("docs/tasks.md", "## Built-in tasks")] == described
    assert [row[0].strip("`") for row in rows_under("docs/tasks.md", "### Metrics")] == list(METRICS)


def step_record() -> StepRecord:
    return StepRecord(
        step=1, loss=1.0, task_loss={"TASK": 1.0}, task_examples={"TASK": 1},
        lr=1.0, grad_norm=1.0, loss_scale=1.0, skipped=False,
        tokens=1,
        tokens_per_second=1.0, padding_efficiency=1.0, rank_imbalance=1.0, micro_batches=1, seconds=1.0,
    )  # fmt: skip


# Worked numbers


SIZES = {"mnli": 392_702, "sst2": 67_349, "mrpc": 3_668, "rte": 2_490}


def test_worked_example_of_rates() -> None:
    table = rows_under("docs/mixing.md", "Four tasks of GLUE")
    assert [row[0] for row in table] == ["proportional", "temperature", "cap", "uniform", "annealed"]
    for mode, *cells in table:
        mixture = Mixture(rates=mode, temperature=2.0, cap=131_072, anneal_to=0.2, mixing="per_example")
        plan = StepPlan(
            sizes=SIZES, mixture=mixture, examples_per_step=32, seed=0, total_steps=1000, data_fingerprint=""
        )
        drawn = plan.drawn(1000)
        computed = np.stack([drawn / drawn.sum(), drawn, plan.epochs(1000)], axis=1)
        np.testing.assert_allclose(computed, [numbers(cell) for cell in cells], rtol=0, atol=5.01e-3)
        np.testing.assert_allclose(computed[:, 0], [numbers(cell)[0] for cell in cells], rtol=0, atol=5.01e-5)
    assert steps_for_epochs(3, SIZES, 32) == 43_708 and "is 43,708 steps" in text_of("docs/mixing.md")


def test_worked_example_of_loss_scales() -> None:
    counts = np.array([24, 6, 2])
    for scale, *cells in rows_under("docs/mixing.md", "A step with 24 examples"):
        explicit = yaml.safe_load(scale) if scale.startswith("{") else {}
        factors = [explicit.get(task, 1.0) for task in ("mnli", "sst2", "stsb")]
        scales = task_scales(
            counts,
            "explicit" if explicit else scale,
            log_spaces=(np.log(3), np.log(2), 0.0),
            explicit=factors,
        )
        coefficients = term_coefficients(scales, counts, (0, 1, 2))
        for cell, coefficient, count in zip(cells, coefficients, counts, strict=True):
            share, factor = numbers(cell)
            assert share == pytest.approx(coefficient * count, abs=5.01e-5)
            assert factor == pytest.approx(coefficient, abs=5.01e-6)


def test_worked_example_of_memory() -> None:
    for ranks, *cells in rows_under("docs/zero.md", "The parts are weights"):
        for stage, cell in enumerate(cells):
            states = model_state_bytes(
                num_parameters=335_141_888,
                zero_stage=stage,  # type: ignore[arg-type]
                precision="bf16" if stage else "autocast",
                num_ranks=int(ranks),
                gradient_bytes=4,
            )
            assert float(cell) == pytest.approx(states.device / 1e9, abs=5.01e-3), (ranks, stage)
    sizes = dict(num_tokens=8192, num_layers=24, hidden_size=1024, intermediate_size=4096, bytes_per_value=2)
    assert activation_bytes(**sizes) / 1e9 == pytest.approx(6.85, abs=5e-3)
    assert activation_bytes(**sizes, gradient_checkpointing=True) / 1e9 == pytest.approx(0.69, abs=5e-3)


# Files


def test_the_readme_is_one_page() -> None:
    text = text_of("README.md")
    assert len(text.splitlines()) <= 150 and len(text.encode()) <= 12_000


def test_the_diff_of_a_page_fits_the_code() -> None:
    (patch,) = blocks("docs/architecture.md", "diff")
    tried = subprocess.run(["git", "apply", "--check"], input=patch, cwd=ROOT, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr


def test_every_room_is_described() -> None:
    """Rooms of the package, with the rooms inside them: docs/architecture.md has a line for each."""
    described = text_of("docs/architecture.md")
    rooms = [path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "mtdnn_ds").rglob("__init__.py")]
    assert [room for room in rooms if room != "mtdnn_ds" and f"`{room}/`" not in described] == []


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = re.findall(r"\]\((\w+\.md)\)", text_of("docs/index.md"))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} == set(listed)


@pytest.mark.parametrize("page", ["docs/architecture.md"])
def test_functions_that_pages_name_exist(page: str) -> None:
    """`room/file.py:function` names a function or class of that file."""
    missing = []
    for path, name in re.findall(r"`([\w/]+\.py):(\w+)`", text_of(page)):
        source = (ROOT / "mtdnn_ds" / path).read_text() if (ROOT / "mtdnn_ds" / path).exists() else ""
        if not re.search(rf"^ *(def|class) {name}\b", source, flags=re.MULTILINE):
            missing.append(f"{path}:{name}")
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_files_and_links_that_pages_name_exist(page: str) -> None:
    text = text_of(page)
    named = re.findall(rf"(?<![\w./-])(?:{'|'.join(PROJECT_FOLDERS)})/[\w./-]*\w", text)
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if not target.startswith("http")]
    is_pattern = re.compile(r"/[A-Z]+(\.\w+)?$")  # recipes/NAME.yaml
    missing = [name for name in named if not (ROOT / name).exists() and not is_pattern.search(name)] + [
        link for link in links if not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert missing == []


def test_every_shipped_configuration_and_recipe_is_described() -> None:
    shipped = {
        f"`{path.relative_to(ROOT)}`"
        for folder in ("ds_configs", "recipes")
        for path in (ROOT / folder).glob("*.*")
    }
    described = {
        row[0]
        for row in (*rows_under("docs/zero.md", "| file |"), *rows_under("docs/recipes.md", "| recipe |"))
    }
    assert described == shipped
