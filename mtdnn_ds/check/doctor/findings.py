"""Finding: one thing that was looked at, whether it hurts, how, and what to do. And their report. Looks at nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "hurts", "fails"]
SEVERITY: tuple[Status, ...] = ("ok", "note", "hurts", "fails")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """`status`: ok; note (worth knowing); hurts (a run works, but slower or less safely); fails (a run would not work)."""

    check: str
    status: Status
    what: str
    advice: str = ""  # how it hurts and what to do; empty where nothing is wrong


def report(by_node: Mapping[str, Sequence[Finding]]) -> str:
    """All findings as lines, those that several nodes share once."""
    nodes: dict[Finding, list[str]] = {}
    for node, findings in by_node.items():
        for finding in findings:
            nodes.setdefault(finding, []).append(node)
    order = list(dict.fromkeys(finding.check for finding in nodes))
    lines = []
    for finding in sorted(nodes, key=lambda finding: order.index(finding.check)):
        where = "" if len(nodes[finding]) == len(by_node) else f" [{_names(nodes[finding])}]"
        lines.append(f"{finding.status:<6} {finding.check + where}: {finding.what}")
        if finding.advice:
            lines.append(f"{'':<6}   {finding.advice}")
    counts = {status: sum(finding.status == status for finding in nodes) for status in SEVERITY}
    lines += ["", "  ".join(f"{counts[status]} {status}" for status in SEVERITY)]
    return "\n".join(lines)


def any_fails(by_node: Mapping[str, Sequence[Finding]]) -> bool:
    """Whether a run would not work."""
    return any(finding.status == "fails" for findings in by_node.values() for finding in findings)


def gigabytes(num_bytes: float) -> str:
    """`1.3 GB`, or MB below 1 GB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _names(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:6]) + (f" and {len(nodes) - 6} more" if len(nodes) > 6 else "")
