"""A chart: a plotly figure in a card of a page. plots.py and matrices.py draw what is in the figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from mtdnn_ds.report.style import FONT, escape

LEGEND_ROW = 19  # pixels
_CLEAR = "rgba(0,0,0,0)"  # the card is seen through the figure

# What all figures have in common. Colours are the page's variables: page.js puts the present values in.
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 12, "color": "var(--soft)"},
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "margin": {"l": 50, "r": 14, "t": 14, "b": 40},
        "xaxis": {
            "showgrid": False,
            "zeroline": False,
            "showline": True,
            "linecolor": "var(--soft)",
            "ticks": "outside",
            "ticklen": 4,
            "tickcolor": "var(--soft)",
            "nticks": 8,
            "tickformat": ",",
            "automargin": True,
            "title": {"standoff": 6},
            "spikecolor": "var(--soft)",
            "spikethickness": 1,
            "spikedash": "solid",
        },
        "yaxis": {
            "gridcolor": "var(--line)",
            "zeroline": False,
            "nticks": 6,
            "separatethousands": True,
            "automargin": True,
        },
        "hoverlabel": {
            "bgcolor": "var(--ground)",
            "bordercolor": "var(--soft)",
            "font": {"family": FONT, "size": 12.5, "color": "var(--ink)"},
            "namelength": -1,
        },
        "modebar": {"bgcolor": _CLEAR, "color": "var(--soft)", "activecolor": "var(--ink)"},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 0,
            "yref": "container",
            "yanchor": "bottom",
            "bgcolor": _CLEAR,
            "font": {"size": 12.5, "color": "var(--ink)"},
        },
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What stands around a figure."""

    title: str
    note: str = ""
    dot: str | None = None  # colour of the mark before the title
    wide: bool = False  # as wide as the page; else several stand side by side


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure and its card. `height` and `max_width` are pixels."""

    card: Card
    figure: go.Figure
    height: int
    max_width: int | None = None

    @property
    def markup(self) -> str:
        """The chart as a part of a page; page.js draws it."""
        card = self.card
        title = escape(card.title)
        size = f"height:{self.height}px"
        if self.max_width is not None:
            size += f";max-width:{self.max_width}px"

        parts = [
            f"<figcaption>{dot_markup(card.dot)}{title}</figcaption>",
            f'<div class="plot" role="img" aria-label="{title}" style="{size}"></div>',
            f'<script type="application/json">{self.json}</script>',
        ]
        if card.note:
            parts.append(f'<p class="note">{escape(card.note)}</p>')

        kind = "chart wide" if card.wide else "chart"
        return f'<figure class="{kind}">{"".join(parts)}</figure>'

    @property
    def json(self) -> str:
        """The figure, without a character that could end the element around it."""
        return str(self.figure.to_json()).replace("<", "\\u003c")


def new_figure(**layout: Any) -> go.Figure:
    """An empty figure that looks as all do, but for `layout`."""
    return go.Figure(layout={"template": _TEMPLATE, **layout})


def dot_markup(color: str | None) -> str:
    """The small coloured square before a task's name; nothing without a colour."""
    if color is None:
        return ""
    return f'<i class="dot" style="background:{color}"></i>'
