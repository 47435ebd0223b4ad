"""The certificate of verify: each promise, its figure and what it may be at most.

Text and JSON; measures nothing.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata

from mtdnn_ds import __version__

VERDICTS = {True: "", False: "   DOES NOT HOLD", None: "   not measured"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """`figure` None: not measured, and `why` says why."""

    promise: str
    figure: float | None
    at_most: float
    why: str = ""
    failed: bool = False  # the runs that would have given the figure did not end well

    @property
    def holds(self) -> bool | None:
        """None: not measured."""
        if self.failed:
            return False
        if self.figure is None:
            return None
        return self.figure <= self.at_most


def certificate(results: Sequence[Result], recipe: str, seconds: float) -> str:
    """What verify prints."""
    lines = [f"{'figure':>8}  {'at most':>8}  promise"]
    for result in results:
        figure, at_most = _figure(result.figure), result.at_most or 0
        lines.append(f"{figure:>8}  {at_most:>8g}  {result.promise}{VERDICTS[result.holds]}")
        if result.why:
            lines += [f"{'':>8}  {'':>8}    {line}" for line in result.why.splitlines()]

    num_held = sum(result.holds is True for result in results)
    num_failed = sum(result.holds is False for result in results)
    count = f"{num_held} promises hold"
    if num_failed:
        count += f", {num_failed} do NOT"

    torch, deepspeed = metadata.version("torch"), metadata.version("deepspeed")
    where = f"{recipe}, mtdnn_ds {__version__}, torch {torch}, deepspeed {deepspeed}, {platform.node()}"
    return "\n".join([*lines, "", f"{count} ({where}; {seconds:.0f} s)"])


def _figure(figure: float | None) -> str:
    """`1.2e-07`; 0 is nothing else, - was not measured."""
    if figure is None:
        return "-"
    if figure == 0:
        return "0"
    return f"{figure:.1e}"


def certificate_json(results: Sequence[Result], recipe: str) -> str:
    """The same for machines."""
    whole = {
        "recipe": recipe,
        "mtdnn_ds": __version__,
        "host": platform.node(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": {name: metadata.version(name) for name in ("torch", "deepspeed", "transformers")},
        "results": [{**asdict(result), "holds": result.holds} for result in results],
    }
    return json.dumps(whole, indent=1)
