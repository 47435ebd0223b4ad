"""`doctor`: what of this machine, or of the cluster whose launcher started it, would hurt a long run; with
`--gpu` instead what its CUDA path computes, and how fast.

Changes nothing but the folder of `--output`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError

OUTPUT_DIR, OUTPUT = "runs", "runs/gpu"
COMPILES = "mtdnn_ds.check.gpu.compiled_ops"  # what part optimizers waits for


def run(*, output_dir: str | None, gpu: bool, output: str | None, rehearse: bool, log_level: str) -> int:
    """Print a report; returns 1 if a run would not work, else 0. Collective under a launcher.

    Of `--gpu` the first rank does everything, on one GPU, in processes of its own.
    """
    _refuse_idle_flags(output_dir, gpu, output, rehearse)

    from mtdnn_ds import dist
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]
    if gpu:
        return _try_gpu(Path(output or OUTPUT), is_rehearsal=rehearse) if dist.is_main() else 0

    from mtdnn_ds.check.doctor.cluster import examine
    from mtdnn_ds.check.doctor.findings import any_fails, report

    found = examine(Path(output_dir or OUTPUT_DIR))
    if not found.joined:
        print(report(found.by_node), file=sys.stderr)
        return 1

    if dist.is_main():
        nodes, ranks = _count(len(found.by_node), "node"), _count(found.num_ranks, "rank")
        print(f"{nodes}, {ranks}: {', '.join(found.by_node)}")
        print(report(found.by_node))
    return int(any_fails(found.by_node))


def _refuse_idle_flags(output_dir: str | None, gpu: bool, output: str | None, rehearse: bool) -> None:
    problems = []
    if gpu and output_dir is not None:
        problems.append("--output_dir: has no effect with --gpu; write --output")
    if not gpu and output is not None:
        problems.append("--output: has an effect with --gpu alone; write --output_dir, or add --gpu")
    if not gpu and rehearse:
        problems.append("--rehearse: has an effect with --gpu alone; add it")
    if problems:
        raise ConfigError(problems)


def _try_gpu(output: Path, *, is_rehearsal: bool) -> int:
    """Run every part; returns 1 if any failed, or there is no GPU to run them on."""
    import torch

    from mtdnn_ds.check.doctor.findings import Finding, report
    from mtdnn_ds.files import reason

    if not is_rehearsal and not torch.cuda.is_available():
        advice = (
            "run it on a node with a GPU, and look at nvidia-smi and torch.cuda.is_available(); "
            "--rehearse tries the same on a CPU, at toy size"
        )
        finding = Finding(check="GPU paths", status="fails", what="no CUDA device is seen", advice=advice)
        print(report({"": [finding]}))
        return 1

    from mtdnn_ds.check.gpu.page import terminal_table
    from mtdnn_ds.check.gpu.parts import PARTS
    from mtdnn_ds.check.gpu.results import JSON_NAME, PAGE_NAME, counts
    from mtdnn_ds.check.gpu.run import run_parts
    from mtdnn_ds.monitor.console import print_table

    beside = None if is_rehearsal else COMPILES
    try:
        found = run_parts(PARTS, output, is_rehearsal=is_rehearsal, beside=beside)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({reason(error)}); give another") from error
    print_table(terminal_table(found))
    print(f"\n{counts(found)}\n{output / PAGE_NAME} and {output / JSON_NAME}, {found.seconds:.0f} s")
    return int(not found.is_good)


def _count(number: int, noun: str) -> str:
    if number > 1:
        noun += "s"
    return f"{number} {noun}"
