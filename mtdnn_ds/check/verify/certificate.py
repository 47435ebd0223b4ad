"""The certificate of verify: each promise, its figure and what it may be at most. Text and JSON; measures nothing."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata

from mtdnn_ds import __version__


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
        return None if self.figure is None else self.figure <= self.at_most


def certificate(results: Sequence[Result], recipe: str, seconds: float) -> str:
    """What verify prints."""
    lines = [f"{'figure':>8}  {'at most':>8}  promise"]
    for result in results:
        figure = "-" if result.figure is None else f"{result.figure:.1e}" if result.figure else "0"
        verdict = {True: "", False: "   DOES NOT HOLD", None: "   not measured"}[result.holds]
        lines.append(f"{figure:>8}  {result.at_most or 0:>8g}  {result.promise}{verdict}")
        if result.why:
            lines += [f"{'':>8}  {'':>8}    {line}" for line in result.why.splitlines()]
    failed = sum(result.holds is False for result in results)
    held = sum(result.holds is True for result in results)
    where = f"{recipe}, mtdnn_ds {__version__}, torch {metadata.version('torch')}, deepspeed {metadata.version('deepspeed')}, {platform.node()}"
    end = f"{held} promises hold" + (f", {failed} do NOT" if failed else "") + f" ({where}; {seconds:.0f} s)"
    return "\n".join([*lines, "", end])


def certificate_json(results: Sequence[Result], recipe: str) -> str:
    """The same for machines."""
    about = {
        "recipe": recipe,
        "mtdnn_ds": __version__,
        "host": platform.node(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    packages = {name: metadata.version(name) for name in ("torch", "deepspeed", "transformers")}
    return json.dumps(
        {
            **about,
            "packages": packages,
            "results": [{**asdict(result), "holds": result.holds} for result in results],
        },
        indent=1,
    )
