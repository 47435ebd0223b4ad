"""doctor: what it finds and says, alone and on two ranks.

Links, locks and folders are real; slow links are given as literals.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.processes import run_command, run_ranks

from mtdnn_ds.check.doctor import machine, packages, shared
from mtdnn_ds.check.doctor.findings import Finding, any_fails, report
from mtdnn_ds.check.doctor.links import Link, link_findings, pair_rounds


def test_versions_outside_of_the_ranges_fail(tmp_path: Path) -> None:
    ranges = ["torch<2", "numpy>=1", "no_such_package_of_ours"]
    (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {json.dumps(ranges)}\n")
    (tmp_path / "requirements.txt").write_text("numpy>=1\n")
    (finding,) = packages.package_findings(tmp_path)
    assert finding.status == "fails"
    assert finding.what == f"torch is {torch.__version__} instead of <2; no_such_package_of_ours is missing"


def test_versions_in_the_ranges_that_no_test_runs_with_are_noted(tmp_path: Path) -> None:
    """A bundle leaves a node's torch as it is."""
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torch>=2", "numpy>=1"]\n')
    (tmp_path / "requirements.txt").write_text("torch==2.0\nnumpy>=1\n# a comment\n-r other.txt\n")
    (finding,) = packages.package_findings(tmp_path)
    assert finding.status == "note"
    assert finding.what.endswith(
        f"not as requirements.txt says: torch is {torch.__version__} instead of ==2.0"
    )

    (finding,) = packages.package_findings()
    assert finding.status == "ok" and f"torch {torch.__version__}" in finding.what


def test_the_lock_of_an_interrupted_build_is_found(tmp_path: Path) -> None:
    for op in packages.OPS:
        (tmp_path / op).mkdir()
        (tmp_path / op / f"{op}.so").touch()
    assert [finding.status for finding in packages.op_findings(tmp_path)] == ["ok"]
    (tmp_path / "cpu_adam" / "lock").touch()
    assert str(tmp_path / "cpu_adam" / "lock") in packages.op_findings(tmp_path)[1].what


def test_ops_that_cannot_be_built_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = packages.op_findings(tmp_path / "none")
    assert finding == Finding(
        check="C++ ops",
        status="note",
        what="fused_adam, cpu_adam are not built, and g++ and ninja is missing",
        advice="optimizer.name=deepspeed_adamw compiles them: install the tools to use it",
    )


def test_buffers_left_in_shared_memory_are_counted(tmp_path: Path) -> None:
    (tmp_path / "deepspeed_allreduce_buffer_0_127.0.0.1_29500_0").write_bytes(b"x" * 3_000_000)
    left = machine.shared_memory_findings(tmp_path)[-1]
    assert left.status == "hurts" and left.what == "1 all-reduce buffers of DeepSpeed runs, 3 MB"


def test_too_many_threads_hurt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("LOCAL_SIZE", "2")
    (finding,) = machine.thread_findings()
    assert finding.status == "hurts" and finding.what.startswith("2 ranks of 64 threads on ")


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 7, 8])
def test_every_pair_meets_once_and_nobody_twice_in_a_round(num_ranks: int) -> None:
    ranks = [10 * rank for rank in range(num_ranks)]
    rounds = pair_rounds(ranks)
    pairs = [pair for each in rounds for pair in each]
    assert sorted(pairs) == [(a, b) for a in ranks for b in ranks if a < b]
    for each in rounds:
        met = [rank for pair in each for rank in pair]
        assert len(met) == len(set(met))


def link(
    first: int, second: int, gigabytes_per_second: float, *, intact: bool = True, clock: float = 0.0
) -> Link:
    return Link(
        first=first,
        second=second,
        latency_seconds=5e-6,
        bytes_per_second=gigabytes_per_second * 1e9,
        clock_offset_seconds=clock,
        intact=intact,
    )


def test_a_slow_link_a_broken_one_and_a_wrong_clock_are_named() -> None:
    names = ["n0", "n1", "n2"]
    found = link_findings([link(0, 1, 10), link(0, 2, 2, clock=-3), link(1, 2, 11, intact=False)], names, 5e9)
    by_text = {finding.what.split(":")[0] + "/" + finding.check: finding.status for finding in found}
    assert (
        by_text["n0 - n1/links"] == "ok"
        and by_text["n0 - n2/links"] == "hurts"
        and by_text["n1 - n2/links"] == "fails"
    )
    assert by_text["n0 - n2/clock"] == "hurts"
    assert "BERT-large's gradients in fp32 take 0.27 s a step" in found[-1].what


def test_what_nodes_share_is_said_once() -> None:
    same = Finding(check="disk", status="ok", what="10 GB free")
    other = Finding(check="memory", status="fails", what="none", advice="buy some")
    text = report({"n0": [same], "n1": [same, other], "n2": [same]})
    assert text.splitlines() == [
        "ok     disk: 10 GB free",
        "fails  memory [n1]: none",
        "         buy some",
        "",
        "1 ok  0 note  0 hurts  1 fails",
    ]
    assert any_fails({"n0": [same], "n1": [other]}) and not any_fails({"n0": [same]})


def test_a_folder_that_one_node_does_not_see_fails_and_a_lock_that_does_not_hold_hurts() -> None:
    found = shared._findings(Path("runs"), ["n0", "n1"], [True, False], [True, True], 1e9)
    assert found[0].status == "fails" and found[0].what == "runs of n0 is not seen by n1"
    found = shared._findings(Path("runs"), ["n0", "n1"], [True, True], [True, False], 1e7)
    assert [finding.status for finding in found] == ["ok", "hurts", "hurts"]
    assert "a lock held by n0 in runs does not hold on n1" in found[1].what and "takes 536 s" in found[2].what


def test_doctor_alone(tmp_path: Path) -> None:
    result = run_command(["-m", "mtdnn_ds", "doctor", "--output_dir", str(tmp_path / "runs")])
    assert result.returncode == 0, result.stdout + result.stderr
    assert (
        "packages: Python" in result.stdout and "disk speed" in result.stdout and "0 fails" in result.stdout
    )
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.distributed
def test_doctor_on_two_ranks_measures_their_link_and_lock(tmp_path: Path) -> None:
    output = run_ranks(["-m", "mtdnn_ds", "doctor", "--output_dir", str(tmp_path / "runs")], 2)
    assert "links: rank 0 - rank 1: " in output and "clock: clocks agree within" in output
    assert "holds for all others" in output and "all-reduce over 2 ranks" in output


def test_a_rank_that_cannot_join_says_where_it_tried() -> None:
    environment = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    program = (
        "import sys; from datetime import timedelta; "
        "from mtdnn_ds.check.doctor import cluster; from mtdnn_ds.commands import doctor; "
        "cluster.JOIN_TIMEOUT = timedelta(seconds=3); "
        "sys.exit(doctor.run(output_dir='/tmp', gpu=False, output=None, rehearse=False, log_level='error'))"
    )
    result = run_command(["-c", program], CROSS_RANK="0", CROSS_SIZE="1", **environment)
    assert result.returncode == 1, result.stderr
    assert (
        "rank 1 of 2 did not reach the others at 127.0.0.1:1" in result.stderr
        and "GLOO_SOCKET_IFNAME" in result.stderr
    )
