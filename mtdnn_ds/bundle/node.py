"""The machine that a bundle is for: its Python, its platform, what is installed on it. Knows no wheel.

Nothing is asked of that machine: all this is told by the user, from a list that pip wrote there.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.files import reason

# torch's own wheels for Linux carry this tag: a node that runs torch runs whatever has it.
_DEFAULT_TAG = "manylinux_2_28"
# https://peps.python.org/pep-0600/#legacy-manylinux-tags
_LEGACY_TAGS = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
_PINNED = re.compile(r"(?P<name>[\w.-]+)={2,3}(?P<version>\S+)")
_FROM_FILE = re.compile(r"(?P<name>[\w.-]+)\s*@\s*(?P<address>\S+)")
_HOW_TO_LIST = "make the list on the node: python3 -m pip list --format=freeze > installed.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """Names of packages are canonical: scikit-learn, not Scikit_Learn."""

    python: str  # 3.12 or 3.12.1
    platform: str  # manylinux_2_28_x86_64: the newest tag whose wheels run there
    installed: Mapping[str, Version]
    without_version: frozenset[str]  # installed from a folder or a repository, which says no version

    @property
    def machine(self) -> str:
        """Its processor, as wheels name it: x86_64."""
        return _tag_parts(self.platform)[1]

    def platform_tags(self) -> list[str]:
        """Every tag whose wheels run there, the newest first: pip takes each for itself alone."""
        newest, machine = _tag_parts(self.platform)
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
        return tags + [f"{tag}_{machine}" for tag, minor in _LEGACY_TAGS.items() if minor <= newest]

    def marker_environment(self) -> dict[str, str]:
        """What environment markers of requirements see there."""
        full = self.python
        if full.count(".") == 1:
            full += ".0"
        return {
            "implementation_name": "cpython",
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": full,
            "python_version": ".".join(full.split(".")[:2]),
            "sys_platform": "linux",
        }


def describe_node(installed: str, python: str | None, platform_tag: str | None) -> Node:
    """The node that the list `installed` (a file), a Python and a platform describe; None: those of this
    machine.

    Raises ConfigError with everything that is wrong.
    """
    problems: list[str] = []
    python = python or platform.python_version()
    if not re.fullmatch(r"3\.\d+(\.\d+)?", python):
        problems.append(f"--python {python}: must be the version of a Python 3, e.g. 3.12 or 3.12.1")

    platform_tag = platform_tag or f"{_DEFAULT_TAG}_{platform.machine()}"
    if _tag_parts(platform_tag) is _UNKNOWN:
        problems.append(
            f"--platform {platform_tag}: must be a tag of wheels for Linux, e.g. manylinux_2_28_x86_64 "
            "(2_28: the node's glibc, as `ldd --version` says there)"
        )

    versions, without_version = _read_list(Path(installed).expanduser(), problems)
    if problems:
        raise ConfigError(problems)
    return Node(
        python=python, platform=platform_tag, installed=versions, without_version=frozenset(without_version)
    )


_UNKNOWN = (0, "")


def _tag_parts(tag: str) -> tuple[int, str]:
    """(minor version of glibc, machine) of a manylinux tag; _UNKNOWN of another."""
    found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", tag)
    if found:
        return int(found[1]), found[2]

    name, _, machine = tag.partition("_")
    if name in _LEGACY_TAGS and machine:
        return _LEGACY_TAGS[name], machine
    return _UNKNOWN


# The list


def _read_list(path: Path, problems: list[str]) -> tuple[dict[str, Version], list[str]]:
    """Versions by name, and names without one, of what `pip freeze` or `pip list --format=freeze` wrote."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"--installed {path}: {reason(error)}; {_HOW_TO_LIST}")
        return {}, []

    versions: dict[str, Version] = {}
    without_version: list[str] = []
    strange: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith(("#", "-")):  # -e: an editable project
            continue

        name, version = _entry(text)
        if not name:
            strange.append(f"--installed {path}, line {number}: '{text[:60]}' is not NAME==VERSION")
        elif version is None:
            without_version.append(canonicalize_name(name))
        else:
            versions[canonicalize_name(name)] = version

    if strange:
        # A file of another kind is wrong in every line.
        problems.append(f"{strange[0]} ({len(strange)} such lines); {_HOW_TO_LIST}")
    elif not versions and not without_version:
        problems.append(f"--installed {path}: lists no package; {_HOW_TO_LIST}")
    return versions, without_version


def _entry(line: str) -> tuple[str, Version | None]:
    """Name and version of a line; "" if it is none. `torch @ file:///opt/torch-2.11.0-...whl` says both."""
    pinned = _PINNED.fullmatch(line)
    if pinned:
        try:
            return pinned["name"], Version(pinned["version"])
        except InvalidVersion:
            return pinned["name"], None

    from_file = _FROM_FILE.fullmatch(line)
    if not from_file:
        return "", None

    file_name = from_file["address"].partition("#")[0].rpartition("/")[2].replace("%2B", "+")
    try:
        return from_file["name"], parse_wheel_filename(file_name)[1]
    except InvalidWheelFilename:
        return from_file["name"], None
