"""What every page is written in: colours, fonts, numbers as words, texts as markup. Draws nothing.

Colours are CSS variables with a light and a dark value, so that a page follows its reader's choice; page.js
gives figures the present ones.
"""

from __future__ import annotations

import html
import math
import re

# Light, dark. The first eight after Okabe & Ito (told apart by everybody), darkened or lightened to stand out
# from the ground.
SERIES = (
    ("#0072b2", "#56b4e9"), ("#d55e00", "#ff8c42"), ("#009e73", "#2fd0a0"), ("#b0528f", "#e39ac6"),
    ("#b07d00", "#f0b429"), ("#3f51b5", "#9fa8f5"), ("#7f5539", "#cfa685"), ("#5a6570", "#b4bec8"),
    ("#c2185b", "#ff7fab"), ("#558b2f", "#a5d66f"), ("#00838f", "#4dd0e1"), ("#8e44ad", "#cf9dea"),
)  # fmt: skip
THEME = {
    "ground": ("#ffffff", "#14181d"), "panel": ("#f7f8fa", "#1b2128"), "ink": ("#1c2329", "#e4e9ee"),
    "soft": ("#5c6873", "#97a3af"), "line": ("#e1e5ea", "#2e3740"), "bad": ("#c62828", "#ff8a80"),
}  # fmt: skip
COLORS = {**THEME, **{f"s{number}": pair for number, pair in enumerate(SERIES)}}
DASHES = ("solid", "5px,3px", "2px,2px", "8px,3px,2px,3px")

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def color(number: int) -> str:
    """The colour of series `number`; they begin anew after the twelfth."""
    return f"var(--s{number % len(SERIES)})"


def printable(text: object) -> str:
    """Any text without control characters and lone surrogates, which are shown as �."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", "\ufffd", str(text))


def escape(text: object) -> str:
    """Any text as HTML shows it, in an element or an attribute."""
    return html.escape(printable(text), quote=True)


def escape_label(text: object) -> str:
    """Any text as a figure shows it. plotly reads names, ticks and hover texts as a little HTML, but knows no
    &quot;.
    """
    return html.escape(printable(text), quote=False)


def shortened(text: str, most: int) -> str:
    """At most `most` characters, the last of them … where some are left out."""
    if len(text) <= most:
        return text
    return text[: max(most - 1, 1)] + "…"


def number(value: float | None, digits: int = 4) -> str:
    """`12,500`, `0.8123`, `3.2e-05`, `1.3M`; - where there is none."""
    if value is None or not math.isfinite(value):
        return "-"

    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}" if size else "0"  # never -0
    if size < 1e-3:
        return f"{value:.2g}"
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def fixed(value: float | None) -> str:
    """`0.8120`: a metric, with as many digits as its neighbours."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}"
