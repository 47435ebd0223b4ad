"""A picture as a record, as a part of a page and as an SVG file. What is in it is drawn by plots.py and matrices.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtdnn_ds.report.svg import element, escape, plain_colors, text

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, kw_only=True, slots=True)
class Legend:
    name: str
    color: str
    dash: str = ""
    square: bool = False
    opacity: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One picture. `hover`: what the page's script shows at the pointer, for curves."""

    title: str
    width: int
    height: int
    body: str  # inside of the <svg>
    legend: tuple[Legend, ...] = ()
    hover: Mapping[str, Any] | None = None
    note: str = ""
    dot: str | None = None  # colour of the mark before the title


def figure(chart: Chart) -> str:
    """The chart as a part of a page."""
    mark = f'<i class="dot" style="background:{chart.dot}"></i>' if chart.dot else ""
    svg = element(
        "svg",
        chart.body,
        viewBox=f"0 0 {chart.width} {chart.height}",
        role="img",
        aria_label=chart.title,
        style=f"max-width:{chart.width * 1.25:.0f}px",
    )
    legend = ""
    if len(chart.legend) > 1:
        keys = "".join(
            f'<button type="button" data-key="{index}"><svg viewBox="0 0 22 10" aria-hidden="true">{_key(each)}</svg>{escape(each.name)}</button>'
            for index, each in enumerate(chart.legend)
        )
        legend = f'<div class="legend">{keys}</div>'
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    data = f' data-hover="{escape(json.dumps(chart.hover))}"' if chart.hover else ""
    wide = " wide" if chart.width > 500 else ""
    return f'<figure class="chart{wide}"{data}><figcaption>{mark}{escape(chart.title)}</figcaption>{svg}{legend}{note}</figure>'


def svg_file(chart: Chart) -> str:
    """The chart as a file of its own, with title and legend, in light colours."""
    lines: list[list[Legend]] = [[]]
    for each in chart.legend:
        if sum(40 + 7 * len(key.name) for key in (*lines[-1], each)) > chart.width - 40:
            lines.append([])
        lines[-1].append(each)
    head = 34 + 18 * (len(lines) if chart.legend else 0)
    parts = [
        '<rect width="100%" height="100%" fill="var(--ground)"/>',
        text(16, 22, chart.title, size=14, fill="var(--ink)", more=' font-weight="600"'),
    ]
    for row, line in enumerate(lines if chart.legend else []):
        x = 16.0
        for each in line:
            parts.append(
                f'<g transform="translate({x:.0f} {31 + 18 * row})">{_key(each)}</g>{text(x + 27, 40 + 18 * row, each.name, fill="var(--ink)")}'
            )
            x += 40 + 7 * len(each.name)
    body = f'{"".join(parts)}<g transform="translate(0 {head})">{chart.body}</g>'
    size = f'width="{chart.width}" height="{chart.height + head}" viewBox="0 0 {chart.width} {chart.height + head}"'
    return plain_colors(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{escape(FONT)}">{body}</svg>\n'
    )


def _key(legend: Legend) -> str:
    if legend.square:
        return f'<rect x="5" y="0" width="11" height="10" rx="2" fill="{legend.color}" fill-opacity="{legend.opacity:g}"/>'
    return f'<line x1="1" x2="21" y1="5" y2="5" stroke="{legend.color}" stroke-width="2.5" stroke-dasharray="{legend.dash}"/>'


def shortened(words: str, most: int) -> str:
    return words if len(words) <= most else words[: max(most - 1, 1)] + "…"
