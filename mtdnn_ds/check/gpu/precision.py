"""Parts precision and optimizers: tiny runs under every ZeRO stage and precision against fp32 on the CPU;
every optimizer; offload.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from mtdnn_ds.check.gpu.bench import Bench
from mtdnn_ds.check.gpu.reference import PLAIN, losses_of_the_cpu
from mtdnn_ds.check.gpu.results import Row
from mtdnn_ds.check.tiny_runs import OPTIMIZER, TINY_STEPS, losses_of, tiny_run
from mtdnn_ds.config.choices import OPTIMIZERS
from mtdnn_ds.train.engine import start_distributed

# name -> (keys of a DeepSpeed JSON, largest relative difference of the losses from float32's)
PRECISIONS: Mapping[str, tuple[dict[str, object], float]] = {
    "bf16": ({"bf16": {"enabled": True}}, 3e-2),
    "fp32": ({}, 1e-4),
    "fp16": ({"fp16": {"enabled": True}}, 3e-2),
    "autocast bf16": ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, 3e-2),
}
# Stages of each, what most runs use first; config/deepspeed.py refuses the others, and says why.
STAGES: Mapping[str, tuple[int, ...]] = {
    "bf16": (2, 1, 3),
    "fp32": (2, 0, 1, 3),
    "fp16": (2, 1, 3),
    "autocast bf16": (0,),
}
NOT_REHEARSED = "compiled on first use: not rehearsed"

Configuration = tuple[dict[str, object], float]


def configurations() -> dict[str, Configuration]:
    """Name -> DeepSpeed JSON and tolerance."""
    return {
        f"ZeRO {stage}, {name}": ({"zero_optimization": {"stage": stage}, **keys}, tolerance)
        for name, (keys, tolerance) in PRECISIONS.items()
        for stage in STAGES[name]
    }


def look(bench: Bench) -> None:
    """Each configuration's losses against those of float32 on the CPU."""
    start_distributed()
    expected = losses_of_the_cpu(bench.scratch)["plain"]
    for name, (config, tolerance) in configurations().items():
        bench.tried(name, partial(compared, bench, name, config, {}, expected, tolerance))

    # Last: a compiler takes longer than all the others.
    name = "ZeRO 2, bf16, compiled"
    if not bench.on_cuda:
        bench.emit(Row(name=name, status="note", what="compiled on a GPU only"))
        return
    config, tolerance = configurations()["ZeRO 2, bf16"]
    settings = {"encoder.compile": "always"}
    bench.tried(name, partial(compared, bench, name, config, settings, expected, tolerance))


def compared(
    bench: Bench,
    name: str,
    config: dict[str, object],
    overrides: Mapping[str, str],
    expected: np.ndarray,
    tolerance: float,
) -> Row:
    """A tiny run, and by how much its losses differ from those expected."""
    folder = bench.scratch / "".join(letter if letter.isalnum() else "_" for letter in name)
    return held_against(name, losses_of(tiny_run(folder, config, overrides)), expected, tolerance)


def held_against(name: str, losses: np.ndarray, expected: np.ndarray, tolerance: float) -> Row:
    """Losses of a run, and those expected of it."""
    difference = float(np.max(np.abs(losses - expected) / expected))
    is_good = difference < tolerance  # not so of NaN
    return Row(
        name=name,
        status="ok" if is_good else "failed",
        figures={"difference": difference, "at_most": tolerance},
        what=f"losses of {TINY_STEPS} steps, relative",
    )


def look_at_optimizers(bench: Bench) -> None:
    """Each optimizer's losses must be finite, and an offloaded one's those of the CPU. What is compiled on
    first use comes last, and is not rehearsed.
    """
    start_distributed()
    for name in sorted(OPTIMIZERS, key=lambda name: OPTIMIZERS[name].needs_compiler):
        if bench.is_rehearsal and OPTIMIZERS[name].needs_compiler:
            bench.emit(Row(name=name, status="note", what=NOT_REHEARSED))
        else:
            bench.tried(name, partial(_training, bench, name))

    expected = losses_of_the_cpu(bench.scratch)["plain"]
    offloaded = next(name for name, facts in OPTIMIZERS.items() if facts.has_deepspeed_cpu_form)
    if bench.is_rehearsal:
        offloaded = OPTIMIZER  # compiles nothing
    for stage, precision in ((2, "fp32"), (2, "bf16"), (3, "bf16")):
        name = f"ZeRO {stage}, {precision}, optimizer offload"
        keys, tolerance = PRECISIONS[precision]
        zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
        config: dict[str, object] = {"zero_optimization": zero, **keys}
        settings = {"optimizer.name": offloaded}
        trying = partial(compared, bench, name, config, settings, expected, tolerance)
        bench.tried(name, trying)


def _training(bench: Bench, name: str) -> Row:
    """A tiny run with an optimizer."""
    losses = losses_of(tiny_run(bench.scratch / f"optimizer_{name}", PLAIN, {"optimizer.name": name}))
    return Row(
        name=name,
        status="ok" if bool(np.isfinite(losses).all()) else "failed",
        figures={"first_loss": float(losses[0]), "last_loss": float(losses[-1])},
    )
