"""doctor --gpu --rehearse: every part runs to its end on a CPU: no hour on a GPU is lost to a typo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.processes import run_command

from mtdnn_ds.check.gpu.parts import PARTS
from mtdnn_ds.config.choices import ATTENTION_BACKENDS, OPTIMIZERS


@pytest.mark.slow
def test_every_part_is_rehearsed(tmp_path: Path) -> None:
    ended = run_command(
        ["-m", "mtdnn_ds", "doctor", "--gpu", "--rehearse", "--output", str(tmp_path / "out")], fresh=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr

    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert found["is_complete"] and found["is_rehearsal"]
    parts = {part["name"]: part for part in found["parts"]}
    assert list(parts) == [part.name for part in PARTS]
    assert {part["status"] for part in parts.values()} == {"done"}
    assert all(part["rows"] for part in parts.values())

    rows = {name: {row["name"]: row for row in part["rows"]} for name, part in parts.items()}
    assert {name.partition(",")[0] for name in rows["attention"]} == set(ATTENTION_BACKENDS)
    assert {"ZeRO 2, bf16", "ZeRO 3, fp32"} <= set(rows["precision"])
    assert all(row["figures"].get("differing", 0) == 0 for row in rows["counter"].values())
    assert {name for name, facts in OPTIMIZERS.items() if not facts.needs_compiler} <= set(rows["optimizers"])
    assert rows["resume"]["killed and resumed"]["figures"]["largest_difference"] == 0
    assert rows["predict"]["first time"]["figures"]["lines"] == 300
    assert rows["kernels"]["eager, step 1"]["figures"]["launches"] > 100
    assert {row["status"] for of_part in rows.values() for row in of_part.values()} <= {"ok", "note"}

    graphs = rows["large compiled"]["compiled, graphs"]["figures"]
    assert graphs["graphs"] > 0 and graphs["breaks"] == 0
    assert list(rows["precision"])[-1] == "ZeRO 2, bf16, compiled"
    offloads = [row["status"] for name, row in rows["optimizers"].items() if "offload" in name]
    assert offloads == ["ok"] * 3

    compiled = [row["figures"] for name, row in rows["large compiled"].items() if "micro-batch" in name]
    large = [row["figures"] for name, row in rows["large"].items() if "micro-batch" in name]
    assert [each["padded_ms"] for each in compiled] == [each["padded_ms"] for each in large]
    assert len(large) == 2
    for figures in large:
        parts_ms = figures["forward_ms"] + figures["backward_ms"] + figures["update_ms"]
        assert 0 < parts_ms < figures["step_ms"] and figures["padded_ms"] > 0

    page = (tmp_path / "out/gpu.md").read_text()
    assert all(f"## {part.title}" in page for part in PARTS)
    assert "A rehearsal" in page and "Cut short" not in page
    assert "gpu.json" in ended.stdout and "0 failed" in ended.stdout
