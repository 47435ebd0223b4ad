"""Finding: one thing that was looked at, whether it hurts, how, and what to do. And their report.

Looks at nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "hurts", "fails"]
SEVERITY: tuple[Status, ...] = ("ok", "note", "hurts", "fails")
_MOST_NAMES = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """`status`: ok; note (worth knowing); hurts (a run works, but slower or less safely); fails (a run would
    not work).
    """

    check: str
    status: Status
    what: str
    advice: str = ""  # how it hurts and what to do; empty where nothing is wrong


def judged(check: str, what: str, *, hurts: bool, advice: str) -> Finding:
    """A finding that is ok, or hurts for the reason that `advice` gives."""
    if not hurts:
        return Finding(check=check, status="ok", what=what)
    return Finding(check=check, status="hurts", what=what, advice=advice)


def report(by_node: Mapping[str, Sequence[Finding]]) -> str:
    """All findings as lines, those that several nodes share once."""
    nodes: dict[Finding, list[str]] = {}
    for node, findings in by_node.items():
        for finding in findings:
            nodes.setdefault(finding, []).append(node)

    order = list(dict.fromkeys(finding.check for finding in nodes))
    lines = []
    for finding in sorted(nodes, key=lambda finding: order.index(finding.check)):
        place = finding.check
        if len(nodes[finding]) < len(by_node):
            place += f" [{_names(nodes[finding])}]"
        lines.append(f"{finding.status:<6} {place}: {finding.what}")
        if finding.advice:
            lines.append(f"{'':<6}   {finding.advice}")

    counts = [f"{sum(finding.status == status for finding in nodes)} {status}" for status in SEVERITY]
    return "\n".join([*lines, "", "  ".join(counts)])


def any_fails(by_node: Mapping[str, Sequence[Finding]]) -> bool:
    """Whether a run would not work."""
    return any(finding.status == "fails" for findings in by_node.values() for finding in findings)


def gigabytes(num_bytes: float) -> str:
    """`1.3 GB`, or MB below 1 GB."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.0f} MB"


def _names(nodes: Sequence[str]) -> str:
    names = ", ".join(nodes[:_MOST_NAMES])
    if len(nodes) > _MOST_NAMES:
        names += f" and {len(nodes) - _MOST_NAMES} more"
    return names
