"""Runs cases of helpers/fake_gpu_cases.py one after the other: `python run_fake_gpu.py FOLDER NAME ...`.

What each found is written to FOLDER/reports/NAME.json. In a process of its own, because the fake GPU changes
torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from helpers.fake_gpu import FakeGpu, register
from helpers.fake_gpu_cases import cases
from helpers.fake_gpu_runs import prepare_cases, run_case


def main(folder: Path, names: list[str]) -> None:
    rows, reports = folder / "rows", folder / "reports"
    rows.mkdir(parents=True)
    reports.mkdir()

    prepared = prepare_cases(rows)
    gpu = FakeGpu(register())
    known = cases()
    for name in names:
        report = run_case(gpu, prepared, known[name])
        (reports / f"{name}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
