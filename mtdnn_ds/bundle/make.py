"""The bundle's folder: made aside and renamed, so that it is there whole or not at all.

BUNDLE/install_and_run.sh   what the node runs (its head says how)
BUNDLE/bundle.json          what the bundle was made of and for
BUNDLE/project/             the checkout, with what --include names
BUNDLE/wheels/              what the node lacks
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mtdnn_ds import __version__
from mtdnn_ds.bundle.closure import Asked, Closure, find_closure
from mtdnn_ds.bundle.contents import (
    check_size,
    checkout_files,
    commit_of,
    included_files,
    num_bytes,
    part_sizes,
)
from mtdnn_ds.bundle.node import Node, describe_node
from mtdnn_ds.bundle.wheels import check_pip, fetch_wheel
from mtdnn_ds.config.errors import ConfigError, did_you_mean
from mtdnn_ds.config.shipped import shipped_root
from mtdnn_ds.files import reason

SCRIPT = "install_and_run.sh"
_DESCRIPTION = "bundle.json"
_PROJECT = "mtdnn_ds"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """What was made."""

    path: Path
    num_bytes: int
    num_project_files: int
    num_included_files: int
    closure: Closure


def make_bundle(
    *,
    installed: str,
    output: str,
    python: str | None,
    platform: str | None,
    include: str | None,
    max_size: str | None,
    extras: str | None,
    root: Path | None = None,
) -> Bundle:
    """Pack the checkout `root` (default: that of this package) for the node that the other values describe.

    Raises ConfigError, and leaves nothing behind then.
    """
    root = (root or shipped_root()).resolve()
    target = Path(output).expanduser()
    if target.exists():
        raise ConfigError(f"--output {output}: is there already; remove it, or give another folder")

    limit = num_bytes(max_size)
    checkout = checkout_files(root)
    included = included_files(include, root, checkout)
    node = describe_node(installed, python, platform)
    requirements = _requirements(root, node, extras)
    check_size(part_sizes(checkout, included, {}), limit)  # before anything is fetched
    check_pip()

    aside = _folder_aside(target)
    try:
        with tempfile.TemporaryDirectory(prefix="mtdnn_ds_wheels_") as scratch:
            closure = find_closure(
                requirements, node, fetch=partial(fetch_wheel, node=node, folder=Path(scratch))
            )
            wheels = {name: wheel.path for name, wheel in closure.wheels.items()}
            check_size(part_sizes(checkout, included, wheels), limit)

            all_files = dict(checkout)
            for files in included.values():
                all_files |= files
            for place, source in all_files.items():
                _copy(source, aside / "project" / place)
            for source in wheels.values():
                _copy(source, aside / "wheels" / source.name)

        _write_description(aside / _DESCRIPTION, root, node, closure)
        shutil.copy(Path(__file__).with_name(SCRIPT), aside)
        total = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
        aside.rename(target)
    except OSError as error:
        raise ConfigError(f"--output {output}: could not be made: {reason(error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # renamed away where all went well

    return Bundle(
        path=target,
        num_bytes=total,
        num_project_files=len(checkout),
        num_included_files=len(all_files) - len(checkout),
        closure=closure,
    )


def _requirements(root: Path, node: Node, extras: str | None) -> list[Asked]:
    """What the checkout's pyproject.toml asks for, with these comma-separated extras."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if not SpecifierSet(project["requires-python"]).contains(node.python):
        raise ConfigError(
            f"--python {node.python}: mtdnn_ds needs Python {project['requires-python']}; name another one "
            "of the node's"
        )

    asked = [Asked(requirement=Requirement(line), by=_PROJECT) for line in project["dependencies"]]
    offered = project["optional-dependencies"]
    for extra in filter(None, (extras or "").split(",")):
        if extra not in offered:
            raise ConfigError(f"--extras {extra}: mtdnn_ds has no such extra{did_you_mean(extra, offered)}")
        asked += [Asked(requirement=Requirement(line), by=f"{_PROJECT}[{extra}]") for line in offered[extra]]
    return [each for each in asked if each.name != "mtdnn-ds"]


def _folder_aside(target: Path) -> Path:
    """A new folder beside the target, on its disk."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        return aside
    except OSError as error:
        raise ConfigError(f"--output {target}: could not be made: {reason(error)}") from error


def _copy(source: Path, target: Path) -> None:
    """With its mode: programs stay programs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _write_description(path: Path, root: Path, node: Node, closure: Closure) -> None:
    """What SCRIPT checks on the node, and what a reader may ask."""
    described = {
        "mtdnn_ds": __version__,
        "commit": commit_of(root),
        "python": ".".join(node.python.split(".")[:2]),
        "platform": node.platform,
        "wheels": {name: str(wheel.version) for name, wheel in sorted(closure.wheels.items())},
        "of_the_node": {name: str(version) for name, version in sorted(closure.of_the_node.items())},
        "replaced": {name: str(version) for name, version in sorted(closure.replaced.items())},
    }
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
