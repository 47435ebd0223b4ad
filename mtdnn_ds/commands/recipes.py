"""`recipes`: the recipes, DeepSpeed configurations and launchers that come with the package.

Runs none of them.
"""

from __future__ import annotations

from pathlib import Path

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.config.shipped import FOLDERS, copy_shipped, shipped_files, shipped_root


def run(*, copy: str | None, to: str | None) -> int:
    """List the files, or copy the one that `copy` names into the folder `to`; returns the exit code."""
    if copy is None:
        if to is not None:
            raise ConfigError(f"--to {to}: has an effect with --copy only; remove it, or name a file to copy")
        _list()
        return 0

    for path in copy_shipped(copy, Path(to or ".")):
        print(f"written: {path}")
    return 0


def _list() -> None:
    files = shipped_files()
    width = max(len(file.name) for file in files)
    for folder in FOLDERS:
        print(f"{shipped_root() / folder}:")
        for file in files:
            if file.path.startswith(f"{folder}/"):
                print(f"  {file.name:<{width}}  {file.about}")
        print()
    print("recipes --copy NAME [--to FOLDER] copies one, with the files that it names")
