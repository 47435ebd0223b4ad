"""The page around sections: head, contents, style and scripts, all in one file.

Fetches nothing, draws nothing (page.js does).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.report.style import COLORS, FONT, escape

# Nothing is fetched, even if a text should ever reach the page unescaped: no address is allowed, and of
# scripts only those in the page.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page, with its line in the contents."""

    name: str  # of its anchor
    title: str
    body: str  # markup, already escaped


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page, with plotly's script. `lead`: markup below the title."""
    from plotly.offline import get_plotlyjs

    contents = "".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections)
    bodies = "".join(
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2>{section.body}</section>\n'
        for section in sections
    )

    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<title>{escape(title)}</title><style>{_variables()}{_resource("page.css")}</style></head><body>
<header><h1>{escape(title)}</h1>
<button type="button" id="theme" title="light or dark">◐</button>{lead}</header>
<div class="layout"><nav aria-label="contents">{contents}</nav><main>{bodies}</main></div>
<script>{get_plotlyjs()}</script>
<script>{_resource("page.js")}</script></body></html>
"""


def write_page(path: Path, text: str, *, setting: str = "--output") -> None:
    """Write it aside, then rename it. Raises ConfigError if `path` is there or cannot be written."""
    if path.exists():
        raise ConfigError(f"{setting} {path}: is there already; remove it, or give another {setting}")

    aside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise ConfigError(
            f"{setting} {path}: cannot be written ({error.strerror}); give another {setting}"
        ) from error


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", aligned: bool = True
) -> str:
    """A table of cells that are markup; `aligned`: numbers stand to the right, and heads as the cells of the
    first row.
    """
    side_of = _number_side if aligned else _no_side
    sides = [side_of(cell) for cell in rows[0]] if rows else [""] * len(header)
    head = "".join(f"<th{side}>{cell}</th>" for side, cell in zip(sides, header, strict=True))

    body = ""
    for row in rows:
        cells = "".join(f"<td{side_of(cell)}>{cell}</td>" for cell in row)
        body += f"<tr>{cells}</tr>"

    words = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{words}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _number_side(cell: str) -> str:
    """The class of cells that hold a number."""
    plain = cell.replace("<b>", "").replace("</b>", "")
    return ' class="n"' if plain[:1] in "0123456789-+" else ""


def _no_side(cell: str) -> str:
    return ""


def _variables() -> str:
    """The colours of both themes: the reader's choice, or what the system prefers."""
    light, dark = ("".join(f"--{name}:{pair[index]};" for name, pair in COLORS.items()) for index in (0, 1))
    return (
        f":root{{--font:{FONT};{light}color-scheme:light}}"
        f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}color-scheme:dark}}}}"
        f":root[data-theme=dark]{{{dark}color-scheme:dark}}\n"
    )


def _resource(name: str) -> str:
    return resources.files("mtdnn_ds.report").joinpath(name).read_text(encoding="utf-8")
