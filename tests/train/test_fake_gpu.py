"""The CUDA path where there is no GPU: a step's passes, evaluation and prediction on a fake one.

Of every row of the tables: nothing in a forward, in losses or in a backward waits for the device or mixes
devices, and every trainable parameter gets a gradient (helpers/fake_gpu.py says what is seen and what not).
Loss scales are no part of it: they are NumPy's until `_forward_backward` gets its coefficients.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import pytest
from helpers import warm
from helpers.fake_gpu_cases import PLANTS, cases
from helpers.processes import ROOT, Rank, kill
from torch import nn

import mtdnn_ds.model
from mtdnn_ds.config.choices import ATTENTION_BACKENDS
from mtdnn_ds.config.training_sections import RegularizerSettings
from mtdnn_ds.losses.divergence import DIVERGENCES
from mtdnn_ds.model.dropout.word_dropout import DropoutMode
from mtdnn_ds.tasks.kinds import KINDS
from mtdnn_ds.tasks.layout import FORMS, HEAD_READS, Answer
from mtdnn_ds.tasks.sharing import Mode

pytestmark = pytest.mark.slow

Report = Mapping[str, Any]

OF_OTHERS = {
    "transformers/models/deberta_v2/modeling_deberta_v2.py make_log_bucket_position": "a number, each pass",
}
"""Places of a library that wait, which is not ours to mend."""

READERS = ("mtdnn_ds/runs/", "mtdnn_ds/predict/")
"""Rooms that bring results to the host, where evaluation and prediction have to wait. No model is in them."""

TABLES: Mapping[str, Iterable[str]] = {
    "kind": KINDS,
    "head of a kind": [f"{kind} {head}" for kind, facts in KINDS.items() for head in facts.heads],
    "objective": [f"{kind} {objective}" for kind, facts in KINDS.items() for objective in facts.objectives],
    "form": FORMS,
    "head": HEAD_READS,
    "attention": ATTENTION_BACKENDS,
    "dropout": get_args(DropoutMode),
    "sharing": get_args(Mode),
    "regularizer": get_args(RegularizerSettings.model_fields["name"].annotation),
    "divergence": DIVERGENCES,
    "soft target": get_args(Answer),
    "module": sorted(
        name
        for module in pkgutil.walk_packages(mtdnn_ds.model.__path__, "mtdnn_ds.model.")
        for name, value in vars(importlib.import_module(module.name)).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.name
    ),
}
CASES = [name for name, case in cases().items() if case.planted is None]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """What each case found, from two processes that have half of them each."""
    names, folder = list(cases()), tmp_path_factory.mktemp("fake_gpu")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    halves = []
    for half in range(2):
        arguments = [str(ROOT / "tests/workers/run_fake_gpu.py"), str(folder / str(half)), *names[half::2]]
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by kill()
        process = warm.start(arguments, environment=environment, output=output, errors=output)
        halves.append(Rank(process, output))

    try:
        warm.wait_for([half.process for half in halves])
        codes = [half.process.poll() for half in halves]
        said = "\n----\n".join(half.said() for half in halves)
    finally:
        kill(halves)
    assert codes == [0, 0], said[-6000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*/reports/*.json")}


def unexpected(report: Report) -> list[str]:
    """What is wrong with a case, each in one line, but for what is known."""
    problems = [f"no gradient: {name}" for name in report["without_gradient"]]
    if report["error"] is not None:
        problems.append(report["error"])
    for phase, findings in report["findings"].items():
        for found in findings:
            place = found["place"]
            if place in OF_OTHERS or is_read(phase, found):
                continue
            problems.append(f"{phase}: {found['kind']} ({found['operation']}) in {place}:{found['line']}")
    return problems


def is_read(phase: str, found: Mapping[str, Any]) -> bool:
    """Whether it brings results to the host, after a forward."""
    return phase != "step" and found["operation"] == "to cpu" and found["place"].startswith(READERS)


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_every_table_has_a_case(reports: Mapping[str, Report], table: str) -> None:
    ran = {row for name in CASES for row in reports[name]["ran"].get(table, ())}
    assert [row for row in TABLES[table] if row not in ran] == [], f"a {table} that no case runs"


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_device(reports: Mapping[str, Report], name: str) -> None:
    assert unexpected(reports[name]) == []
    assert reports[name]["micro_batches"] >= 2


@pytest.mark.parametrize("phase", ["evaluation", "prediction"])
def test_results_are_read_once_for_each_term_at_most(reports: Mapping[str, Report], phase: str) -> None:
    most = {
        name: sum(found["count"] for found in reports[name]["findings"][phase] if is_read(phase, found))
        for name in CASES
    }
    too_often = {name for name, count in most.items() if count > reports[name]["terms_read"][phase]}
    assert too_often == set(), most


def test_what_waits_in_libraries_still_does(reports: Mapping[str, Report]) -> None:
    places = {
        found["place"]
        for name in CASES
        for findings in reports[name]["findings"].values()
        for found in findings
    }
    assert [place for place in OF_OTHERS if place not in places] == [], "mended: take it out"


# The check itself


PLACE = "in mtdnn_ds/model/multitask.py _call"
FOUND = {
    "item": f"step: sync (_local_scalar_dense) {PLACE}",
    "mask": f"step: sync (index by a mask) {PLACE}",
    "copy": f"step: blocking copy (to) {PLACE}",
    "mixed devices": "step: FakeTensorDeviceMismatchError: Expected all tensors to be on the same device",
    "detached": "no gradient: encoder.pooler.dense.weight",
}


@pytest.mark.parametrize("fault", PLANTS)
def test_a_planted_fault_is_found(reports: Mapping[str, Report], fault: str) -> None:
    """In the banks' forward (helpers/fake_gpu_cases.py), which `_call` of the whole model calls."""
    problems = unexpected(reports[f"planted {fault}"])
    assert [problem for problem in problems if problem.startswith(FOUND[fault])] != [], problems
