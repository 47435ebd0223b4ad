"""The house: imports go down only, no file imports itself in a circle, heavy packages stay in their files,
every file says what it is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from helpers.processes import ROOT

PACKAGE = ROOT / "mtdnn_ds"

# From the ground up. Rooms of one line are siblings: none imports another.
LAYERS = (
    ("config", "batch", "dist", "counter_hash"),
    ("tasks", "files"),
    ("faults",),
    ("data", "model", "losses", "checkpoint"),
    ("runs", "monitor", "mt_dnn"),
    ("predict", "export", "report", "train"),
    ("check", "experiments", "bundle"),
    ("api",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
GROUND = LAYERS[0]  # small files and rooms that may use one another
ONLY_IN = {
    "deepspeed": (
        "mtdnn_ds/train/",
        "mtdnn_ds/checkpoint/",
        "mtdnn_ds/runs/device.py",
        "mtdnn_ds/monitor/console.py",
        "launchers/",
    ),
    "fire": ("mtdnn_ds/cli.py",),
    "flash_attn": ("mtdnn_ds/model/attention.py",),
    "apex": ("mtdnn_ds/model/fused_norms.py", "mtdnn_ds/train/engine.py", "mtdnn_ds/train/optimizer.py"),
    "tensorboard": ("mtdnn_ds/monitor/",),
    "triton": ("mtdnn_ds/model/dropout/triton_masks.py",),
}
# Words in docstrings and comments that name a file.
FILE_NAME = re.compile(r"(?<![\w/.-])((?:[\w.-]+/)*[\w-]+\.(?:py|md))\b")
# Files of libraries and of exported folders, and an example.
OF_OTHERS = {
    "README.md",
    "conftest.py",
    "examples/pytorch/question-answering/run_qa.py",
    "launch.py",
    "room/file.py",
    "run_glue.py",
    "run_ner.py",
    "runtime/zero/parameter_offload.py",
    "runtime/zero/partitioned_param_coordinator.py",
}


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[str]:
    """Modules, and names that may be modules, that a file imports anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_imports_only_go_down() -> None:
    modules = {module_of(path) for path in sources()}
    wrong = []
    for path in sources():
        room = room_of(module_of(path))
        if not room:
            continue  # mtdnn_ds/__init__.py offers what others define
        for imported in set(imports_of(path)) & modules:
            other = room_of(imported)
            if other in ("", room) or LEVELS[other] < LEVELS[room]:
                continue
            if not (room in GROUND and other in GROUND):
                wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    assert wrong == []


def test_every_room_has_its_place() -> None:
    rooms = {room_of(module_of(path)) for path in sources()} - {""}
    assert rooms == set(LEVELS)


def test_no_file_imports_itself_in_a_circle() -> None:
    paths = {module_of(path): path for path in sources()}
    graph = {
        module: {name for name in imports_of(path) if name in paths and name != module}
        for module, path in paths.items()
    }
    # A package is imported with any of its files; what its __init__ offers comes from them, which is no
    # circle of theirs.
    packages = {module for module, path in paths.items() if path.name == "__init__.py"}

    left = {module: names - packages for module, names in graph.items() if module not in packages}
    while True:
        leaves = {module for module, names in left.items() if not names & left.keys()}
        if not leaves:
            break
        left = {module: names for module, names in left.items() if module not in leaves}
    assert left == {}, "each of these imports another of them"


def test_heavy_packages_stay_in_their_files() -> None:
    wrong = []
    for path in (*sources(), *sources(ROOT / "launchers")):
        name = path.relative_to(ROOT).as_posix()
        for module in imports_of(path):
            allowed = ONLY_IN.get(module.split(".")[0])
            if allowed is not None and not name.startswith(allowed):
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_files_stay_small() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources()}
    assert {name: length for name, length in lengths.items() if length > 330} == {}
    assert len(list((PACKAGE / "train").glob("*.py"))) <= 12


def test_every_file_says_what_it_is() -> None:
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in (
            *sources(),
            *sources(ROOT / "tests"),
            *sources(ROOT / "launchers"),
            *sources(ROOT / "benchmarks"),
        )
        if not (ast.get_docstring(ast.parse(path.read_text())) or "").strip()
    ]
    assert silent == []


def named_files(path: Path) -> Iterator[str]:
    """Names of files in the docstrings and comments of a source."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield from FILE_NAME.findall(ast.get_docstring(node) or "")
    for line in text.splitlines():
        if "#" in line and '"' not in line:
            yield from FILE_NAME.findall(line.partition("#")[2])


def test_files_that_docstrings_name_are_there() -> None:
    wrong = []
    for path in (
        *sources(),
        *sources(ROOT / "tests"),
        *sources(ROOT / "launchers"),
        *sources(ROOT / "benchmarks"),
    ):
        places = (ROOT, PACKAGE, ROOT / "tests", path.parent)
        for name in named_files(path):
            if name not in OF_OTHERS and not any((place / name).exists() for place in places):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []
