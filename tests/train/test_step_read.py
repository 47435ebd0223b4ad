"""Norms, clipping and dropped updates through train/step/step_read.py are DeepSpeed's own, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.processes import ROOT, run_ranks
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mtdnn_ds.train.step.step_read import StepRead


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("settings", "ranks"),
    [
        ("1 fp32", 2),
        ("1 bf16", 2),
        ("2 bf16", 1),
        ("2 fp32", 2),
        ("2 fp16", 2),
        ("2 fp32 offload", 2),
        ("3 fp32", 2),
        ("3 fp16", 1),
        ("3 fp32 offload", 1),
    ],
)
def test_norms_clipping_and_overflow_are_deepspeeds(tmp_path: Path, settings: str, ranks: int) -> None:
    out = tmp_path / "found.json"
    run_ranks([str(ROOT / "tests/workers/step_norms.py"), str(out), *settings.split()], ranks)
    found = json.loads(out.read_text())
    ours, theirs = found["ours"], found["theirs"]
    assert ours == theirs

    assert [(line["step"], line["norm"] is None) for line in ours] == [
        ("clipped", False),
        ("small", False),
        ("inf", True),
        ("nan", True),
        ("after", False),
    ]
    assert ours[0]["norm"] > 1 > ours[1]["norm"], "one is clipped, the other is not"
    assert ours[1]["weights"] == ours[3]["weights"] != ours[4]["weights"], "dropped updates change no weight"
    scales = [line["scale"] for line in ours]
    assert scales == ([16.0, 16.0, 8.0, 4.0, 4.0] if "fp16" in settings else [1.0] * 5)


def test_a_total_that_is_not_finite_drops_the_update() -> None:
    read = StepRead(SimpleNamespace(optimizer=None))
    assert not read.joins
    read.expect(torch.tensor([1.5, float("nan")]))
    assert read.with_norms(torch.tensor([3.0, 4.0])).tolist() == [float("inf")] * 2
    assert read.totals.isnan().tolist() == [False, True]

    read.expect(torch.tensor([[1.5], [2.5]]))
    assert read.with_norms(torch.tensor([3.0, 4.0])).tolist() == [3.0, 4.0]
    assert read.totals.tolist() == [[1.5], [2.5]] and read.totals.dtype == torch.float64


def test_totals_are_read_alone_where_the_update_asks_for_no_norm() -> None:
    read = StepRead(SimpleNamespace(optimizer=None))
    read.expect(torch.tensor([7.0]))
    assert read.totals.tolist() == [7.0]


def test_totals_on_a_gpu_are_read_with_the_norms_of_offloaded_gradients() -> None:
    """These are on the host already. On a fake GPU: what stops it is the look at values that it has not."""
    read = StepRead(SimpleNamespace(optimizer=None))
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        read.expect(torch.zeros(2, 3, device="cuda"))
        read.with_norms(torch.zeros(2))
