"""Pictures of predictions: confusion matrices and clouds of points. Counts nothing itself."""

from __future__ import annotations

from collections.abc import Sequence

from mtdnn_ds.report.chart import Card, Chart, new_figure
from mtdnn_ds.report.style import escape_label, shortened

_MOST_LETTERS = 20  # of a label on an axis


def matrix_chart(card: Card, labels: Sequence[str], counts: Sequence[Sequence[int]], *, shade: str) -> Chart:
    """A confusion matrix: a row for each true label, a column for each predicted one; shaded by its share of
    the row.
    """
    places = list(range(len(labels)))
    names = [shortened(label, _MOST_LETTERS) for label in labels]
    longest = max(len(name) for name in names)

    # Cells are square: as many pixels as they need, beside margins for the labels and the titles of the axes.
    cell = max(28.0, min(64.0, 300.0 / len(labels)))
    turned = longest > int(cell / 5.6)
    left = 40 + 7 * longest
    top = 44 + (int(4.6 * longest) if turned else 0)
    right = 60 if turned else 20
    width, height = left + cell * len(labels) + right, top + cell * len(labels) + 8

    axis = {
        "tickvals": places,
        "ticktext": [escape_label(name) for name in names],
        "tickfont": {"color": "var(--ink)"},
        "ticks": "",
        "showline": False,
        "showgrid": False,
        "fixedrange": True,
        "automargin": False,
    }
    figure = new_figure(
        hovermode="closest",
        margin={"l": left, "r": right, "t": top, "b": 8},
        xaxis={**axis, "title": {"text": "predicted"}, "side": "top", "tickangle": -38 if turned else 0},
        yaxis={**axis, "title": {"text": "true", "standoff": 8}, "autorange": "reversed"},
    )
    totals = [sum(row) or 1 for row in counts]
    figure.add_heatmap(
        z=[[round(count / total, 4) for count in row] for row, total in zip(counts, totals, strict=True)],
        zmin=0,
        zmax=1,
        colorscale=[[0, "var(--line)"], [1, shade]],
        showscale=False,
        xgap=1.5,
        ygap=1.5,
        text=[[f"{count:,}" if count else "" for count in row] for row in counts],
        texttemplate="%{text}",
        textfont={"size": 12.5 if cell >= 34 else 9},
        hovertext=_hover_texts(labels, counts),
        hoverinfo="text",
    )
    return Chart(card=card, figure=figure, height=round(height), max_width=round(width))


def _hover_texts(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> list[list[str]]:
    texts = []
    for true, row in zip(labels, counts, strict=True):
        total = sum(row)
        of_row = []
        for predicted, count in zip(labels, row, strict=True):
            share = f"{100 * count / max(total, 1):.1f} %"
            text = f"{count:,} of {total:,} rows of {true} predicted as {predicted} ({share})"
            of_row.append(escape_label(text))
        texts.append(of_row)
    return texts


def scatter_chart(
    card: Card, true_scores: Sequence[float], predicted_scores: Sequence[float], *, shade: str
) -> Chart:
    """Points of predicted against true scores, and the line on which both agree."""
    every = [*true_scores, *predicted_scores]
    low, high = min(every, default=0.0), max(every, default=1.0)

    figure = new_figure(
        hovermode="closest",
        xaxis={"title": {"text": "true score"}, "tickformat": ""},
        yaxis={"title": {"text": "predicted"}},
    )
    figure.add_shape(
        type="line", x0=low, y0=low, x1=high, y1=high,
        line={"color": "var(--soft)", "dash": "4px,4px", "width": 1}, layer="below",
    )  # fmt: skip
    figure.add_scatter(
        x=list(true_scores),
        y=list(predicted_scores),
        mode="markers",
        marker={"color": shade, "size": 5, "opacity": max(0.15, min(0.7, 60 / max(len(every) // 2, 1)))},
        hovertemplate="true %{x:.4~g}, predicted %{y:.4~g}<extra></extra>",
    )
    return Chart(card=card, figure=figure, height=330)
