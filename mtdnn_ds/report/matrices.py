"""Pictures of predictions: confusion matrices and clouds of points. Counts nothing itself."""

from __future__ import annotations

from collections.abc import Sequence

from mtdnn_ds.report.chart import Chart, shortened
from mtdnn_ds.report.svg import Scale, axes, escape, padded_range, text


def matrix_chart(
    title: str,
    labels: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    shade: str,
    note: str = "",
    dot: str | None = None,
) -> Chart:
    """A confusion matrix: a row for each true label, a column for each predicted one; shaded by its share of the row."""
    size = len(labels)
    cell = max(28.0, min(64.0, 300.0 / size))
    turns = any(len(label) > int(cell / 5.6) for label in labels)
    margin = 20 + min(150.0, 6.6 * max(len(shortened(label, 20)) for label in labels))
    top = 26 + (min(110.0, 4.8 * max(len(shortened(label, 20)) for label in labels)) if turns else 18)
    width, height = int(max(margin + cell * size + 60, 330)), int(top + cell * size + 16)
    parts = [
        text(margin + cell * size / 2, 13, "predicted", anchor="middle"),
        text(
            12,
            top + cell * size / 2,
            "true",
            anchor="middle",
            more=f' transform="rotate(-90 12 {top + cell * size / 2:.1f})"',
        ),
    ]
    for column, label in enumerate(labels):
        at = margin + cell * (column + 0.5)
        turned = f' transform="rotate(-38 {at:.1f} {top - 7:.1f})"' if turns else ""
        parts.append(
            text(
                at,
                top - 7,
                shortened(label, 20),
                anchor="start" if turns else "middle",
                fill="var(--ink)",
                more=turned,
            )
        )
    for row, (label, own) in enumerate(zip(labels, counts, strict=True)):
        total, y = sum(own), top + cell * row
        parts.append(
            text(margin - 7, y + cell / 2 + 4, shortened(label, 20), anchor="end", fill="var(--ink)")
        )
        for column, count in enumerate(own):
            share, x = (count / total if total else 0.0), margin + cell * column
            words = (
                f"{count:,} of {total:,} rows of {label} predicted as {labels[column]} ({100 * share:.1f} %)"
            )
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 1.5:.1f}" height="{cell - 1.5:.1f}" rx="2" fill="var(--line)" fill-opacity="0.5"/>'
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 1.5:.1f}" height="{cell - 1.5:.1f}" rx="2" fill="{shade}" fill-opacity="{share:.3f}"><title>{escape(words)}</title></rect>'
            )
            if count:
                fill = "var(--on)" if share > 0.55 else "var(--ink)"
                size_of = 12.5 if cell >= 34 and len(f"{count:,}") * 7 < cell else 9
                parts.append(
                    text(
                        x + cell / 2 - 0.75,
                        y + cell / 2 + 4,
                        f"{count:,}",
                        anchor="middle",
                        size=size_of,
                        fill=fill,
                        more=' pointer-events="none"',
                    )
                )
    return Chart(title=title, width=width, height=height, body="".join(parts), note=note, dot=dot)


def scatter_chart(
    title: str,
    x_values: Sequence[float],
    y_values: Sequence[float],
    *,
    shade: str,
    x_label: str,
    y_label: str,
    note: str = "",
    dot: str | None = None,
) -> Chart:
    """Points of predicted against true scores, and the line on which both agree."""
    width, height = 380, 330
    box = (58.0, 26.0, width - 16.0, height - 42.0)
    low, high = padded_range([*x_values, *y_values])
    x, y = (
        Scale(low=low, high=high, begin=box[0], end=box[2]),
        Scale(low=low, high=high, begin=box[3], end=box[1]),
    )
    parts = [axes(box, x, y, x_label=x_label), text(box[0] - 40, 15, y_label)]
    parts.append(
        f'<line x1="{x.at(low):.1f}" y1="{y.at(low):.1f}" x2="{x.at(high):.1f}" y2="{y.at(high):.1f}" stroke="var(--soft)" stroke-dasharray="4 4"/>'
    )
    opacity = max(0.15, min(0.7, 60 / max(len(x_values), 1)))
    parts += [
        f'<circle cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="2.6" fill="{shade}" fill-opacity="{opacity:.2f}"/>'
        for a, b in zip(x_values, y_values, strict=True)
    ]
    return Chart(title=title, width=width, height=height, body="".join(parts), note=note, dot=dot)
