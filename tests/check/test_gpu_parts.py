"""doctor --gpu: how parts end and what is kept of them, and the sums that its parts make of what they see."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.pages import rows_under
from helpers.processes import ROOT, living_of_session, run_command, wait_until, wait_until_session_is_empty

from mtdnn_ds.check.gpu.kernels import MARKER, Kernel, slowest, steps_of
from mtdnn_ds.check.gpu.kind_files import write_kinds
from mtdnn_ds.check.gpu.kinds import VARIANTS
from mtdnn_ds.check.gpu.large import SHAPES, _against_goals
from mtdnn_ds.check.gpu.large_run import Shape
from mtdnn_ds.check.gpu.page import page
from mtdnn_ds.check.gpu.parts import MOST_SECONDS, PARTS, Part
from mtdnn_ds.check.gpu.results import PartResult, Report, Row, write_json
from mtdnn_ds.check.gpu.run import run_parts
from mtdnn_ds.check.gpu.syncs import counting_syncs, place
from mtdnn_ds.check.gpu.workload import draw_lengths
from mtdnn_ds.config.training_sections import RegularizerSettings
from mtdnn_ds.faults.heartbeat import heartbeat
from mtdnn_ds.tasks.kinds import KINDS
from mtdnn_ds.tasks.sharing import Mode

CPU = torch.device("cpu")


def part(name: str, function: str, process: str, limit_seconds: float = 300) -> Part:
    return Part(
        name=name,
        title=name.title(),
        function=f"workers.gpu_parts:{function}",
        limit_seconds=limit_seconds,
        process=process,
    )


# How parts end


def test_a_part_that_raises_hangs_or_dies_costs_its_own_result_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    parts = (
        part("first", "good", "one"),
        part("raising", "raises", "one"),
        part("trying", "tries", "one"),
        part("hanging", "hangs", "one", limit_seconds=2),
        part("dying", "dies", "two"),
        part("last", "good", "two"),
        part("again", "good", "two"),
    )
    lock = tmp_path / "out/ops/fused_adam/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    report = run_parts(parts, tmp_path / "out", is_rehearsal=False, beside="workers.sleeps")
    assert not lock.exists()
    assert report.is_complete and not report.is_good

    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert found["is_complete"] is True
    by_name = {each["name"]: each for each in found["parts"]}
    assert {name: each["status"] for name, each in by_name.items()} == {
        "first": "done",
        "raising": "failed",
        "trying": "done",
        "hanging": "timed out",
        "dying": "failed",
        "last": "done",
        "again": "done",
    }
    error = by_name["raising"]["error"]
    assert error.startswith("RuntimeError: CUDA error: an illegal memory access") and "gpu_parts.py" in error
    assert [row["name"] for row in by_name["raising"]["rows"]] == ["before it"]
    assert by_name["trying"]["rows"][0]["what"] == "ValueError: no kernel"
    assert by_name["trying"]["rows"][0]["status"] == "failed"
    assert by_name["trying"]["rows"][1]["figures"] == {"difference": "nan"}
    assert by_name["hanging"]["error"] == "no end after 2 s\nwaiting for the GPU"
    assert "its process ended with code -9" in by_name["dying"]["error"]

    # What the process keeps is there for the parts after it.
    assert by_name["last"]["rows"][0]["figures"]["calls"] == 1
    assert by_name["again"]["rows"][0]["figures"]["calls"] == 2
    assert (
        by_name["first"]["rows"][0]["figures"]["process"] != by_name["last"]["rows"][0]["figures"]["process"]
    )

    beside = (tmp_path / "out/gpu.log").read_text().splitlines()[0]
    assert beside.startswith("beside the parts: ") and living_of_session(int(beside.split()[-1])) == []
    hung = by_name["hanging"]["rows"][0]["figures"]
    assert living_of_session(hung["process"]) == []
    text = (tmp_path / "out/gpu.md").read_text()
    assert "timed out after 2 s of 2:" in text and "CUDA error" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "gpu.json",
        "gpu.log",
        "gpu.md",
        "ops",
    ]


def test_cut_short_it_tells_what_was_done(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from mtdnn_ds.check.gpu import parts\n"
        "from mtdnn_ds.cli import main\n"
        "def part(name): return parts.Part(name=name, title=name, process='one', limit_seconds=300,\n"
        "                                  function='workers.gpu_parts:' + name)\n"
        "parts.PARTS = (part('good'), part('hangs'), part('raises'))\n"
        f"sys.exit(main(['doctor', '--gpu', '--rehearse', '--output', {str(tmp_path / 'out')!r}]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    found, errors = tmp_path / "out/gpu.json", tmp_path / "errors.txt"
    with errors.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=stream)
    try:
        wait_until(lambda: found.exists() and '"child"' in found.read_text(), [process])
        before = json.loads(found.read_text())
        assert [each["status"] for each in before["parts"]] == ["done", "running", "waiting"]
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
    said = errors.read_text()

    assert process.returncode == 85, said
    after = json.loads(found.read_text())
    assert after["is_complete"] is False
    assert [each["status"] for each in after["parts"]] == ["done", "stopped", "waiting"]
    assert after["parts"][0]["rows"] == before["parts"][0]["rows"]
    assert "stopped during hangs (signal SIGTERM); the parts before it are in gpu.json" in said
    assert "Cut short" in (tmp_path / "out/gpu.md").read_text()
    wait_until_session_is_empty(after["parts"][1]["rows"][0]["figures"]["process"])


def test_no_part_outlives_who_started_it(tmp_path: Path) -> None:
    """Also where that was killed, and could not end it."""
    program = (
        "from pathlib import Path\n"
        "from mtdnn_ds.check.gpu.parts import Part\n"
        "from mtdnn_ds.check.gpu.run import run_parts\n"
        "part = Part(name='hangs', title='', process='one', limit_seconds=300,\n"
        "            function='workers.gpu_parts:hangs')\n"
        f"run_parts([part], Path({str(tmp_path / 'out')!r}), is_rehearsal=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    found = tmp_path / "out/gpu.json"
    try:
        wait_until(lambda: found.exists() and '"child"' in found.read_text(), [process])
    finally:
        process.kill()
        process.wait()
    (row,) = json.loads(found.read_text())["parts"][0]["rows"]
    wait_until_session_is_empty(row["figures"]["process"])


def test_flags_without_effect_and_a_machine_without_a_gpu_are_refused(tmp_path: Path) -> None:
    def doctor(*flags: str) -> subprocess.CompletedProcess[str]:
        return run_command(["-m", "mtdnn_ds", "doctor", *flags])

    wrong = doctor("--output", "x", "--rehearse")
    assert wrong.returncode == 2 and "--output: has an effect with --gpu alone" in wrong.stderr
    assert "--rehearse: has an effect with --gpu alone" in wrong.stderr
    assert "write --output" in doctor("--gpu", "--output_dir", "x").stderr
    assert "takes no value" in doctor("--gpu=maybe").stderr
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refused = doctor("--gpu", "--output", str(tmp_path / "out"))
    assert refused.returncode == 1 and "fails  GPU paths: no CUDA device is seen" in refused.stdout
    assert "nvidia-smi" in refused.stdout and "--rehearse" in refused.stdout
    assert not (tmp_path / "out").exists()


def test_limits_leave_room_in_an_allocation_of_ten_minutes() -> None:
    assert sum(each.limit_seconds for each in PARTS) < MOST_SECONDS == 540


def test_the_page_describes_every_part_in_order() -> None:
    described = [
        name for row in rows_under("docs/gpu.md", "## What it measures") for name in row[0].split(", ")
    ]
    assert sorted(described) == sorted(each.name for each in PARTS)
    assert described[:5] == ["machine", "attention", "precision", "counter", "large"]


# Records and pages


def report_of(*rows: Row) -> Report:
    result = PartResult(
        name="a", title="A part", limit_seconds=9, status="done", seconds=1.0, rows=list(rows)
    )
    return Report(parts=[result], is_rehearsal=False, is_complete=True, seconds=2.0)


def test_only_failures_are_no_good_end() -> None:
    assert report_of(Row(name="x"), Row(name="y", status="note"), Row(name="z", status="missed")).is_good
    assert not report_of(Row(name="x"), Row(name="y", status="failed")).is_good


def test_rows_with_the_same_figures_share_a_table() -> None:
    report = report_of(
        Row(name="one", figures={"step_ms": 88.123, "MFU_%": 25.0}),
        Row(name="two", figures={"step_ms": 1234.5, "MFU_%": "-"}, status="missed", what="a | b"),
        Row(name="three", status="note", what="needs CUDA"),
    )
    lines = page(report).splitlines()
    assert lines[lines.index("## A part") + 2 :][:8] == [
        "|  | step ms | MFU % |  | found |",
        "| --- | --- | --- | --- | --- |",
        "| one | 88.12 | 25 | ok |  |",
        "| two | 1,234 | - | missed | a \\| b |",
        "",
        "|  |  | found |",
        "| --- | --- | --- |",
        "| three | note | needs CUDA |",
    ]
    assert report.parts[0].rows[0].text == "step ms 88.12, MFU % 25"


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(report_of(Row(name="x", figures={"a": math.inf, "b": 1.5})), tmp_path)
    found = json.loads((tmp_path / "gpu.json").read_text(), parse_constant=pytest.fail)
    assert found["parts"][0]["rows"][0]["figures"] == {"a": "inf", "b": 1.5}


# What the parts compute


def kernels(*spans: tuple[str, float, float]) -> list[Kernel]:
    return [Kernel(name=name, begin=begin, end=end) for name, begin, end in spans]


def test_a_step_by_its_kernels() -> None:
    """10 of 42 us idle inside the step; the tail from 30, where the last backward kernel ends, to 60."""
    spans = kernels(
        (MARKER, 0, 1),
        ("gemm", 10, 20),
        ("norm", 15, 18),  # beside the first one, on another stream
        ("gemm", 25, 30),
        (MARKER, 31, 32),
        ("adam", 35, 52),
        (MARKER, 60, 61),
    )
    (step,) = steps_of(list(reversed(spans)))
    assert step.idle_share == pytest.approx(10 / 42) and step.tail_us == 30
    assert len(step.kernels) == 4 and step.before_tail == 3
    assert slowest([step, step]) == [
        ("adam", 2, pytest.approx(0.034)),
        ("gemm", 4, pytest.approx(0.03)),
        ("norm", 2, pytest.approx(0.006)),
    ]
    with pytest.raises(RuntimeError, match="2 markers"):
        steps_of(spans[:5])


def test_waits_are_counted_by_step_and_named_by_the_line_of_ours() -> None:
    with counting_syncs(CPU) as syncs:
        for step in (1, 2, 3):
            heartbeat(f"step {step}, beginning")
            heartbeat(f"step {step}, update")
            for _ in range(step):
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert dict(syncs.by_step) == {1: 1, 2: 2, 3: 3}
    assert sum(syncs.places.values()) == 5  # of steps after the first
    assert syncs.summary(3) == "waits in steps 1 to 3: 1, 2, 3" and syncs.a_step(3) == 2.5

    ours, theirs = "/x/site-packages/mtdnn_ds/train/a.py:7", "/x/site-packages/deepspeed/runtime/b.py:9"
    assert place(["/bin/x.py:1", ours]) == "mtdnn_ds/train/a.py:7"
    assert place([ours, theirs]) == "mtdnn_ds/train/a.py:7 > deepspeed/runtime/b.py:9"
    assert place(["/bin/x.py:1"]) == "unknown"


def test_lengths_are_like_glue() -> None:
    lengths = draw_lengths(50_000, seed=0)
    assert lengths.mean() == pytest.approx(38, abs=0.3)
    assert lengths.min() >= 6 and lengths.max() == 128
    np.testing.assert_array_equal(draw_lengths(5, seed=1), draw_lengths(5, seed=1))


@pytest.mark.parametrize(
    ("mfu", "ratio", "status", "words"),
    [
        (0.41, 3.2, "ok", ["goal 40% of the peak: met", "goal 3 times the padded loop: met"]),
        (0.25, 3.0, "missed", ["goal 40% of the peak: not met", "goal 3 times the padded loop: met"]),
        (None, None, "missed", ["goal 40% of the peak: not met", "goal 3 times the padded loop: not met"]),
    ],
)
def test_goals(mfu: float | None, ratio: float | None, status: str, words: list[str]) -> None:
    assert _against_goals(SHAPES[0], mfu, ratio) == (status, words)
    assert _against_goals(SHAPES[-1], mfu, ratio) == ("ok", [])


def test_every_kind_is_tried(tmp_path: Path) -> None:
    tasks = write_kinds(tmp_path)["tasks"]
    assert {settings["kind"] for settings in tasks.values()} == {*KINDS, "ordinal"}


def test_every_regularizer_and_way_of_sharing_is_tried() -> None:
    names = get_args(RegularizerSettings.model_fields["name"].annotation)
    tried = {settings.get("regularizer.name", "none") for settings in VARIANTS.values()}
    assert tried == set(names) and len(tried) > 3
    modes = {settings.get("sharing.mode", "hard") for settings in VARIANTS.values()}
    assert modes == set(get_args(Mode)) and len(modes) > 2


def test_a_micro_batch_of_each_shape_can_be_filled_up() -> None:
    assert [shape.most_tokens for shape in SHAPES] == [18_432, 18_432, 9216, 1792]
    assert Shape(tokens=256).most_tokens == 384
