"""`doctor`: what of this machine, or of the cluster whose launcher started it, would hurt a long run. Changes nothing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from mtdnn_ds.check.doctor.findings import Finding

# A rank that cannot be reached: training would wait two hours for it.
JOIN_TIMEOUT = timedelta(minutes=2)


def run(*, output_dir: str, gpu: bool, log_level: str) -> int:
    """Print a report; returns 1 if a run would not work, else 0. Collective under a launcher."""
    from mtdnn_ds import dist
    from mtdnn_ds.check.doctor.findings import Finding, any_fails, report
    from mtdnn_ds.monitor.console import configure_logging

    configure_logging(log_level, dist.rank())  # type: ignore[arg-type]

    from mtdnn_ds.check.doctor.machine import machine_findings
    from mtdnn_ds.check.doctor.packages import extensions_folder, op_findings, package_findings
    from mtdnn_ds.train.engine import start_distributed, stop_distributed

    local = (
        [*package_findings(), *op_findings(extensions_folder()), *machine_findings(Path(output_dir))]
        if dist.local_rank() == 0
        else []
    )
    try:
        device = start_distributed(timeout=JOIN_TIMEOUT)
    except RuntimeError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        advice = "is that host right, its port free and not blocked between nodes, and were all ranks started? On several networks set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
        what = f"rank {dist.rank()} of {dist.world_size()} did not reach the others at {place}: {str(error).splitlines()[0]}"
        local.append(Finding(check="joining", status="fails", what=what, advice=advice))
        print(report({_node(): local}), file=sys.stderr)
        return 1
    nodes = dist.gather(_node())
    by_node = {
        node: list(findings) for node, findings in zip(nodes, dist.gather(local), strict=True) if findings
    }
    together = _together(Path(output_dir), nodes, device)
    if gpu:
        from mtdnn_ds.check.doctor.gpu import gpu_findings

        together += gpu_findings(device)
    for findings in by_node.values():
        findings += together
    if dist.is_main():
        print(
            f"{len(by_node)} node{'s' * (len(by_node) > 1)}, {len(nodes)} rank{'s' * (len(nodes) > 1)}: {', '.join(by_node)}"
        )
        print(report(by_node))
    stop_distributed()
    return 1 if any_fails(by_node) else 0


def _together(output_dir: Path, nodes: Sequence[str], device: torch.device) -> list[Finding]:
    """What only all ranks together can find out."""
    from mtdnn_ds.check.doctor.links import all_reduce_bytes_per_second, link_findings, measure_links
    from mtdnn_ds.check.doctor.shared import shared_findings

    findings = shared_findings(output_dir, nodes)
    if len(nodes) == 1:
        return findings
    leaders = [nodes.index(node) for node in dict.fromkeys(nodes)]
    # One rank of each node; on one node its ranks are the peers.
    links = measure_links(leaders if len(leaders) > 1 else range(len(nodes)), device)
    names = nodes if len(leaders) > 1 else [f"rank {rank}" for rank in range(len(nodes))]
    return [*findings, *link_findings(links, names, all_reduce_bytes_per_second(device))]


def _node() -> str:
    """This node's name: SLURM's, else the host's; several nodes on one host (as in tests) are told apart by SLURM alone."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()
