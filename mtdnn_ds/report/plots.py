"""Curves and groups of bars, of the report and of experiments. Plain numbers in, a Chart out; nothing is computed but means and positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtdnn_ds.report.chart import Chart, Legend, shortened
from mtdnn_ds.report.svg import Scale, axes, color, element, escape, number, padded_range, text

PALE = 0.4  # opacity of the first way, where colours tell groups apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve. `raw`: the same before smoothing, drawn faintly; `dotted`: points of a companion, as what was planned beside what was done;
    `spread`: every value at each x, drawn as dots with a band around them.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dash: str = ""
    raw: Sequence[float] | None = None
    dotted: tuple[Sequence[float], Sequence[float]] | None = None
    spread: Mapping[float, Sequence[float]] | None = None
    markers: bool = False


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    marks: Sequence[tuple[float, str]] = (),
    log_x: bool = False,
    from_zero: bool = False,
    wide: bool = False,
    note: str = "",
    dot: str | None = None,
) -> Chart:
    """Curves over steps or, with `log_x`, over sizes. `marks`: upright lines with their words (a stop, a resume)."""
    width, height = (880, 300) if wide else (380, 235)
    box = (58.0, 14.0, width - 16.0, height - 42.0)
    xs = [x for each in series for x in each.x] + [place for place, _ in marks]
    ys = [
        y
        for each in series
        for y in (
            *each.y,
            *(each.raw or ()),
            *(value for values in (each.spread or {}).values() for value in values),
        )
    ]
    x_low, x_high = padded_range(xs, log=True) if log_x else (min(xs, default=0), max(xs, default=1))
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_low, y_high = padded_range(ys, from_zero=from_zero)
    x, y = (
        Scale(low=x_low, high=x_high, begin=box[0] + 4, end=box[2] - 4, log=log_x),
        Scale(low=y_low, high=y_high, begin=box[3], end=box[1]),
    )
    parts = [axes(box, x, y, x_label=x_label, x_ticks=sorted(set(xs)) if log_x else None)]
    for place, words in marks:
        at = x.at(place)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{box[1]}" y2="{box[3]}" stroke="var(--bad)" stroke-dasharray="3 3"><title>{escape(words)}</title></line>'
        )
    for index, each in enumerate(series):
        inner = []
        if each.spread:
            inner.append(_band(each, x, y))
        if each.raw is not None:
            inner.append(_path(each.x, each.raw, x, y, each.color, opacity=0.28, width=1.1))
        if each.dotted is not None:
            inner.append(_path(*each.dotted, x, y, each.color, dash="2 4", width=2, opacity=0.75))
        inner.append(_path(each.x, each.y, x, y, each.color, dash=each.dash, width=2))
        few = each.markers or len(each.x) <= 12
        inner += [
            f'<circle cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="2.6" fill="{each.color}"/>'
            for a, b in zip(each.x, each.y, strict=True)
            if few and math.isfinite(b)
        ]
        parts.append(element("g", "".join(inner), data_series=index))
    hover = {
        "box": box, "x": [x.low, x.high, x.begin, x.end, x.log], "y": [y.low, y.high, y.begin, y.end], "label": x_label or "x",
        "series": [{"name": each.name, "color": each.color, "x": [_short(v) for v in each.x], "y": [_short(v) for v in each.y]} for each in series],
    }  # fmt: skip
    legend = tuple(Legend(name=each.name, color=each.color, dash=each.dash) for each in series)
    return Chart(
        title=title,
        width=width,
        height=height,
        body="".join(parts),
        legend=legend,
        hover=hover,
        note=note,
        dot=dot,
    )


def bar_chart(
    title: str,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    colors: Mapping[str, str] | None = None,
    note: str = "",
    percent: bool = False,
) -> Chart:
    """One group of bars for each name inside, one bar a way: its mean, and every value as a dot. `groups`: way -> group -> values.

    `colors`: of each group, for bars that are told apart by how full they are; else each way has its own.
    """
    ways = list(groups)
    names = list(dict.fromkeys(name for of_way in groups.values() for name in of_way))
    width = max(430, min(880, 70 + len(names) * (30 + 26 * len(ways))))
    long = max((len(name) for name in names), default=0) * 6.4 > (width - 80) / max(len(names), 1) - 4
    bottom = 96.0 if long else 34.0
    height = int(230 + bottom)
    box = (58.0, 14.0, width - 12.0, height - bottom)
    values = [value for of_way in groups.values() for each in of_way.values() for value in each]
    low, high = padded_range(values, from_zero=True)
    y = Scale(low=low, high=high, begin=box[3], end=box[1])
    parts = [axes(box, Scale(low=0, high=1, begin=box[0], end=box[2]), y, x_label="", x_ticks=[])]
    room = (box[2] - box[0]) / max(len(names), 1)
    bar = min(34.0, room * 0.8 / len(ways))
    for place, name in enumerate(names):
        middle = box[0] + room * (place + 0.5)
        for index, way in enumerate(ways):
            own = groups[way].get(name, ())
            if not own:
                continue
            mean, left = sum(own) / len(own), middle + (index - len(ways) / 2) * bar
            top, zero = min(y.at(mean), y.at(0)), max(y.at(mean), y.at(0))
            shown = f"{100 * mean:.2f} %" if percent else number(mean)
            fill = colors[name] if colors else color(index)
            faint = f' fill-opacity="{PALE if index == 0 and len(ways) > 1 else 1}"' if colors else ""
            parts.append(
                f'<rect x="{left + 1:.1f}" y="{top:.1f}" width="{bar - 2:.1f}" height="{max(zero - top, 0.5):.1f}" rx="2" fill="{fill}"{faint}>'
                f"<title>{escape(f'{name}, {way}: {shown}')}</title></rect>"
            )
            if len(own) > 1:
                parts += [
                    f'<circle cx="{left + bar / 2:.1f}" cy="{y.at(value):.1f}" r="2.4" fill="var(--ink)" fill-opacity="0.65"/>'
                    for value in own
                ]
        if long:
            parts.append(
                text(
                    middle + 4,
                    box[3] + 14,
                    shortened(name, 24),
                    anchor="end",
                    fill="var(--ink)",
                    more=f' transform="rotate(-32 {middle + 4:.1f} {box[3] + 14:.1f})"',
                )
            )
        else:
            parts.append(text(middle, box[3] + 17, name, anchor="middle", fill="var(--ink)"))
    if colors:
        legend = tuple(
            Legend(
                name=way,
                color="var(--soft)",
                square=True,
                opacity=PALE if index == 0 and len(ways) > 1 else 1.0,
            )
            for index, way in enumerate(ways)
        )
    else:
        legend = tuple(Legend(name=way, color=color(index), square=True) for index, way in enumerate(ways))
    return Chart(title=title, width=width, height=height, body="".join(parts), legend=legend, note=note)


def _path(
    xs: Sequence[float],
    ys: Sequence[float],
    x: Scale,
    y: Scale,
    stroke: str,
    *,
    dash: str = "",
    width: float,
    opacity: float = 1,
) -> str:
    """A line through the finite points; it is broken where one is not."""
    words, pen = [], "M"
    for a, b in zip(xs, ys, strict=True):
        if not math.isfinite(b):
            pen = "M"
            continue
        words.append(f"{pen}{x.at(a):.1f} {y.at(b):.1f}")
        pen = "L"
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="{"".join(words)}" fill="none" stroke="{stroke}" stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"{dashes}/>'


def _band(series: Series, x: Scale, y: Scale) -> str:
    assert series.spread is not None
    places = sorted(series.spread)
    outline = [
        *((place, max(series.spread[place])) for place in places),
        *((place, min(series.spread[place])) for place in reversed(places)),
    ]
    points = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in outline)
    dots = "".join(
        f'<circle cx="{x.at(place):.1f}" cy="{y.at(value):.1f}" r="2" fill="{series.color}" fill-opacity="0.55"/>'
        for place in places
        for value in series.spread[place]
    )
    return f'<polygon points="{points}" fill="{series.color}" fill-opacity="0.14"/>{dots}'


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
