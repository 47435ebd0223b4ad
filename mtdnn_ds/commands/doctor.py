"""`doctor`: what of this machine, or of the cluster whose launcher started it, would hurt a long run.

Changes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path


def run(*, output_dir: str, gpu: bool, log_level: str) -> int:
    """Print a report; returns 1 if a run would not work, else 0. Collective under a launcher."""
    from mtdnn_ds import dist
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]

    from mtdnn_ds.check.doctor.cluster import examine
    from mtdnn_ds.check.doctor.findings import any_fails, report

    found = examine(Path(output_dir), gpu=gpu)
    if not found.joined:
        print(report(found.by_node), file=sys.stderr)
        return 1

    if dist.is_main():
        nodes, ranks = _count(len(found.by_node), "node"), _count(found.num_ranks, "rank")
        print(f"{nodes}, {ranks}: {', '.join(found.by_node)}")
        print(report(found.by_node))
    return int(any_fails(found.by_node))


def _count(number: int, noun: str) -> str:
    if number > 1:
        noun += "s"
    return f"{number} {noun}"
