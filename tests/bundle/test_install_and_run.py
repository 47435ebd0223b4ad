"""What the script of a bundle does on a node: installs without a network, checks, and runs.

The node is this machine: its Python, and a PATH with the few programs that the script may use.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from helpers.processes import ROOT
from helpers.small_wheels import MakeBundle, write_wheel

from mtdnn_ds.bundle.make import make_bundle

# Neither git nor make.
PROGRAMS = ("bash", "chmod", "dirname", "env", "mktemp", "mv", "rm")
# Gigabytes of packages, as `pip list` showed them in an environment of Python 3.12 with torch, transformers,
# pyarrow, scikit-learn and TensorBoard from PyPI.
NODE_OF_2026 = """
    absl-py==2.5.1 anyio==4.16.0 certifi==2026.10.19.post1 click==8.5.1
    cuda-bindings==13.5.0 filelock==4.3.1 fsspec==2026.9.0 grpcio==1.85.3 h11==0.16.0 hf-xet==1.8.0
    httpcore==1.0.9 httpx==0.28.1 huggingface_hub==1.33.0 idna==3.20 Jinja2==3.1.6 joblib==1.6.0
    Markdown==3.11.3 markdown-it-py==4.3.0 MarkupSafe==3.0.4 narwhals==2.29.0 networkx==3.7 numpy==2.5.5
    nvidia-cublas==13.1.0.3 packaging==26.4 pillow==13.0.0 protobuf==7.36.2 pyarrow==26.0.1
    Pygments==2.21.0 PyYAML==6.0.4 regex==2026.11.19 rich==15.0.0 safetensors==0.8.0
    scikit-learn==1.9.1 scipy==1.18.1 setuptools==81.0.0 sympy==1.14.0 tensorboard==2.21.0
    threadpoolctl==3.8.0 tokenizers==0.23.3 torch==2.11.0 tqdm==4.70.1 transformers==5.17.0 triton==3.6.0
    typing_extensions==4.16.0
"""


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str]:
    """The environment of a node: no other variable, no other program."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in PROGRAMS:
        path = shutil.which(name)
        assert path is not None, name
        (programs / name).symlink_to(path)
    return {
        "PATH": str(programs),
        "HOME": str(tmp_path),
        "PYTHON": sys.executable,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # where nobody answers
        "PIP_CONSTRAINT": "/etc/no_such_file",  # NVIDIA's images set one
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def run(bundle: Path, words: Sequence[str], node: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(bundle / "install_and_run.sh"), *words]
    return subprocess.run(
        command, env=node, cwd=bundle.parent, capture_output=True, text=True, check=False, timeout=300
    )


def test_wheels_are_installed_beside_the_script_and_used(
    make: MakeBundle, index: Path, tmp_path: Path, node: dict[str, str]
) -> None:
    write_wheel(index, "alpha_of_a_bundle", "1.0", ["beta_of_a_bundle"])
    write_wheel(index, "beta_of_a_bundle", "2.0")
    make(["alpha_of_a_bundle", "packaging"], [f"packaging=={metadata.version('packaging')}"])
    bundle = tmp_path / "bundle"

    code = (
        "import os, sys, alpha_of_a_bundle as a, beta_of_a_bundle as b, packaging, mtdnn_ds; "
        "print(a.version, b.version, mtdnn_ds.__file__, a.__file__, os.getcwd(), sys.argv[1:])"
    )
    for _ in ("installs", "finds it installed"):
        ended = run(bundle, ["python", "-c", code, "x y"], node)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.split(maxsplit=5) == [
            "1.0",
            "2.0",
            f"{bundle}/project/mtdnn_ds/__init__.py",
            f"{bundle}/packages/alpha_of_a_bundle.py",
            str(tmp_path),
            "['x y']\n",
        ]
    assert [path.name for path in bundle.iterdir() if path.name.startswith(".")] == []


def test_nothing_at_all_runs_the_doctor(make: MakeBundle, tmp_path: Path, node: dict[str, str]) -> None:
    """The small checkout's mtdnn_ds prints its words."""
    make([])
    assert run(tmp_path / "bundle", [], node).stdout == "doctor --gpu --output runs/gpu\n"
    elsewhere = {**node, "OUTPUT": "/tmp/results of mine"}
    assert run(tmp_path / "bundle", [], elsewhere).stdout == "doctor --gpu --output /tmp/results of mine\n"


def test_several_may_start_at_once(
    make: MakeBundle, index: Path, tmp_path: Path, node: dict[str, str]
) -> None:
    write_wheel(index, "alpha_of_a_bundle", "1.0")
    make(["alpha_of_a_bundle"])
    command = [str(tmp_path / "bundle/install_and_run.sh"), "python", "-c", "import alpha_of_a_bundle"]
    started = [subprocess.Popen(command, env=node, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [(process.communicate(timeout=300)[1], process.returncode) for process in started]
    assert ended == [("", 0)] * 3
    there = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert there == {"bundle.json", "install_and_run.sh", "packages", "project", "wheels"}


def test_a_node_of_another_kind_is_refused(make: MakeBundle, tmp_path: Path, node: dict[str, str]) -> None:
    bundle = tmp_path / "bundle"
    make(["no_such_package_of_ours"], ["no_such_package_of_ours==1.0"])
    ended = run(bundle, ["python", "-c", ""], node)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"error: the list for this bundle had no-such-package-of-ours, and {sys.executable} has not; name "
        "the Python that was listed (PYTHON=...), or make the list anew\n",
    )

    shutil.rmtree(bundle)
    shutil.rmtree(tmp_path / "checkout")
    make([], python="3.77")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    ended = run(bundle, ["python", "-c", ""], node)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"error: the bundle is for Python 3.77, and {sys.executable} is {here}; name another one: "
        "PYTHON=python3.77\n",
    )
    ended = run(bundle, [], {**node, "PYTHON": "python3.77"})
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: there is no python3.77; name the node's Python: PYTHON=python3.12 "
        f"{bundle}/install_and_run.sh\n",
    )
    assert not (bundle / "packages").exists()


def test_a_package_of_another_version_is_noted(
    make: MakeBundle, tmp_path: Path, node: dict[str, str]
) -> None:
    make(["packaging"], ["packaging==99.0"])
    ended = run(tmp_path / "bundle", ["python", "-c", ""], node)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (
        f"note: packaging is {metadata.version('packaging')} here, and was 99.0 in the list\n"
    )


def test_a_word_that_is_no_recipe(make: MakeBundle, tmp_path: Path, node: dict[str, str]) -> None:
    make([])
    ended = run(tmp_path / "bundle", ["train"], node)
    assert ended.returncode == 2 and ended.stderr == (
        "error: 'train': the first word must be a recipe (RECIPE.yaml) or 'python'; nothing at all runs "
        "doctor --gpu\n"
    )


# Real ones: pip asks PyPI.


def flags(**given: str) -> dict[str, str | None]:
    names = ("installed", "output", "python", "platform", "include", "max_size", "extras")
    return {name: given.get(name) for name in names}


@pytest.mark.slow
def test_what_a_node_with_torch_lacks_fits_in_sixty_mebibytes(tmp_path: Path) -> None:
    (tmp_path / "node.txt").write_text("\n".join(NODE_OF_2026.split()))
    made = make_bundle(
        **flags(
            installed=f"{tmp_path}/node.txt",
            output=f"{tmp_path}/bundle",
            python="3.12",
            platform="manylinux_2_28_x86_64",
            max_size="60MiB",
        )  # type: ignore[arg-type]
    )
    assert {
        "deepspeed",
        "datasets",
        "fire",
        "pandas",
        "plotly",
        "psutil",
        "seqeval",
    } <= made.closure.wheels.keys()
    assert {"torch", "numpy", "transformers", "scipy"} <= made.closure.of_the_node.keys()
    assert made.closure.replaced == {}
    assert 20 * 2**20 < made.num_bytes <= 60 * 2**20


@pytest.mark.slow
@pytest.mark.distributed
def test_a_real_bundle_trains(tmp_path: Path, node: dict[str, str]) -> None:
    """On a node that is this machine, with a list in which fire and seqeval are missing."""
    listed = [
        f"{found.name}=={found.version}"
        for found in metadata.distributions()
        if found.name not in ("fire", "seqeval", "mtdnn_ds")
    ]
    (tmp_path / "node.txt").write_text("\n".join(listed))
    bundle = tmp_path / "bundle"
    make_bundle(**flags(installed=f"{tmp_path}/node.txt", output=str(bundle), max_size="60MiB"))  # type: ignore[arg-type]

    words = ["recipes/quickstart_tiny.yaml", "--train.steps", "2"]
    ended = run(bundle, words, node)
    assert ended.returncode == 0, ended.stderr
    assert (bundle / "project/runs/quickstart_tiny/checkpoints/step_2").is_dir()
    code = "import fire, mtdnn_ds; print(fire.__file__, mtdnn_ds.__file__)"
    assert run(bundle, ["python", "-c", code], node).stdout.split() == [
        f"{bundle}/packages/fire/__init__.py",
        f"{bundle}/project/mtdnn_ds/__init__.py",
    ]
    assert ROOT not in bundle.parents
