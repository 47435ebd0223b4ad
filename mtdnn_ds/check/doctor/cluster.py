"""All that doctor looks at: each node alone, then what only all ranks together find out. Prints nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from mtdnn_ds import dist
from mtdnn_ds.check.doctor.findings import Finding
from mtdnn_ds.check.doctor.links import all_reduce_bytes_per_second, link_findings, measure_links
from mtdnn_ds.check.doctor.machine import machine_findings
from mtdnn_ds.check.doctor.packages import extensions_folder, op_findings, package_findings
from mtdnn_ds.check.doctor.shared import shared_findings
from mtdnn_ds.train.engine import start_distributed, stop_distributed

# A rank that cannot be reached: training would wait two hours for it.
JOIN_TIMEOUT = timedelta(minutes=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """What was found of each node, the same on every rank; or, of a rank that did not reach the others, of
    its own.
    """

    by_node: dict[str, list[Finding]]
    num_ranks: int
    joined: bool


def examine(output_dir: Path) -> Examination:
    """Look at this node, or under a launcher at all of them. Collective under a launcher."""
    local: list[Finding] = []
    if dist.local_rank() == 0:
        local = [*package_findings(), *op_findings(extensions_folder()), *machine_findings(output_dir)]

    try:
        device = start_distributed(timeout=JOIN_TIMEOUT)
    except RuntimeError as error:
        found = [*local, _joining_finding(error)]
        return Examination(by_node={_node(): found}, num_ranks=dist.world_size(), joined=False)

    nodes = dist.gather(_node())
    by_node = {
        node: list(findings) for node, findings in zip(nodes, dist.gather(local), strict=True) if findings
    }
    together = _together(output_dir, nodes, device)
    for findings in by_node.values():
        findings += together
    stop_distributed()
    return Examination(by_node=by_node, num_ranks=len(nodes), joined=True)


def _joining_finding(error: RuntimeError) -> Finding:
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    what = (
        f"rank {dist.rank()} of {dist.world_size()} did not reach the others at {place}: "
        f"{str(error).splitlines()[0]}"
    )
    advice = (
        "is that host right, its port free and not blocked between nodes, and were all ranks started? On "
        "several networks set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME"
    )
    return Finding(check="joining", status="fails", what=what, advice=advice)


def _together(output_dir: Path, nodes: Sequence[str], device: torch.device) -> list[Finding]:
    """What only all ranks together can find out. `nodes`: of each rank."""
    findings = shared_findings(output_dir, nodes)
    if len(nodes) == 1:
        return findings

    # One rank of each node; on one node its ranks are the peers.
    ranks, names = [nodes.index(node) for node in dict.fromkeys(nodes)], nodes
    if len(ranks) == 1:
        ranks = list(range(len(nodes)))
        names = [f"rank {rank}" for rank in ranks]
    links = measure_links(ranks, device)
    return [*findings, *link_findings(links, names, all_reduce_bytes_per_second(device))]


def _node() -> str:
    """This node's name: SLURM's, else the host's; several nodes on one host (as in tests) are told apart by
    SLURM alone.
    """
    return os.environ.get("SLURMD_NODENAME") or platform.node()
