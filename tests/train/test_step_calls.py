"""How many kernels an optimizer step starts at BERT-large's number of tensors, by ZeRO stage.

A GPU does such a step in less time than the host takes to ask for thousands of small kernels, and while the
host waits for an `.item()` the GPU runs dry. Counted on the CPU, where DeepSpeed's step asks for the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from helpers.processes import ROOT, run_ranks

# ZeRO stage -> calls of torch's operations that start a kernel, and of .item(), in one engine.step().
# Stage 1 has DeepSpeed's BF16_Optimizer, which looks at no tensor by itself.
CALLS = {0: 792, 1: 808, 2: 5918, 3: 841}
ITEMS = {0: 0, 1: 2, 2: 4, 3: 1}


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, int]]:
    file = tmp_path_factory.mktemp("step_calls") / "counts.json"
    run_ranks([str(ROOT / "tests/workers/step_calls.py"), str(file)], 1)
    return json.loads(file.read_text())


@pytest.mark.parametrize("stage", CALLS)
def test_a_step_starts_so_many_kernels(counted: Mapping[str, Mapping[str, int]], stage: int) -> None:
    """389 tensors: 24 layers of 16, and 5 of the embeddings."""
    of_stage = counted[str(stage)]
    assert of_stage == {"tensors": 389, "calls": CALLS[stage], "items": ITEMS[stage]}
