"""One wheel from pip: fetched for another machine, or built here where none is published. Decides nothing.

pip runs in processes of its own, with the user's settings: indexes, mirrors, `PIP_NO_INDEX`,
`PIP_FIND_LINKS`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import parse_wheel_filename
from packaging.version import Version

from mtdnn_ds.bundle.node import Node
from mtdnn_ds.config.errors import ConfigError

# On PyPI these are sources alone. Variables: no CUDA op is compiled into DeepSpeed's wheel; each is compiled
# on its first use, on the node.
_BUILT_HERE: Mapping[str, Mapping[str, str]] = {"deepspeed": {"DS_BUILD_OPS": "0"}, "seqeval": {}}
_QUIET = ("--quiet", "--disable-pip-version-check", "--no-input")


class NoWheel(Exception):
    """There is no wheel of a package in the range that fits the node. Its text says which and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A wheel on this machine's disk, and what it asks for."""

    version: Version
    path: Path
    requires: tuple[Requirement, ...]


def check_pip() -> None:
    """Raises ConfigError where this Python has no pip."""
    tried = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if tried.returncode != 0:
        raise ConfigError(
            f"{sys.executable} has no pip, which fetches the wheels; install it with: {sys.executable} -m "
            "ensurepip"
        )


def fetch_wheel(name: str, wanted: SpecifierSet, node: Node, folder: Path) -> Wheel:
    """The newest wheel of `name` in `wanted` for the node, in a new folder inside `folder`.

    Raises NoWheel; ConfigError if the index cannot be reached.
    """
    target = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    requirement = f"{name}{wanted}"
    if name in _BUILT_HERE:
        _pip("wheel", requirement, ["--wheel-dir", str(target)], _BUILT_HERE[name])
    else:
        _pip("download", requirement, ["--dest", str(target), *_target_flags(node)], {})

    (path,) = target.glob("*.whl")
    _, version, _, tags = parse_wheel_filename(path.name)
    if name in _BUILT_HERE and not any(tag.platform == "any" and tag.abi == "none" for tag in tags):
        raise NoWheel(f"{path.name} was built here, and fits machines like this one only")
    return Wheel(version=version, path=path, requires=_requires(path))


def _target_flags(node: Node) -> list[str]:
    flags = ["--only-binary=:all:", "--implementation", "cp", "--python-version", node.python]
    for tag in node.platform_tags():
        flags += ["--platform", tag]
    return flags


def _pip(verb: str, requirement: str, flags: list[str], variables: Mapping[str, str]) -> None:
    """`pip VERB --no-deps` to its end. Raises NoWheel with pip's own reason, or ConfigError."""
    command = [sys.executable, "-m", "pip", verb, "--no-deps", *_QUIET, *flags, requirement]
    ended = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if ended.returncode == 0:
        return

    errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR: ")]
    last = errors[-1].removeprefix("ERROR: ") if errors else ended.stderr.strip()[-300:]
    # pip ends with "No matching distribution" of an index that it could not reach too.
    if "Retrying (Retry(" in ended.stderr:
        raise ConfigError(
            f"pip {verb} {requirement}: the package index cannot be reached from here; make the bundle where "
            "there is a network, or set PIP_INDEX_URL to a mirror"
        )
    raise NoWheel(last)


def _requires(path: Path) -> tuple[Requirement, ...]:
    """The Requires-Dist of a wheel."""
    with zipfile.ZipFile(path) as archive:
        (name,) = [
            name
            for name in archive.namelist()
            if name.count("/") == 1 and name.endswith(".dist-info/METADATA")
        ]
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    return tuple(Requirement(line) for line in metadata.get_all("Requires-Dist", []))
