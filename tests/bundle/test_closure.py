"""Which wheels come along: what is missing on the node, and what that asks for there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.small_wheels import MakeBundle, wheel_names, write_wheel

from mtdnn_ds.config.errors import ConfigError


def test_what_is_missing_comes_along_and_what_it_asks_for(
    make: MakeBundle, index: Path, tmp_path: Path
) -> None:
    write_wheel(index, "alpha", "1.0")
    write_wheel(index, "alpha", "2.1", ["gamma<2", "delta", "onwindows; sys_platform == 'win32'"])
    write_wheel(index, "gamma", "1.5", ["old; python_version < '3.12'", "new; python_version >= '3.12'"])
    write_wheel(index, "gamma", "2.0")
    write_wheel(index, "new", "1.0")
    made = make(["alpha>=1", "beta>=3"], ["Beta==3.2", "delta==0.1"], python="3.12")

    assert wheel_names(tmp_path / "bundle") == [
        "alpha-2.1-py3-none-any.whl",
        "gamma-1.5-py3-none-any.whl",
        "new-1.0-py3-none-any.whl",
    ]
    there = {name: str(version) for name, version in made.closure.of_the_node.items()}
    assert there == {"beta": "3.2", "delta": "0.1"}


def test_a_later_range_takes_another_release(make: MakeBundle, index: Path, tmp_path: Path) -> None:
    write_wheel(index, "alpha", "2.0")
    write_wheel(index, "alpha", "3.0")
    write_wheel(index, "beta", "1.0", ["alpha<3"])
    make(["alpha", "beta"])
    assert wheel_names(tmp_path / "bundle") == ["alpha-2.0-py3-none-any.whl", "beta-1.0-py3-none-any.whl"]


def test_an_extra_of_what_is_installed_is_looked_up(make: MakeBundle, index: Path, tmp_path: Path) -> None:
    write_wheel(index, "alpha", "1.0", ["files[http]"])
    write_wheel(index, "files", "1.0", ["aio; extra == 'http'", "plain"])
    write_wheel(index, "files", "2.0", ["other; extra == 'http'"])
    write_wheel(index, "aio", "1.0")
    make(["alpha"], ["files==1.0"])
    assert wheel_names(tmp_path / "bundle") == ["aio-1.0-py3-none-any.whl", "alpha-1.0-py3-none-any.whl"]


def test_extras_of_the_project_and_of_wheels(make: MakeBundle, index: Path, tmp_path: Path) -> None:
    write_wheel(index, "served", "1.0", ["files"])
    write_wheel(index, "alpha", "1.0", ["files[http]"])
    write_wheel(index, "files", "1.0", ["aio; extra == 'http'", "tar; extra == 'tar'"])
    write_wheel(index, "aio", "1.0")
    make(["alpha"], extras="serve")
    assert wheel_names(tmp_path / "bundle") == [
        "aio-1.0-py3-none-any.whl",
        "alpha-1.0-py3-none-any.whl",
        "files-1.0-py3-none-any.whl",
        "served-1.0-py3-none-any.whl",
    ]


@pytest.mark.parametrize(
    ("python", "platform", "expected"),
    [
        ("3.12", "manylinux_2_28_x86_64", "alpha-1.0-cp312-cp312-manylinux_2_28_x86_64.whl"),
        ("3.13.2", "manylinux_2_17_x86_64", "alpha-1.0-cp313-cp313-manylinux_2_17_x86_64.whl"),
        ("3.13", "manylinux2014_x86_64", "alpha-1.0-cp313-cp313-manylinux_2_17_x86_64.whl"),
        ("3.12", "manylinux_2_39_aarch64", "alpha-1.0-cp312-cp312-manylinux2014_aarch64.whl"),
    ],
)
def test_wheels_are_those_of_the_nodes_python_and_platform(
    make: MakeBundle, index: Path, tmp_path: Path, python: str, platform: str, expected: str
) -> None:
    for tag in (
        "cp312-cp312-manylinux_2_28_x86_64",
        "cp312-cp312-manylinux_2_34_x86_64",
        "cp313-cp313-manylinux_2_17_x86_64",
        "cp312-cp312-manylinux2014_aarch64",
        "cp312-cp312-win_amd64",
    ):
        write_wheel(index, "alpha", "1.0", tag=tag)
    make(["alpha"], python=python, platform=platform)
    assert wheel_names(tmp_path / "bundle") == [expected]


def test_what_does_not_fit_is_replaced(make: MakeBundle, index: Path, tmp_path: Path) -> None:
    write_wheel(index, "alpha", "2.0")
    made = make(["alpha>=2"], ["alpha==1.4"])
    assert {name: str(version) for name, version in made.closure.replaced.items()} == {"alpha": "1.4"}
    assert wheel_names(tmp_path / "bundle") == ["alpha-2.0-py3-none-any.whl"]


def test_a_package_without_a_published_wheel_is_built(make: MakeBundle, index: Path, tmp_path: Path) -> None:
    """seqeval is one of them. pip builds nothing where there is a wheel after all."""
    write_wheel(index, "seqeval", "1.2.2")
    make(["seqeval"])
    assert wheel_names(tmp_path / "bundle") == ["seqeval-1.2.2-py3-none-any.whl"]


def refused(make: MakeBundle, *arguments: list[str], **flags: str | None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        make(*arguments, **flags)
    return error.value.problems


def test_torch_and_numpy_stay_the_nodes(make: MakeBundle) -> None:
    """Found without asking pip, which has no index at all here."""
    needed = ["torch>=2.10,<3", "numpy>=2", "alpha"]
    assert refused(make, needed, ["numpy==1.26.4"]) == (
        "--installed: torch is not in the list (mtdnn_ds needs <3,>=2.10); a bundle never brings torch and "
        "CUDA packages (gigabytes, made for the node's driver): install it on the node, then list again what "
        "is installed there",
        "--installed: numpy is 1.26.4 (mtdnn_ds needs >=2); other packages of the node are compiled against "
        "it, and would fail with another one: install another version there, then list again",
    )
    assert refused(make, needed, ["torch==2.10.0a0+nv25.12"]) == (
        "--installed: torch is 2.10.0a0+nv25.12 (mtdnn_ds needs <3,>=2.10); a bundle never brings torch and "
        "CUDA packages: install another version on the node, then list again",
    )


def test_cuda_packages_of_wheels_are_refused(make: MakeBundle, index: Path) -> None:
    write_wheel(index, "alpha", "1.0", ["nvidia-cublas"])
    (problem,) = refused(make, ["alpha"])
    assert problem.startswith(
        "--installed: nvidia-cublas is not in the list (alpha needs it); a bundle never"
    )


def test_everything_that_cannot_be_had_is_said_at_once(make: MakeBundle, index: Path) -> None:
    write_wheel(index, "alpha", "1.0", ["gamma>=2"])
    write_wheel(index, "beta", "1.0", tag="cp39-cp39-manylinux_2_17_x86_64")
    write_wheel(index, "gamma", "1.0")
    beta, gamma = refused(make, ["alpha", "beta"], python="3.12")
    assert beta.startswith(
        "no wheel of beta for Python 3.12 on manylinux_2_28_x86_64 (mtdnn_ds needs it): No matching "
        "distribution found for beta"
    )
    assert gamma.startswith(
        "no wheel of gamma>=2 for Python 3.12 on manylinux_2_28_x86_64 (alpha needs >=2): No matching"
    )


def test_an_index_that_cannot_be_reached_ends_it(
    make: MakeBundle, monkeypatch: pytest.MonkeyPatch, index: Path
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    (problem,) = refused(make, ["alpha", "beta"])
    assert problem == (
        "pip download alpha: the package index cannot be reached from here; make the bundle where there is a "
        "network, or set PIP_INDEX_URL to a mirror"
    )


def test_a_package_that_is_listed_without_a_version(make: MakeBundle) -> None:
    (problem,) = refused(make, ["torch>=2"], ["torch @ file:///opt/torch"])
    assert re.fullmatch(
        r"--installed: torch stands there without a version; make the list .*--format=freeze", problem
    )


def test_a_wheel_that_is_listed_by_its_file_says_its_version(make: MakeBundle) -> None:
    wheel = "torch @ file:///opt/torch-2.11.0%2Bcu130-cp312-cp312-linux_x86_64.whl#sha256=00"
    made = make(["torch>=2.10"], [wheel])
    assert str(made.closure.of_the_node["torch"]) == "2.11.0+cu130"
