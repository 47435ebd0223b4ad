"""Every command of README.md and docs/ is run, in the order of its page, or says what it needs that a test
has not; of `make`, `pip`, `source` and `tensorboard`, other tests run what they do.

A page runs in a scratch folder where the files of recipes/ are small ones: a tiny encoder, two steps,
generated data in the official layouts. PATH/TO/ holds small files of the names that pages give. A run folder
that a page reads and has not made is a copy of one that was made once. Launchers are left out: what they
start runs as one process. Numbers of steps and of repeats are lowered. What runs elsewhere is named in
`commands_run_here`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import warm
from helpers.page_files import Files, small_recipe, write_data, write_scratch
from helpers.pages import NEEDS, PAGES, Command, commands
from helpers.processes import ROOT
from helpers.tiny_encoders import write_tiny_encoder

from mtdnn_ds.config.launch import free_port

# The pages that a newcomer reads first run in `make test`; all of them in `make test-all`.
FIRST_PAGES = ("README.md", "docs/walk_own_data.md")

# Values of flags that cost time and mean nothing to a test.
SMALL_VALUES = {
    "--train.steps": "2",
    "--train.epochs": "0.1",
    "--train.save_every": "1",
    "--schedule.warmup": "1",
    "--board.embeddings": "8",
    "--fractions": "0.1,1",
    "--samplings": "1",
    "--seeds": "1",
}
MORE_FLAGS = {
    "adapt": {"--min_steps": "2", "--train.steps": "2"},
    "compare": {"--mixture.rates": "uniform"},
    "verify": {"--max_ranks": "1"},  # on two: check/test_verify.py
}

GLUE = "recipes/glue_small.yaml"
QUICKSTART = "recipes/quickstart.yaml"
OWN_TASK = "recipes/own_task.yaml"
# Which recipe made the run folders that pages read; of others it is GLUE.
MADE_BY = {"runs/quickstart": QUICKSTART, "runs/quick": QUICKSTART, "runs/own": OWN_TASK}


def commands_run_here(page: str) -> list[Command]:
    """Without those that other tests run, that change the reader's shell only, or that need what not every
    machine has.
    """
    return [
        command
        for command in commands(page)
        if command.needs is None
        and command.words[0] not in ("make", "pip", "source", "tensorboard")
        and command.words[-2:] != ["verify", QUICKSTART]  # check/test_verify.py
        and "--rehearse" not in command.words  # check/test_gpu_rehearsal.py
    ]


@pytest.fixture(scope="module")
def files(once: Callable[..., Path], official_files: Path, minilm: Path) -> Files:
    def write_encoder(folder: Path) -> None:
        # Four layers: pages freeze the first three and read the fourth.
        write_tiny_encoder(folder, minilm, num_hidden_layers=4)

    return Files(
        encoder=once("encoder_of_pages", write_encoder),
        official=official_files,
        data=once("files_of_pages", lambda folder: write_data(folder, official_files)),
    )


@pytest.fixture(scope="module")
def made(once: Callable[..., Path], files: Files) -> Callable[[str], Path]:
    """`made(RECIPE)`: a finished run folder of the small recipe, made once; copy it."""

    def train(recipe: str, folder: Path) -> None:
        write_scratch(folder, files)
        ended = run_in(folder, ["launchers/train.py", "--recipe", recipe, "--output_dir", "runs/made"])
        assert ended.returncode == 0, said(ended)

    def made(recipe: str) -> Path:
        name = f"run_of_pages_{Path(recipe).stem}"
        return once(name, lambda folder: train(recipe, folder)) / "runs/made"

    return made


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page in FIRST_PAGES else [pytest.mark.slow])
        for page in PAGES
        if commands_run_here(page)
    ],
)
def test_commands_of_a_page_run(page: str, tmp_path: Path, files: Files, made: Callable[[str], Path]) -> None:
    write_scratch(tmp_path, files)
    for command in commands_run_here(page):
        ended = run_one(command, tmp_path, files, made)
        assert ended.returncode == 0, f"{page}:{command.line}: {' '.join(command.words)}\n{said(ended)}"


def test_targets_of_make_exist() -> None:
    """What they do is done by other tests; here they need only be known to make."""
    calls = {tuple(command.words) for page in PAGES for command in commands(page)}
    targets = {word for program, *words in calls for word in words if program == "make"}
    tried = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
    assert targets and tried.returncode == 0, tried.stderr


def test_what_a_command_needs_is_one_of_few_things() -> None:
    needed = {command.needs for page in PAGES for command in commands(page)}
    assert needed - {None} == set(NEEDS)


def test_tensorboard_shows_the_runs_of_a_folder(made: Callable[[str], Path]) -> None:
    """`tensorboard --logdir FOLDER`, for one folder of those that pages give."""
    port = str(free_port())
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(made(GLUE).parent), "--port", port],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert "made/tensorboard" in answer_of(f"http://127.0.0.1:{port}/data/runs", process)
    finally:
        process.kill()
        process.wait()


# Running


def run_one(
    command: Command, folder: Path, files: Files, made: Callable[[str], Path]
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    arguments = small_values(without_launcher(command.words))
    for run_folder in run_folders_read(arguments):
        if not (folder / run_folder / "recipe.yaml").exists():
            shutil.copytree(made(MADE_BY.get(run_folder, GLUE)), folder / run_folder, dirs_exist_ok=True)

    if "serve" in arguments:
        return serve(arguments, folder)

    ended = run_in(folder, with_own_output(arguments, folder, command.line))
    if "--copy" in arguments:
        for path in (folder / "mine").glob("*.yaml"):
            path.write_text(small_recipe(path, files))
    return ended


def without_launcher(words: Sequence[str]) -> list[str]:
    """What follows `python`, of the process that a launcher starts."""
    program, *rest = words
    if program == "mtdnn_ds":
        return ["-m", program, *rest]
    if program == "python":
        return rest
    assert program in ("deepspeed", "torchrun"), words
    first = next(number for number, word in enumerate(rest) if word in ("-m", "launchers/train.py"))
    return rest[first:]


def small_values(arguments: Sequence[str]) -> list[str]:
    """The same command with values that cost less."""
    found = list(arguments)
    for number, word in enumerate(arguments[:-1]):
        if word in SMALL_VALUES:
            found[number + 1] = SMALL_VALUES[word]
    if found[0] == "-m":
        for flag, value in MORE_FLAGS.get(found[2], {}).items():
            if flag not in found:
                found += [flag, value]
    return found


def run_folders_read(arguments: Sequence[str]) -> list[str]:
    """Run folders that must be there before the command."""
    written = ("--output_dir", "--output", "--certificate")
    return [
        word
        for before, word in pairwise(arguments)
        if re.fullmatch(r"runs/\w+", word) and before not in written
    ]


def with_own_output(arguments: list[str], folder: Path, line: int) -> list[str]:
    """Alternatives of a page would train into one folder: the later ones have folders of their own."""
    if arguments[0] != "launchers/train.py" or "--resume" in arguments:
        return arguments

    flags = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    output = flags.get("--output_dir", f"runs/{Path(flags.get('--recipe', QUICKSTART)).stem}")
    if (folder / output).exists():
        output = f"runs/line_{line}"
    words = [word for flag in {**flags, "--output_dir": output}.items() for word in flag]
    return [arguments[0], *words]


def serve(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Start the service on a free port, ask it how it is, end it."""
    port = str(free_port())
    process = warm.start(
        [*without_flag(arguments, "--port"), "--port", port], environment=environment(), folder=folder
    )
    try:
        assert answer_of(f"http://127.0.0.1:{port}/health", process)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        return subprocess.CompletedProcess(list(arguments), process.wait(120), "", "")
    finally:
        process.kill()
        process.wait()


def without_flag(arguments: Sequence[str], flag: str) -> list[str]:
    if flag not in arguments:
        return list(arguments)
    number = list(arguments).index(flag)
    return [*arguments[:number], *arguments[number + 2 :]]


def answer_of(address: str, process: Any) -> Any:
    """The JSON at an address, as soon as the process answers there."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.returncode
        try:
            with urllib.request.urlopen(address) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address}: no answer")


def run_in(folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in the folder, to its end."""
    return warm.run(arguments, environment=environment(), folder=folder)


def environment() -> dict[str, str]:
    """That of a user without a launcher."""
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: value for name, value in os.environ.items() if name not in ranks}
    return {**given, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def said(ended: subprocess.CompletedProcess[str]) -> str:
    return ended.stdout[-2000:] + ended.stderr[-3000:]
