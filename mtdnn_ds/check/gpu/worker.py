"""One process of doctor --gpu: `python -m mtdnn_ds.check.gpu.worker JOB.json` does some parts, one after the
other.

What it finds goes line by line to the job's file of events, which run.py reads. A part that raises ends the
process, since a GPU may be left unusable: run.py starts another one for the rest.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_LOOKS = 0.5  # at the parent


def main(job_file: str) -> None:
    """Do the parts of a job. Ends the process, with exit code 1 if a part raised."""
    job = json.loads(Path(job_file).read_text())
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()

    with Path(job["events"]).open("a", encoding="utf-8") as events:

        def tell(event: str, **values: Any) -> None:
            events.write(json.dumps({"event": event, **values}) + "\n")
            events.flush()

        code = _all_parts(job, tell)

    # Not by way of the interpreter's end, where libraries may wait for each other.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _all_parts(job: Mapping[str, Any], tell: Callable[..., None]) -> int:
    """0, or 1 after the first part that raised."""
    bench = None
    for part in job["parts"]:
        tell("begin", part=part["name"], log_bytes=os.fstat(1).st_size)
        try:
            if bench is None:
                bench = _bench(job, tell)
            module, _, function = part["function"].partition(":")
            getattr(importlib.import_module(module), function)(bench)
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.flush()
            tell("error", what=f"{type(error).__name__}: {error}".splitlines()[0])
            return 1
        tell("end")
    return 0


def _bench(job: Mapping[str, Any], tell: Callable[..., None]) -> Any:
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging("warning", 0)

    import torch

    from mtdnn_ds.check.gpu.bench import Bench
    from mtdnn_ds.runs.device import make_deterministic, take_device

    if torch.cuda.is_available():
        make_deterministic()  # as a run has it; cuBLAS reads its environment at the first product
    return Bench(
        device=take_device(),
        is_rehearsal=job["is_rehearsal"],
        scratch=Path(job["scratch"]),
        emit=lambda row: tell("row", row=asdict(row)),
    )


def _end_with_parent(parent: int) -> None:
    """Kill this process's group once its parent is gone: nobody else would end a part that hangs."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
