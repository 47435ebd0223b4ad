"""Which files go into a bundle, from where, under which names, and how large they are. Copies nothing."""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError

Files = dict[str, Path]  # place below the bundle's project/ -> file on this disk

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_LARGEST = 8  # parts that a refusal names


def checkout_files(root: Path) -> Files:
    """The files of the checkout that git tracks, and the new ones that it does not ignore, as they lie there.

    Raises ConfigError outside a checkout.
    """
    if not (root / ".git").exists():
        raise ConfigError(
            f"{root} is no git checkout: bundle packs the files of one; clone mtdnn_ds, and run `python -m "
            "mtdnn_ds bundle` in that folder"
        )

    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise ConfigError("git is missing, which tells the files of the checkout: install it") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"{root}: git cannot list its files: {error.stderr.strip()}") from error

    files: Files = {}
    for name in sorted(filter(None, listed.split("\0"))):
        path = root / name
        # Deleted, and not committed yet; or a link to a folder elsewhere, which is no file of the project.
        if path.is_file():
            files[name] = path
    return files


def commit_of(root: Path) -> str:
    """The commit of a checkout; with `+changes` where files differ from it, `none` before the first."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "none"


def included_files(include: str | None, root: Path, checkout: Files) -> dict[str, Files]:
    """{PATH: its files} for the comma-separated paths of the user.

    What lies in the checkout keeps its place there; what lies elsewhere goes to project/NAME. Raises
    ConfigError with everything wrong with the paths.
    """
    found: dict[str, Files] = {}
    taken, problems = dict(checkout), []
    for text in filter(None, (include or "").split(",")):
        path = Path(text).expanduser()
        if not path.exists():
            problems.append(f"--include {text}: there is no such file or folder")
            continue

        files, links = _files_below(path, _place(path.resolve(), root))
        problems += [f"--include {text}: {link} is a link to a folder; name that folder" for link in links]
        new = {place: file for place, file in files.items() if place not in taken}
        others = [
            place for place, file in files.items() if place in taken and not taken[place].samefile(file)
        ]
        if others:
            problems.append(
                f"--include {text}: another file is packed as project/{others[0]} already; rename one"
            )
        elif not new and not links:
            problems.append(f"--include {text}: brings nothing that is not packed already; remove it")
        found[text] = new
        taken |= new

    if problems:
        raise ConfigError(problems)
    return found


def _place(path: Path, root: Path) -> str:
    if path.is_relative_to(root) and path != root:
        return path.relative_to(root).as_posix()
    return path.name


def _files_below(path: Path, place: str) -> tuple[Files, list[Path]]:
    """A file, or the files of a folder; and the links to folders in it. Links to files are followed."""
    if path.is_file():
        return {place: path}, []

    files: Files = {}
    links: list[Path] = []
    for folder, folders, names in os.walk(path):
        links += [Path(folder, name) for name in folders if Path(folder, name).is_symlink()]
        for name in names:
            file = Path(folder, name)
            files[f"{place}/{file.relative_to(path).as_posix()}"] = file
    return files, links


# Sizes


def num_bytes(text: str | None) -> int | None:
    """`60MiB` in bytes. Raises ConfigError."""
    if text is None:
        return None

    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmg]i?b)", text, flags=re.IGNORECASE)
    if not found:
        raise ConfigError(f"--max_size {text}: must be a size with its unit, e.g. 60MiB, 500MB or 2GiB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def part_sizes(checkout: Files, included: Mapping[str, Files], wheels: Mapping[str, Path]) -> dict[str, int]:
    """Bytes of each folder of the checkout, each path of the user, each wheel."""
    sizes: dict[str, int] = defaultdict(int)
    for place, file in checkout.items():
        sizes[f"project/{place.partition('/')[0]}"] += file.stat().st_size
    for text, files in included.items():
        sizes[f"--include {text}"] += sum(file.stat().st_size for file in files.values())
    for file in wheels.values():
        sizes[f"wheels/{file.name}"] += file.stat().st_size
    return dict(sizes)


def check_size(sizes: Mapping[str, int], limit: int | None) -> None:
    """Raises ConfigError, with the largest parts, if they are more than `limit` bytes together."""
    total = sum(sizes.values())
    if limit is None or total <= limit:
        return

    largest = sorted(sizes.items(), key=lambda part: -part[1])[:_LARGEST]
    parts = ", ".join(f"{name} {mebibytes(size)}" for name, size in largest)
    raise ConfigError(
        f"--max_size: the bundle would be {mebibytes(total)}, and may be {mebibytes(limit)}; the largest "
        f"parts: {parts}; leave something out, or raise --max_size"
    )


def mebibytes(size: int) -> str:
    """`41.2 MiB`; of less than a tenth the bytes."""
    if size < 2**20 / 10:
        return f"{size:,} bytes"
    return f"{size / 2**20:.1f} MiB"
