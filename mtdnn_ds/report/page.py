"""The page around sections: head, contents, colours for light and dark, and a small script for pointer, legends and theme. Fetches nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtdnn_ds.config.errors import ConfigError
from mtdnn_ds.report.chart import FONT
from mtdnn_ds.report.svg import COLORS, escape

# Nothing is fetched, even if a text should ever reach the page unescaped: no address is allowed, and of scripts only those in the page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    name: str  # of its anchor
    title: str
    body: str  # markup, already escaped


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page. `lead`: markup below the title."""
    contents = "".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections)
    bodies = "".join(
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2>{section.body}</section>'
        for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><button type="button" id="theme" title="light or dark">◐</button>{lead}</header>'
        f'<div class="layout"><nav aria-label="contents">{contents}</nav><main>{bodies}</main></div>'
        f'<div id="tip" hidden></div><script>{_SCRIPT}</script></body></html>\n'
    )


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
    """A table of cells that are markup; `aligned`: numbers stand to the right."""
    sides = [_side(rows[0][index]) if aligned and rows else "" for index in range(len(header))]
    head = "".join(f"<th{side}>{cell}</th>" for side, cell in zip(sides, header, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{_side(cell) if aligned else ''}>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    words = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{words}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _side(cell: str) -> str:
    plain = cell.replace("<b>", "").replace("</b>", "")
    return ' class="n"' if plain[:1] in "0123456789-+" else ""


def _style() -> str:
    light, dark = ("".join(f"--{name}:{pair[index]};" for name, pair in COLORS.items()) for index in (0, 1))
    return (
        f":root{{{light}color-scheme:light}}@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}color-scheme:dark}}}}"
        f":root[data-theme=dark]{{{dark}color-scheme:dark}}{_RULES}"
    )


_RULES = (
    "*{box-sizing:border-box}html{scroll-behavior:smooth;scroll-padding-top:12px}"
    f"body{{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 {FONT}}}"
    """
header{position:relative;padding:26px 28px 14px;border-bottom:1px solid var(--line);max-width:1400px;margin:auto}
h1{font-size:26px;line-height:1.2;margin:0 48px 8px 0;overflow-wrap:anywhere}h2{font-size:20px;margin:0 0 12px}h3{font-size:16px;margin:26px 0 8px}
#theme{position:absolute;right:28px;top:26px;width:36px;height:36px;border:1px solid var(--line);border-radius:8px;background:var(--panel);color:var(--ink);font-size:17px;cursor:pointer}
.layout{display:grid;grid-template-columns:190px minmax(0,1fr);gap:28px;padding:20px 28px 60px;max-width:1400px;margin:auto}
nav{position:sticky;top:16px;align-self:start;display:flex;flex-direction:column;gap:2px;font-size:14px}
nav a{color:var(--soft);text-decoration:none;padding:4px 10px;border-left:2px solid var(--line)}nav a:hover{color:var(--ink);border-color:var(--s0)}
section{margin-bottom:44px}p{margin:0 0 10px;max-width:85ch}.note,.lead{color:var(--soft)}.note{font-size:13px;margin:4px 0 0}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px;align-items:start}
.chart{margin:0;padding:12px 12px 8px;background:var(--panel);border:1px solid var(--line);border-radius:10px;min-width:0}.chart.wide{grid-column:1/-1}
.chart>svg{display:block;width:100%;height:auto;margin:auto}.chart text{font-family:inherit;font-variant-numeric:tabular-nums}
figcaption{font-weight:600;font-size:14px;margin-bottom:4px;overflow-wrap:anywhere}.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:7px}
.legend{display:flex;flex-wrap:wrap;gap:2px 10px;margin-top:4px}.legend button{display:inline-flex;align-items:center;gap:6px;border:0;background:none;color:var(--ink);font:inherit;font-size:12.5px;padding:2px 0;cursor:default}
[data-hover] .legend button{cursor:pointer}.legend svg{width:22px;height:10px;flex:none}.legend .off{opacity:.35}
.scroll{overflow-x:auto;margin:0 0 14px}table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);font-size:13px;padding-bottom:4px}th{text-align:left;font-weight:600;color:var(--soft);border-bottom:1px solid var(--soft)}
th,td{padding:5px 14px 5px 0;vertical-align:top}td{border-bottom:1px solid var(--line)}td.n,th.n{text-align:right;white-space:nowrap}tr:last-child td{border-bottom:0}
.words td{min-width:90px}.words td:first-child{min-width:280px;max-width:560px;white-space:pre-wrap;overflow-wrap:anywhere}.words small{color:var(--soft);display:block}
.missing{border-left:3px solid var(--bad);padding:2px 12px;margin:0 0 8px;background:var(--panel)}.key{color:var(--soft);font-size:12px;margin-right:5px}
details:first-of-type{margin-top:16px}details{border:1px solid var(--line);border-radius:8px;padding:8px 14px;margin:0 0 12px}summary{cursor:pointer;font-weight:600}pre{overflow:auto;font-size:12.5px;line-height:1.45}
code{font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:.93em;overflow-wrap:anywhere}
#tip{position:fixed;z-index:9;pointer-events:none;background:var(--ground);color:var(--ink);border:1px solid var(--soft);border-radius:7px;padding:6px 10px;font-size:12.5px;box-shadow:0 3px 14px rgb(0 0 0/.18);font-variant-numeric:tabular-nums;max-width:340px}
#tip i{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:6px}
@media(max-width:900px){.layout{grid-template-columns:minmax(0,1fr);padding:14px 14px 40px;gap:14px}nav{position:static;flex-direction:row;flex-wrap:wrap}nav a{border-left:0;border-bottom:2px solid var(--line);padding:2px 8px}header{padding:18px 14px 10px}#theme{right:14px;top:16px}}
@media print{nav,#theme{display:none}.layout{display:block}.chart,details{break-inside:avoid}}
"""
)

# Names and values reach the page as text nodes only.
_SCRIPT = """
(()=>{const tip=document.getElementById('tip'),root=document.documentElement;
document.getElementById('theme').onclick=()=>{const dark=root.dataset.theme?root.dataset.theme==='dark':matchMedia('(prefers-color-scheme: dark)').matches;root.dataset.theme=dark?'light':'dark'};
const words=v=>v==null?'-':Math.abs(v)>=1000?v.toLocaleString('en',{maximumFractionDigits:0}):String(+v.toPrecision(4));
for(const fig of document.querySelectorAll('[data-hover]')){const d=JSON.parse(fig.dataset.hover),svg=fig.querySelector(':scope>svg'),[l,t,r,b]=d.box,off=new Set();
const rule=document.createElementNS('http://www.w3.org/2000/svg','line');rule.setAttribute('y1',t);rule.setAttribute('y2',b);rule.setAttribute('stroke','var(--soft)');rule.style.display='none';svg.append(rule);
const [lo,hi,x0,x1,log]=d.x,f=v=>log?Math.log10(v):v,at=v=>x0+(f(v)-f(lo))/(f(hi)-f(lo))*(x1-x0);
svg.onpointermove=e=>{const box=svg.getBoundingClientRect(),px=(e.clientX-box.left)/box.width*svg.viewBox.baseVal.width;let best=null;
d.series.forEach((s,i)=>{if(!off.has(i))for(const x of s.x){const gap=Math.abs(at(x)-px);if(best===null||gap<best[0])best=[gap,x]}});
if(best===null||px<l-8||px>r+8)return hide();const x=best[1];rule.setAttribute('x1',at(x));rule.setAttribute('x2',at(x));rule.style.display='';
tip.replaceChildren(Object.assign(document.createElement('b'),{textContent:d.label+' '+words(x)}));
d.series.forEach((s,i)=>{if(off.has(i))return;let k=-1,g=1/0;s.x.forEach((v,j)=>{const gap=Math.abs(at(v)-at(x));if(gap<g){g=gap;k=j}});if(k<0||g>6)return;
const row=document.createElement('div'),dot=document.createElement('i');dot.style.background=s.color;row.append(dot,s.name+'  '+words(s.y[k]));tip.append(row)});
tip.hidden=false;const w=tip.offsetWidth,h=tip.offsetHeight;tip.style.left=Math.max(4,e.clientX+16+w>innerWidth?e.clientX-w-16:e.clientX+16)+'px';tip.style.top=Math.max(4,Math.min(innerHeight-h-4,e.clientY-h/2))+'px'};
const hide=()=>{tip.hidden=true;rule.style.display='none'};svg.onpointerleave=hide;
fig.querySelectorAll('.legend button').forEach((key,i)=>key.onclick=()=>{const gone=!off.has(i);gone?off.add(i):off.delete(i);key.classList.toggle('off',gone);const g=svg.querySelector('[data-series="'+i+'"]');if(g)g.style.display=gone?'none':''})}
})()
"""
