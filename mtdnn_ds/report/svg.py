"""What every picture is made of: colours, scales, ticks, numbers as words, axes as SVG. Draws no data itself.

Colours are CSS variables with a light and a dark value, so that a page follows its reader's choice; a picture on its own has the light ones.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Light, dark. The first eight after Okabe & Ito (told apart by everybody), darkened or lightened to stand out from the ground.
SERIES = (
    ("#0072b2", "#56b4e9"), ("#d55e00", "#ff8c42"), ("#009e73", "#2fd0a0"), ("#b0528f", "#e39ac6"), ("#b07d00", "#f0b429"),
    ("#3f51b5", "#9fa8f5"), ("#7f5539", "#cfa685"), ("#5a6570", "#b4bec8"), ("#c2185b", "#ff7fab"), ("#558b2f", "#a5d66f"),
    ("#00838f", "#4dd0e1"), ("#8e44ad", "#cf9dea"),
)  # fmt: skip
THEME = {
    "ground": ("#ffffff", "#14181d"), "panel": ("#f7f8fa", "#1b2128"), "ink": ("#1c2329", "#e4e9ee"), "soft": ("#5c6873", "#97a3af"),
    "line": ("#e1e5ea", "#2e3740"), "bad": ("#c62828", "#ff8a80"), "good": ("#0072b2", "#56b4e9"), "on": ("#ffffff", "#0d1116"),
}  # fmt: skip
COLORS = {**THEME, **{f"s{number}": pair for number, pair in enumerate(SERIES)}}
DASHES = ("", "5 3", "2 2", "8 3 2 3")


def color(number: int) -> str:
    """The colour of series `number`; they begin anew after the twelfth."""
    return f"var(--s{number % len(SERIES)})"


def escape(text: object) -> str:
    """Any text as HTML and SVG show it, in an element or an attribute. Control characters, which no XML may hold, are shown as �."""
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", "\ufffd", str(text)), quote=True)


def plain_colors(svg: str) -> str:
    """The picture with the light colours themselves, for programs that know no CSS variables."""
    return re.sub(r"var\(--(\w+)\)", lambda match: COLORS[match[1]][0], svg)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Numbers from `low` to `high` on pixels from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (
            (math.log10(each) for each in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)


def padded_range(
    values: Sequence[float], *, from_zero: bool = False, log: bool = False
) -> tuple[float, float]:
    """A range with some air around the finite ones of `values`."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not finite:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(finite), max(finite)
    if log:
        return (low / 1.3, high * 1.3)
    if from_zero:
        low = min(low, 0.0)
    air = (high - low) * 0.06 or abs(high) * 0.05 or 0.5
    return (low if from_zero and low == 0 else low - air, high + air)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: 1, 2 or 5 times a power of ten apart."""
    step = (high - low) / most
    power = 10.0 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
    return [
        round(index * step, 12)
        for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def number(value: float | None, digits: int = 4) -> str:
    """`12,500`, `0.8123`, `3.2e-05`, `1.3M`; - where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1000 or (size and value == int(value)):
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        return f"{value:.2g}"
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if size else "0"


def fixed(value: float | None) -> str:
    """`0.8120`: a metric, with as many digits as its neighbours."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def axes(
    box: tuple[float, float, float, float],
    x: Scale,
    y: Scale,
    *,
    x_label: str,
    x_ticks: Sequence[float] | None = None,
) -> str:
    """Grid, ticks and their numbers around the plot `box` (left, top, right, bottom)."""
    left, _, right, bottom = box
    parts = []
    for value in ticks(y.low, y.high, 5):
        at = y.at(value)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--line)"/>')
        parts.append(text(left - 7, at + 4, number(value), anchor="end"))
    for value in x_ticks if x_ticks is not None else ticks(x.low, x.high, 6):
        at = x.at(value)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="var(--soft)"/>'
        )
        parts.append(text(at, bottom + 17, number(value), anchor="middle"))
    parts.append(f'<line x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="var(--soft)"/>')
    if x_label:
        parts.append(text(right, bottom + 33, x_label, anchor="end"))
    return "".join(parts)


def text(
    x: float,
    y: float,
    words: object,
    *,
    anchor: str = "start",
    size: float = 12,
    fill: str = "var(--soft)",
    more: str = "",
) -> str:
    """Escaped `words` at a place; `more`: further attributes as they are."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"{more}>{escape(words)}</text>'


def element(name: str, content: str = "", **attributes: Any) -> str:
    """`<name a="b">content</name>`; underscores of attribute names become dashes, None leaves one out. `content` is markup, values are escaped."""
    written = "".join(
        f' {key.replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{content}</{name}>"
