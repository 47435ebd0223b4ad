"""Which files come along, how large they may be, and what is refused before anything is written."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers.processes import ROOT
from helpers.small_wheels import MakeBundle, wheel_names, write_wheel

from mtdnn_ds.cli import main
from mtdnn_ds.config.errors import ConfigError


def files_of(bundle: Path) -> list[str]:
    return sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())


def test_the_checkout_as_it_lies_there(
    make: MakeBundle, checkout: Callable[[Sequence[str]], Path], tmp_path: Path
) -> None:
    """Tracked and new files, with their modes; nothing that git ignores, and nothing of git's own."""
    root = checkout([])
    (root / "runs").mkdir()
    (root / "runs/metrics.jsonl").write_text("")
    (root / "launch.sh").write_text("#!/bin/sh\n")
    (root / "launch.sh").chmod(0o755)
    (root / "deleted.py").write_text("")
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    (root / "deleted.py").unlink()
    (root / "new file.py").write_text("")
    (root / "elsewhere").symlink_to(tmp_path)

    made = make([])
    assert files_of(tmp_path / "bundle") == [
        "bundle.json",
        "install_and_run.sh",
        "project/.gitignore",
        "project/launch.sh",
        "project/mtdnn_ds/__init__.py",
        "project/mtdnn_ds/__main__.py",
        "project/new file.py",
        "project/pyproject.toml",
    ]
    assert os.access(tmp_path / "bundle/project/launch.sh", os.X_OK)
    assert os.access(tmp_path / "bundle/install_and_run.sh", os.X_OK)
    assert (made.num_project_files, made.num_included_files) == (6, 0)
    assert made.num_bytes == sum(
        path.stat().st_size for path in (tmp_path / "bundle").rglob("*") if path.is_file()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bundle",
        "checkout",
        "index",
        "installed.txt",
    ]


def test_included_files_keep_their_place_or_go_to_the_project(
    make: MakeBundle, checkout: Callable[[Sequence[str]], Path], tmp_path: Path
) -> None:
    """A folder of the hub's cache is made of links to files: the files come."""
    root = checkout([])
    (root / "runs/first").mkdir(parents=True)
    (root / "runs/first/recipe.yaml").write_text("a")
    (tmp_path / "blob").write_text("weights")
    (tmp_path / "MiniLM").mkdir()
    (tmp_path / "MiniLM/model.safetensors").symlink_to(tmp_path / "blob")
    made = make([], include=f"{root}/runs/first,{tmp_path}/MiniLM")

    project = tmp_path / "bundle/project"
    assert (project / "runs/first/recipe.yaml").read_text() == "a"
    weights = project / "MiniLM/model.safetensors"
    assert weights.read_text() == "weights" and not weights.is_symlink()
    assert made.num_included_files == 2


def test_what_is_wrong_with_included_paths_is_said_at_once(
    make: MakeBundle, checkout: Callable[[Sequence[str]], Path], tmp_path: Path
) -> None:
    root = checkout([])
    (tmp_path / "mtdnn_ds").mkdir()
    (tmp_path / "mtdnn_ds/__init__.py").write_text("another")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/glue").symlink_to(tmp_path)
    paths = ("nowhere", f"{tmp_path}/mtdnn_ds", f"{root}/mtdnn_ds", f"{tmp_path}/data")
    with pytest.raises(ConfigError) as refused:
        make([], include=",".join(paths))
    assert refused.value.problems == (
        "--include nowhere: there is no such file or folder",
        f"--include {paths[1]}: another file is packed as project/mtdnn_ds/__init__.py already; rename one",
        f"--include {paths[2]}: brings nothing that is not packed already; remove it",
        f"--include {paths[3]}: {tmp_path}/data/glue is a link to a folder; name that folder",
    )


def test_a_bundle_that_is_too_large_leaves_nothing_behind(
    make: MakeBundle, index: Path, tmp_path: Path
) -> None:
    wheel = write_wheel(index, "alpha", "1.0", num_bytes=3 * 2**20)
    (tmp_path / "weights").write_bytes(bytes(2 * 2**20))
    include = f"{tmp_path}/weights"
    before = sorted(tmp_path.iterdir())

    with pytest.raises(ConfigError) as refused:
        make(["alpha"], include=include, max_size="4MiB")
    assert str(refused.value).startswith(
        "--max_size: the bundle would be 5.0 MiB, and may be 4.0 MiB; the largest parts: "
        f"wheels/alpha-1.0-py3-none-any.whl 3.0 MiB, --include {include} 2.0 MiB, project/pyproject.toml "
    )
    assert str(refused.value).endswith("; leave something out, or raise --max_size")
    assert {*tmp_path.iterdir()} - {*before} == {tmp_path / "checkout", tmp_path / "installed.txt"}

    make(["alpha"], include=include, max_size="5.1 MiB")
    assert wheel_names(tmp_path / "bundle") == [wheel.name]


def test_a_folder_that_is_there_is_not_touched(make: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/mine").write_text("")
    with pytest.raises(ConfigError) as refused:
        make([])
    assert str(refused.value) == (
        f"--output {tmp_path}/bundle: is there already; remove it, or give another folder"
    )
    assert files_of(tmp_path / "bundle") == ["mine"]


def test_a_disk_that_takes_nothing_is_named(make: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .*/file/bundle: could not be made: .*File exists"):
        make([], output=f"{tmp_path}/file/bundle")


def test_a_folder_that_is_no_checkout_is_refused(make: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    with pytest.raises(ConfigError) as refused:
        make([])
    assert str(refused.value) == (
        f"{tmp_path}/checkout is no git checkout: bundle packs the files of one; clone mtdnn_ds, and run "
        "`python -m mtdnn_ds bundle` in that folder"
    )


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            {"python": "3.12.x"},
            "--python 3.12.x: must be the version of a Python 3, e.g. 3.12 or 3.12.1",
        ),
        ({"python": "3.10"}, "--python 3.10: mtdnn_ds needs Python >=3.11; name another one of the node's"),
        ({"platform": "win_amd64"}, "--platform win_amd64: must be a tag of wheels for Linux, e.g. "),
        ({"max_size": "60"}, "--max_size 60: must be a size with its unit, e.g. 60MiB, 500MB or 2GiB"),
        (
            {"extras": "serv"},
            "--extras serv: mtdnn_ds has no such extra; did you mean 'serve'? (known: serve)",
        ),
    ],
)
def test_flags_that_mean_nothing(make: MakeBundle, flags: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make([], **flags)
    assert str(refused.value).startswith(problem)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            [],
            ": lists no package; make the list on the node: python3 -m pip list --format=freeze > installed",
        ),
        (
            ["Package Version", "------- -------", "torch   2.11.0"],
            ", line 1: 'Package Version' is not NAME==VERSION (2 such lines); make the list on the node: ",
        ),
    ],
)
def test_a_list_that_is_none(make: MakeBundle, tmp_path: Path, lines: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make([], lines)
    assert str(refused.value).startswith(f"--installed {tmp_path}/installed.txt{problem}")


def test_the_description_says_what_was_packed_for_whom(make: MakeBundle, index: Path, tmp_path: Path) -> None:
    write_wheel(index, "alpha", "2.0")
    make(["alpha>=2", "beta"], ["alpha==1.0", "beta==3.1"], python="3.12.4")
    described = json.loads((tmp_path / "bundle/bundle.json").read_text())
    del described["mtdnn_ds"]
    assert described == {
        "commit": "none",
        "python": "3.12",
        "platform": "manylinux_2_28_x86_64",
        "wheels": {"alpha": "2.0"},
        "of_the_node": {"beta": "3.1"},
        "replaced": {"alpha": "1.0"},
    }


def test_the_verb_packs_this_checkout(
    tmp_path: Path, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is missing on a node with the lowest versions of everything."""
    (tmp_path / "node.txt").write_text((ROOT / "requirements-lowest.txt").read_text())
    words = ["bundle", "--installed", f"{tmp_path}/node.txt", "--output", f"{tmp_path}/new/bundle"]
    assert main([*words, "--python", "3.12", "--max_size", "30MiB"]) == 0

    said = capsys.readouterr().out.splitlines()
    assert said[0] == "0 wheels: the node has everything"
    assert said[1].startswith(f"{tmp_path}/new/bundle: ") and said[1].endswith(
        " files of the checkout, 0 included"
    )
    assert said[2] == "on the node: ./bundle/install_and_run.sh [RECIPE.yaml]"
    packed = {*files_of(tmp_path / "new/bundle")}
    assert packed >= {
        "project/mtdnn_ds/bundle/install_and_run.sh",
        "project/recipes/glue.yaml",
        "project/tests/bundle/test_contents.py",
    }

    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: --output {tmp_path}/new/bundle: is there already")
    assert main(["bundle"]) == 2
    assert capsys.readouterr().err.startswith("error: --installed: is missing: what the node has: a file ")
