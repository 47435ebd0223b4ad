"""Wheels of packages that hold one line, for a folder that pip takes for an index. Not a test file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mtdnn_ds.bundle.make import Bundle

MakeBundle = Callable[..., Bundle]  # tests/bundle/conftest.py:make


def write_wheel(
    folder: Path,
    name: str,
    version: str,
    requires: Sequence[str] = (),
    *,
    tag: str = "py3-none-any",
    num_bytes: int = 0,
) -> Path:
    """`import NAME; NAME.version` works once it is installed. `requires`: its Requires-Dist; `num_bytes`: of
    a file in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {line}" for line in requires]
    about = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": f"version = {version!r}\n",
        f"{module}.bin": "0" * num_bytes,
        f"{about}/METADATA": "\n".join(metadata) + "\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"])

    path = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for place, text in files.items():
            archive.writestr(place, text)
    return path


def wheel_names(bundle: Path) -> list[str]:
    """The files of a bundle's wheels."""
    return sorted(path.name for path in bundle.glob("wheels/*"))
