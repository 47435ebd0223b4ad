"""Numbers of a table in docs/. Not a test file."""

from __future__ import annotations


def numbers(cell: str) -> list[float]:
    """Those of a cell such as `1,000 / 0.5`."""
    return [float(part.replace(",", "")) for part in cell.split("/")]
