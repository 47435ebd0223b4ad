"""A small checkout, a small index and a list of a node, for the tests of this folder."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers.small_wheels import MakeBundle

from mtdnn_ds.bundle.make import Bundle, make_bundle


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is all that pip knows of."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[Sequence[str]], Path]:
    """`checkout(REQUIREMENTS)`: a git checkout of a project that asks for these, and says what it is told."""

    def write(requirements: Sequence[str]) -> Path:
        root = tmp_path / "checkout"
        (root / "mtdnn_ds").mkdir(parents=True)
        (root / "mtdnn_ds/__init__.py").write_text("")
        (root / "mtdnn_ds/__main__.py").write_text("import sys\nprint(*sys.argv[1:])\n")
        (root / ".gitignore").write_text("runs/\n")
        (root / "pyproject.toml").write_text(
            '[project]\nname = "mtdnn_ds"\nrequires-python = ">=3.11"\n'
            f"dependencies = {json.dumps(list(requirements))}\n"
            '[project.optional-dependencies]\nserve = ["served"]\n'
        )
        subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
        subprocess.run(["git", "add", "."], cwd=root, check=True)
        return root

    return write


@pytest.fixture
def make(tmp_path: Path, index: Path, checkout: Callable[[Sequence[str]], Path]) -> MakeBundle:
    """`make(REQUIREMENTS, INSTALLED, flag=value, ...)`: a bundle of the small checkout in `bundle`."""

    def make(
        requirements: Sequence[str] = (), installed: Sequence[str] = ("pip==26.0",), **flags: str | None
    ) -> Bundle:
        root = tmp_path / "checkout"
        if not root.exists():
            checkout(requirements)
        (tmp_path / "installed.txt").write_text("".join(f"{line}\n" for line in installed))
        given: dict[str, str | None] = {
            "installed": str(tmp_path / "installed.txt"),
            "output": str(tmp_path / "bundle"),
            "python": ".".join(platform.python_version_tuple()[:2]),
            "platform": "manylinux_2_28_x86_64",
            "include": None,
            "max_size": None,
            "extras": None,
        }
        return make_bundle(**{**given, **flags}, root=root)  # type: ignore[arg-type]

    return make
