"""Plugin files: task kinds of the user's own, from Python files that define KIND or KINDS. Runs those files,
and keeps no registry."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.tasks.kinds import KINDS
from mtdnn_ds.tasks.layout import FORMS
from mtdnn_ds.tasks.spec import CustomKind

RESERVED = (*KINDS, *(form for form in FORMS if form not in KINDS))
"""A kind of one's own is a form of losses too (tasks/layout.py), and may be called like none of ours."""


def load_plugins(paths: Sequence[str]) -> dict[str, CustomKind]:
    """{name: kind} of all kinds that the files define; a file is run once in a process. Raises ConfigError
    with the problems of all files."""
    problems: list[str] = []
    kinds: dict[str, CustomKind] = {}
    owners: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        for kind in _kinds_in(path, problems):
            if kind.name in RESERVED:
                problems.append(
                    f"plugins: {path}: '{kind.name}' is the name of a built-in kind or loss; "
                    "give yours another one"
                )
            elif kind.name in kinds:
                also = "there" if owners[kind.name] == path else f"in {owners[kind.name]}"
                problems.append(
                    f"plugins: {path}: a kind '{kind.name}' is defined {also} already; rename one of them"
                )
            kinds.setdefault(kind.name, kind)
            owners.setdefault(kind.name, path)

    if problems:
        raise ConfigError(problems)
    return kinds


def _kinds_in(path: str, problems: list[str]) -> list[CustomKind]:
    file = Path(path).expanduser()
    if file.suffix != ".py":
        problems.append(f"plugins: {path}: is not a Python file (.py)")
        return []
    try:
        source = file.read_bytes()
    except OSError as error:
        problems.append(f"plugins: {path}: cannot be read ({error.strerror}; looked for {file.absolute()})")
        return []
    try:
        module = _module(file, source)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is theirs to mend
        problems.append(f"plugins: {path}{_line_of(error, file)}: {_said(error)}")
        return []
    fingerprint = hashlib.sha256(source).hexdigest()
    return [replace(kind, fingerprint=fingerprint) for kind in _defined(module, path, problems)]


def _module(file: Path, source: bytes) -> ModuleType:
    """The file, run as a module. Not by the import system, which would leave a cache beside it and trust that
    one by the clock."""
    identity = hashlib.sha256(str(file.resolve()).encode() + source).hexdigest()[:16]
    name = f"mtdnn_ds_plugin_{file.stem}_{identity}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(file)
    code = compile(source, str(file), "exec")
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _line_of(error: BaseException, file: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f", line {error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
    ]
    if not lines:
        return ""
    return f", line {lines[-1]}"


def _said(error: BaseException) -> str:
    text = (error.msg if isinstance(error, SyntaxError) else str(error)).replace(
        "CustomKind.__init__()", "CustomKind"
    )
    return f"{type(error).__name__}: {text}"


def _defined(module: ModuleType, path: str, problems: list[str]) -> list[CustomKind]:
    one, several = getattr(module, "KIND", None), getattr(module, "KINDS", None)
    if (one is None) == (several is None):
        what = "defines neither KIND nor KINDS" if one is None else "defines both KIND and KINDS"
        problems.append(
            f"plugins: {path}: {what}; write one of KIND = CustomKind(...) and KINDS = [CustomKind(...), ...]"
        )
        return []

    name, listed = "KINDS", several
    if one is not None:
        name, listed = "KIND", [one]
    if not isinstance(listed, (list, tuple)) or not listed:
        problems.append(f"plugins: {path}: KINDS must be a list of CustomKind(...), not {listed!r}")
        return []

    kinds = []
    for each in listed:
        if isinstance(each, CustomKind):
            kinds.append(each)
        else:
            problems.append(f"plugins: {path}: {name} holds a {type(each).__name__}, not a CustomKind")
    return kinds
