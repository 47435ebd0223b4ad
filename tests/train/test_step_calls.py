"""How many kernels an optimizer step starts at BERT-large's number of tensors, by ZeRO stage.

A GPU does such a step in less time than the host takes to ask for thousands of small kernels, and while the
host waits for an `.item()` the GPU runs dry. Counted on the CPU, where DeepSpeed's step asks for the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from helpers.processes import ROOT, run_ranks

# ZeRO stage -> calls of torch's operations that start a kernel, and reads by the host, from the last backward
# pass to the logged norm. DeepSpeed's own are 792, 808, 5,918 and 841 calls with 0, 2, 4 and 1 `.item()`s
# (0.19.8), and a norm and two sums are read beside them. At stages 0 and 3 it takes every tensor's norm by
# itself, and stage 0 clips each by itself.
CALLS = {0: 804, 1: 37, 2: 80, 3: 849}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, int]]:
    file = tmp_path_factory.mktemp("step_calls") / "counts.json"
    run_ranks([str(ROOT / "tests/workers/step_calls.py"), str(file)], 1)
    return json.loads(file.read_text())


@pytest.mark.parametrize("stage", CALLS)
def test_a_step_starts_so_many_kernels_and_is_read_once(
    counted: Mapping[str, Mapping[str, int]], stage: int
) -> None:
    """389 tensors: 24 layers of 16, and 5 of the embeddings."""
    of_stage = counted[str(stage)]
    assert of_stage == {"tensors": 389, "calls": CALLS[stage], "reads": 1}
