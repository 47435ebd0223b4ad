"""Curves and groups of bars, of the report and of experiments.

Plain numbers in, a Chart out; computes nothing but means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtdnn_ds.report.chart import LEGEND_ROW, Card, Chart, new_figure
from mtdnn_ds.report.style import color, escape_label, number, shortened

PALE = 0.4  # opacity of the first way, where colours tell groups apart
FEW = 12  # points; a curve of so few has markers

Groups = Mapping[str, Mapping[str, Sequence[float]]]  # way -> group -> values


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve.

    `raw`: the same before smoothing, drawn faintly; `dotted`: points of a companion, as what was planned
    beside what was done; `spread`: every value at each x, drawn as dots with a band around them.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dash: str = "solid"
    raw: Sequence[float] | None = None
    dotted: tuple[Sequence[float], Sequence[float]] | None = None
    spread: Mapping[float, Sequence[float]] | None = None
    markers: bool = False

    @property
    def shown(self) -> list[float]:
        """Every y that is drawn."""
        dotted = self.dotted[1] if self.dotted else ()
        spread = [y for values in (self.spread or {}).values() for y in values]
        return [*self.y, *(self.raw or ()), *dotted, *spread]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """How the axes of curves are. `log_x`: sizes, each of them a tick; `from_zero`: of y."""

    x_label: str = "step"
    log_x: bool = False
    from_zero: bool = False


STEPS = Axes()
STEPS_FROM_ZERO = Axes(from_zero=True)


def line_chart(
    card: Card, series: Sequence[Series], *, axes: Axes = STEPS, marks: Sequence[tuple[float, str]] = ()
) -> Chart:
    """Curves over steps or sizes. `marks`: upright lines with their words (a stop, a resume)."""
    figure = new_figure(hovermode="x unified", showlegend=len(series) > 1)
    figure.update_layout(xaxis=_x_axis(axes, series), yaxis=_y_axis(axes, series))
    for each in series:
        figure.add_traces(_traces(each))

    for place, words in marks:
        figure.add_vline(x=place, line={"color": "var(--bad)", "dash": "3px,3px", "width": 1})
        figure.add_annotation(
            x=place, y=1, yref="paper", yanchor="bottom", text="▾", hovertext=escape_label(words),
            showarrow=False, font={"color": "var(--bad)"}, yshift=-5,
        )  # fmt: skip

    height = 300 if card.wide else 235
    if len(series) > 1:
        height += LEGEND_ROW * (1 + len(series) // 9)
    return Chart(card=card, figure=figure, height=height)


def _x_axis(axes: Axes, series: Sequence[Series]) -> dict[str, Any]:
    # The head of the box at the pointer: "step 12".
    axis: dict[str, Any] = {
        "title": {"text": axes.x_label},
        "unifiedhovertitle": {"text": f"{axes.x_label} %{{x:,}}"},
    }
    if not axes.log_x:
        return {**axis, "type": "linear"}

    sizes = sorted({x for each in series for x in each.x})
    ticks = [number(size) for size in sizes]
    return {**axis, "type": "log", "tickvals": sizes, "ticktext": ticks}


def _y_axis(axes: Axes, series: Sequence[Series]) -> dict[str, Any]:
    """Numbers as words have them: 0.0123, 12,500, 1.2M, and powers of ten only for very small ones."""
    values = [y for each in series for y in each.shown if math.isfinite(y)]
    largest = max((abs(y) for y in values), default=0.0)
    axis: dict[str, Any] = {"exponentformat": "SI", "minexponent": 5, "hoverformat": ".4~g"}
    if largest < 1e-3:
        axis |= {"exponentformat": "e", "minexponent": 3}
    elif largest >= 1000:
        axis["hoverformat"] = ",.0f"

    if axes.from_zero:
        axis["rangemode"] = "tozero"
    elif values and min(values) == max(values):  # plotly would take 1 on either side
        air = 0.05 * largest or 0.5
        axis["range"] = [values[0] - air, values[0] + air]
    return axis


def _traces(series: Series) -> list[dict[str, Any]]:
    """The curve, and behind it what goes with it: its name in the legend hides all of them."""
    companion = {
        "type": "scatter",
        "legendgroup": series.name,
        "showlegend": False,
        "hoverinfo": "skip",
        "marker": {"color": series.color},
    }
    traces = []
    if series.spread is not None:
        traces += _spread(series.spread, series.color, companion)
    if series.raw is not None:
        line = {"color": series.color, "width": 1.1}
        traces.append(
            {**companion, **_points(series.x, series.raw), "mode": "lines", "line": line, "opacity": 0.28}
        )
    if series.dotted is not None:
        line = {"color": series.color, "width": 2, "dash": "2px,4px"}
        traces.append(
            {**companion, **_points(*series.dotted), "mode": "lines", "line": line, "opacity": 0.75}
        )

    with_markers = series.markers or len(series.x) <= FEW
    curve = {
        "type": "scatter",
        "name": escape_label(series.name),
        "legendgroup": series.name,
        **_points(series.x, series.y),
        "mode": "lines+markers" if with_markers else "lines",
        "line": {"color": series.color, "width": 2, "dash": series.dash},
        "marker": {"color": series.color, "size": 5},
    }
    return [*traces, curve]


def _spread(
    spread: Mapping[float, Sequence[float]], shade: str, companion: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A band from the least to the greatest value at each place, and every value as a dot."""
    there = sorted(spread)
    back = there[::-1]
    edge = [*(max(spread[place]) for place in there), *(min(spread[place]) for place in back)]
    band = {
        **companion,
        **_points([*there, *back], edge),
        "mode": "lines",
        "line": {"color": shade, "width": 0},
        "fill": "toself",  # half transparent by itself
        "opacity": 0.28,
    }

    every = [(place, value) for place in there for value in spread[place]]
    places, values = [place for place, _ in every], [value for _, value in every]
    dots = {
        **companion,
        **_points(places, values),
        "mode": "markers",
        "marker": {"color": shade, "size": 4},
        "opacity": 0.55,
    }
    return [band, dots]


def bar_chart(
    card: Card, groups: Groups, *, colors: Mapping[str, str] | None = None, percent: bool = False
) -> Chart:
    """One group of bars for each name inside, one bar a way: its mean, and every value as a dot.

    `colors`: of each group, for bars that are told apart by how full they are; else each way has its own.
    """
    names = list(dict.fromkeys(name for of_way in groups.values() for name in of_way))
    figure = new_figure(
        hovermode="closest",
        barmode="group",
        scattermode="group",
        bargap=0.2,
        scattergap=0.2,
        bargroupgap=0.06,
        showlegend=len(groups) > 1,
        xaxis={
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [escape_label(name) for name in names],
            "tickvals": list(range(len(names))),
            "ticktext": [escape_label(shortened(name, 24)) for name in names],
            "tickfont": {"color": "var(--ink)"},
            "ticks": "",
        },
        yaxis={
            "rangemode": "tozero",
            "exponentformat": "SI",
            "minexponent": 5,
            "tickformat": ".0%" if percent else "",
        },
    )
    for index, way in enumerate(groups):
        values = {name: of_group for name, of_group in groups[way].items() if of_group}
        texts = _BarTexts(way=way, percent=percent)
        figure.add_trace(_bars(values, texts, color(index)))
        if colors is not None:
            # One bar that is not there stands for those of all colours in the legend.
            shades = [colors[name] for name in values]
            opacity = PALE if index == 0 and len(groups) > 1 else 1.0
            figure.data[-1].update(marker={"color": shades}, opacity=opacity, showlegend=False)
            figure.add_trace(
                {**_bars({}, texts, "var(--soft)"), "x": [None], "y": [None], "opacity": opacity}
            )
        figure.add_trace(_dots(values, texts))

    width = max(430, min(880, 70 + len(names) * (30 + 26 * len(groups))))
    return Chart(card=replace(card, wide=width > 500), figure=figure, height=300, max_width=width * 5 // 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class _BarTexts:
    """What is shown at the pointer."""

    way: str
    percent: bool

    def of(self, name: str, value: float) -> str:
        shown = f"{100 * value:.2f} %" if self.percent else number(value)
        return escape_label(f"{name}, {self.way}: {shown}")


def _bars(values: Mapping[str, Sequence[float]], texts: _BarTexts, shade: str) -> dict[str, Any]:
    means = {name: sum(of_group) / len(of_group) for name, of_group in values.items()}
    return {
        "type": "bar",
        "name": escape_label(texts.way),
        "legendgroup": texts.way,
        "offsetgroup": texts.way,
        "x": [escape_label(name) for name in means],
        "y": [_short(mean) for mean in means.values()],
        "hovertext": [texts.of(name, mean) for name, mean in means.items()],
        "hoverinfo": "text",
        "marker": {"color": shade},
    }


def _dots(values: Mapping[str, Sequence[float]], texts: _BarTexts) -> dict[str, Any]:
    """Every value, of groups that have several."""
    every = [(name, value) for name, of_group in values.items() if len(of_group) > 1 for value in of_group]
    return {
        "type": "scatter",
        "mode": "markers",
        "legendgroup": texts.way,
        "offsetgroup": texts.way,
        "showlegend": False,
        "x": [escape_label(name) for name, _ in every],
        "y": [_short(value) for _, value in every],
        "hovertext": [texts.of(name, value) for name, value in every],
        "hoverinfo": "text",
        "marker": {"color": "var(--ink)", "size": 5, "opacity": 0.65},
    }


def _points(xs: Sequence[float], ys: Sequence[float]) -> dict[str, list[float | None]]:
    """Coordinates of a trace; a line is broken where a value is not finite."""
    return {"x": [_short(x) for x in xs], "y": [_short(y) for y in ys]}


def _short(value: float) -> float | None:
    """Six digits, as many as a reader can use; None if it is not finite."""
    if not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
