"""Parts for doctor --gpu that end in every way that a part can end. Not a test file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.results import Row


def good(bench: Bench) -> None:
    bench.kept["calls"] = bench.kept.get("calls", 0) + 1
    bench.emit(Row(name="calls", figures={"calls": bench.kept["calls"], "process": os.getpid()}))


def raises(bench: Bench) -> None:
    bench.emit(Row(name="before it"))
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def tries(bench: Bench) -> None:
    def broken() -> Row:
        raise ValueError("no kernel")

    bench.tried("broken", broken)
    bench.tried("whole", lambda: Row(name="whole", figures={"difference": float("nan")}))


def hangs(bench: Bench) -> None:
    """With a child that hangs too, and is of its group."""
    print("waiting for the GPU", flush=True)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    bench.emit(Row(name="processes", figures={"process": os.getpid(), "child": child.pid}))
    time.sleep(600)


def dies(bench: Bench) -> None:
    bench.emit(Row(name="last words"))
    os.kill(os.getpid(), signal.SIGKILL)
