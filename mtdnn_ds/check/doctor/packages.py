"""Versions against what the project asks for, compilers, DeepSpeed's C++ ops, and locks that interrupted
builds leave. Builds nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from mtdnn_ds.check.doctor.findings import Finding

# Of a checkout: the ranges that the code runs with, and the versions that its tests run with.
_CHECKOUT = Path(__file__).resolve().parents[3]
# DeepSpeed's C++ ops that optimizer.name=deepspeed_adamw compiles on its first use: without and with
# optimizer offload.
OPS = ("fused_adam", "cpu_adam")


def package_findings(checkout: Path = _CHECKOUT) -> list[Finding]:
    """Whether what is installed is in the ranges of pyproject.toml, and what requirements.txt asks for."""
    project, pinned = checkout / "pyproject.toml", checkout / "requirements.txt"
    if not (project.is_file() and pinned.is_file()):
        what = "pyproject.toml and requirements.txt are not beside the package: versions are not compared"
        return [Finding(check="packages", status="note", what=what)]

    needed = tomllib.loads(project.read_text())["project"]["dependencies"]
    wrong, versions = _compare_versions(needed)
    if wrong:
        advice = (
            "DeepSpeed, torch and transformers change behaviour between versions: pip install -r "
            "requirements.txt"
        )
        return [Finding(check="packages", status="fails", what="; ".join(wrong), advice=advice)]

    main = [f"{name} {versions[name]}" for name in ("torch", "deepspeed", "transformers") if name in versions]
    installed = f"Python {platform.python_version()}, {', '.join(main)}"
    others, tested = _compare_versions(pinned.read_text().splitlines())
    if others:
        what = f"{installed}; all in the ranges of pyproject.toml, not as requirements.txt says: "
        return [Finding(check="packages", status="note", what=what + "; ".join(others))]
    what = f"{installed}; {len(tested)} packages as requirements.txt says"
    return [Finding(check="packages", status="ok", what=what)]


def _compare_versions(requirements: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """What differs, and the installed version of every package that the requirements name."""
    from packaging.requirements import Requirement

    wrong, versions = [], {}
    for line in requirements:
        text = line.split("#")[0].strip()
        if not text or text.startswith("-"):
            continue

        wanted = Requirement(text)
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        versions[wanted.name] = version
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} is {version} instead of {wanted.specifier}")
    return wrong, versions


def extensions_folder() -> Path:
    """Where torch keeps compiled extensions: TORCH_EXTENSIONS_DIR, or its default in the home folder."""
    from torch.utils import cpp_extension

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())


def op_findings(folder: Path) -> list[Finding]:
    """C++ ops: built, to be built at first use, or not buildable; and locks in `folder` that would be waited
    on for ever.
    """
    findings = [_built_finding(folder)]
    locks = sorted(folder.glob("**/lock"))
    if locks:
        what = f"{', '.join(map(str, locks))}: a build is going on, or was interrupted"
        advice = "every later run waits on such a lock without a word; if no build is going on, remove it"
        findings.append(Finding(check="C++ ops", status="hurts", what=what, advice=advice))
    return findings


def _built_finding(folder: Path) -> Finding:
    built = {path.parent.name for path in folder.glob("**/*.so")}
    waiting = [op for op in OPS if op not in built]
    if not waiting:
        return Finding(check="C++ ops", status="ok", what=f"{', '.join(OPS)} are built in {folder}")

    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        what = f"{', '.join(waiting)} are not built, and {' and '.join(missing)} is missing"
        advice = "optimizer.name=deepspeed_adamw compiles them: install the tools to use it"
        return Finding(check="C++ ops", status="note", what=what, advice=advice)

    what = f"{', '.join(waiting)} are not built yet"
    advice = (
        "the first run of each node with optimizer.name=deepspeed_adamw builds what it needs (about a minute "
        f"each) and keeps it in {folder}"
    )
    return Finding(check="C++ ops", status="note", what=what, advice=advice)
