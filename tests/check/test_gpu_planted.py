"""doctor --gpu: what its parts are held against is right, and wrong results that are planted are failures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mtdnn_ds.check.gpu import attention
from mtdnn_ds.check.gpu.attention import LENGTHS, _exact, _Problem, _problem, plain_attention, value_error
from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.large import graphs_row
from mtdnn_ds.check.gpu.precision import held_against
from mtdnn_ds.check.gpu.restart import verdict
from mtdnn_ds.config.choices import ATTENTION_BACKENDS

Results = tuple[torch.Tensor, ...]
BENCH = Bench(device=torch.device("cpu"), is_rehearsal=True, scratch=Path(), emit=lambda row: None)


def test_attention_is_held_against_softmax_of_each_sequence_alone() -> None:
    problem = _problem(BENCH, "padded", torch.float32, LENGTHS, 2, 8)
    for ours, theirs in zip(problem.run(0.0), plain_attention(problem, LENGTHS), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert set(ATTENTION_BACKENDS) >= {"grouped", "padded", "varlen", "flash"}


def with_nan(results: Results) -> Results:
    of_key = results[2].clone()
    of_key[0, 0, 0, 7] = math.nan
    return (*results[:2], of_key, results[3])


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (lambda results: results, "ok"),
        (with_nan, "failed"),
        (lambda results: (*results[:3], 1.1 * results[3]), "failed"),
        (lambda results: (0.9 * results[0], *results[1:]), "failed"),
    ],
    ids=["right", "nan in a gradient", "a gradient", "the output"],
)
def test_wrong_attention_fails(
    wrong: Callable[[Results], Results], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _Problem.run
    monkeypatch.setattr(_Problem, "run", lambda self, dropout: wrong(run(self, dropout)))
    assert _exact(BENCH, "grouped", torch.bfloat16, 32, "x").status == status


def test_another_mask_in_the_backward_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _Problem.run
    problem = _problem(BENCH, "grouped", torch.bfloat16, LENGTHS, 4, 64)
    assert value_error(problem, 0.1) < 1e-3

    def other_mask(self: _Problem, dropout: float) -> Results:
        out_TNH = self.output(dropout)
        return (out_TNH, *run(replace(self), dropout)[1:])

    monkeypatch.setattr(_Problem, "run", other_mask)
    assert value_error(problem, 0.1) > 0.05
    row = attention._dropout(BENCH, "grouped", "x")
    assert row.status == "failed" and "the gradient of value" in row.what

    monkeypatch.setattr(_Problem, "run", lambda self, dropout: (*run(self, dropout)[:3], run(self, 0.0)[3]))
    assert value_error(problem, 0.1) > 0.05  # neither mask nor scale


@pytest.mark.parametrize(
    ("losses", "tolerance", "status"),
    [
        ([1.0, 2.0], 1e-12, "ok"),
        ([1.0, 2.0 + 1e-9], 1e-12, "failed"),
        ([1.0, 2.1], 0.03, "failed"),
        ([1.0, math.nan], 0.03, "failed"),
        ([1.0, 2.05], 0.03, "ok"),
    ],
)
def test_other_losses_than_the_cpus_fail(losses: list[float], tolerance: float, status: str) -> None:
    assert held_against("x", np.array(losses), np.array([1.0, 2.0]), tolerance).status == status


def test_another_run_than_the_undisturbed_one_fails() -> None:
    assert verdict(0.0) == ("ok", "equal bit for bit")
    assert verdict(0.01)[0] == "missed"
    assert verdict(0.5)[0] == "failed" and verdict(math.nan) == ("failed", "not the same run")


def test_a_break_in_a_graph_fails() -> None:
    assert graphs_row("x", 24, {}).status == "ok"
    broken = graphs_row("x", 24, {"call to random_\nmore": 1})
    assert broken.status == "failed" and broken.what == "call to random_"
    assert broken.figures == {"graphs": 24, "breaks": 1}
    assert graphs_row("x", 0, {}).status == "failed"
