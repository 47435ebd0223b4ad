"""The promise that imports only go down, and that heavy or optional packages stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {
    "config": 0,
    "dist": 0,
    "tasks": 1,
    "batch": 1,
    "data": 2,
    "model": 2,
    "losses": 2,
    "train": 3,
    "check": 4,
    "export": 4,
    "report": 4,
    "predict": 5,
    "commands": 7,
    "cli": 8,
    "api": 9,
    "__main__": 9,
}
ONLY_IN = {
    "deepspeed": ("mtdnn_ds/train/", "launchers/"),
    "fire": ("mtdnn_ds/cli.py",),
    "flash_attn": ("mtdnn_ds/model/attention.py",),
    "apex": ("mtdnn_ds/model/fused_norms.py", "mtdnn_ds/train/engine.py", "mtdnn_ds/train/optimizer.py"),
    "tensorboard": ("mtdnn_ds/monitor/run_monitor.py", "mtdnn_ds/monitor/tensorboard.py"),
}


def imports_of(path: Path) -> list[str]:
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.append(node.module or "")
            modules += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "mtdnn_ds"]
    return modules


def unit_of(path: Path) -> str:
    return path.relative_to(ROOT / "mtdnn_ds").with_suffix("").parts[0]


def test_imports_only_go_down() -> None:
    wrong = []
    for path in sorted((ROOT / "mtdnn_ds").rglob("*.py")):
        unit = unit_of(path)
        for module in imports_of(path):
            parts = module.split(".")
            if parts[0] != "mtdnn_ds" or len(parts) < 2 or parts[1] not in LAYERS or unit == "__init__":
                continue
            if parts[1] != unit and LAYERS[parts[1]] >= LAYERS[unit]:
                wrong.append(f"{path.relative_to(ROOT)} ({unit}) imports {module}")
    assert wrong == []


def test_heavy_packages_stay_in_their_files() -> None:
    wrong = []
    for path in sorted((*(ROOT / "mtdnn_ds").rglob("*.py"), *(ROOT / "launchers").rglob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        for module in imports_of(path):
            allowed = ONLY_IN.get(module.split(".")[0])
            if allowed is not None and not name.startswith(allowed):
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_files_stay_small() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in (ROOT / "mtdnn_ds").rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 330} == {}
