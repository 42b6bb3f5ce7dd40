"""The HTML of the report: one page that asks nothing of any host, with its few building blocks."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from recap.report.missing import Missing
from recap.report.style import DARK_VARIABLES, VARIABLES, themed

CSS = """
:root { color-scheme:light dark; VARIABLES; --ground:#f5f6f7; --raised:#fcfcfd; --warn:#fdf8ec;
  --bad:#a84300; --good:#00714f }
@media (prefers-color-scheme:dark) { :root { DARK; --ground:#101418; --raised:#20262c; --warn:#2e2716;
  --bad:#ff9a52; --good:#46c79f } }
* { box-sizing:border-box }
html { scroll-behavior:smooth; -webkit-text-size-adjust:100% }
body { margin:0; background:var(--ground); color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif }
main { max-width:1180px; margin:0 auto; padding:28px 24px 64px }
h1 { font-size:1.05rem; font-weight:600; margin:0; color:var(--muted) }
h2 { font-size:1.35rem; margin:0 0 2px; line-height:1.25 }
h3 { font-size:1rem; margin:18px 0 6px }
figure h3 { margin-top:0 }
p { margin:6px 0; max-width:88ch }
header p { max-width:100ch }
a { color:var(--blue); text-decoration-thickness:1px; text-underline-offset:2px }
nav { display:flex; flex-wrap:wrap; gap:4px 18px; margin:16px 0 0; font-size:.95rem }
section { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:22px 24px;
  margin:18px 0; scroll-margin-top:8px }
.verdict { font-size:clamp(1.45rem,3.6vw,2.15rem); line-height:1.2; font-weight:650; margin:6px 0 12px;
  max-width:40ch; text-wrap:balance }
.muted { color:var(--muted) }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr));
  gap:10px; margin:14px 0 10px }
.tile { border:1px solid var(--line); border-radius:8px; padding:10px 14px; background:var(--raised) }
.tile.main { border-left:4px solid var(--blue) }
.tile b { display:block; font-size:1.6rem; line-height:1.2; font-weight:650;
  font-variant-numeric:tabular-nums }
.tile span { display:block; font-size:.86rem; color:var(--muted) }
.pair { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr)); gap:22px 36px;
  margin-top:18px; align-items:start }
.pair > div { min-width:0 }
.pair > div > :first-child { margin-top:0 }
figure { margin:20px 0 0 }
figure img { display:block; width:100%; height:auto; max-width:540px }
figure.wide img { max-width:none; min-width:780px }
figcaption { font-size:.9rem; color:var(--muted); margin-top:4px; max-width:100ch }
.scroll { overflow-x:auto; -webkit-overflow-scrolling:touch }
.key { display:flex; flex-wrap:wrap; gap:2px 16px; margin:8px 0 0; font-size:.88rem }
.key i { display:inline-block; width:14px; height:10px; border-radius:2px; margin-right:6px }
table { border-collapse:collapse; font-size:.92rem; margin:6px 0 2px; font-variant-numeric:tabular-nums }
th,td { text-align:left; padding:5px 18px 5px 0; border-bottom:1px solid var(--line); vertical-align:top }
th { color:var(--muted); font-weight:600; vertical-align:bottom }
td.n { text-align:right; white-space:nowrap }
th.n { text-align:right }
.missing,.problem { border-left:4px solid #E69F00; background:var(--warn); padding:8px 12px;
  border-radius:4px; margin:12px 0 }
.bad { color:var(--bad); font-weight:600 }
.good { color:var(--good); font-weight:600 }
details { margin-top:12px }
summary { cursor:pointer; color:var(--blue) }
pre { overflow-x:auto; background:var(--ground); border:1px solid var(--line); border-radius:6px;
  padding:10px 12px; font-size:.82rem; line-height:1.45 }
code { font-size:.9em; overflow-wrap:anywhere }
@media (max-width:600px) {
  main { padding:16px 10px 40px }
  section { padding:16px 14px; border-radius:8px }
  th,td { padding-right:12px }
}
@media print { section { break-inside:avoid; border:0 } body { background:#fff } }
"""

CSS = CSS.replace("DARK", DARK_VARIABLES).replace("VARIABLES", VARIABLES)


def document(title: str, head: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole document. sections: (short name, title, HTML) each; head: HTML above them."""
    links = "".join(f'<a href="#{name.lower()}">{escape(name)}</a>' for name, _, _ in sections)
    body = "".join(
        f'<section id="{name.lower()}"><h2>{escape(heading)}</h2>{content}</section>'
        for name, heading, content in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{CSS}</style></head>'
        f"<body><main><header>{head}<nav>{links}</nav></header>{body}</main></body></html>\n"
    )


def part(make: Callable[[], str], title: str = "") -> str:
    """The HTML that `make` gives, or a note of what is missing for it, under `title` where one is given."""
    try:
        return make()
    except Missing as missing:
        text = str(missing)
    # Whatever is damaged in a run, the rest of it must still be shown.
    except Exception as error:
        text = f"This part cannot be shown: {type(error).__name__}: {error}"
    return (f"<h3>{escape(title)}</h3>" if title else "") + note(text)


def note(text: str, kind: str = "missing") -> str:
    return f'<p class="{kind}">{escape(text)}</p>'


def remark(html: str) -> str:
    """A paragraph in a quieter colour."""
    return f'<p class="muted">{html}</p>'


def picture(svg: str, alt: str, caption: str, title: str, wide: bool = False) -> str:
    """A figure with its one-line explanation (HTML). A wide one scrolls sideways on a narrow screen."""
    data = base64.b64encode(svg.encode()).decode()
    image = f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
    if wide:
        image = f'<div class="scroll">{image}</div>'
    return (
        f"<figure{' class=wide' if wide else ''}><h3>{escape(title)}</h3>{image}"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def pair(*columns: str) -> str:
    """Columns side by side where the screen has room."""
    return f'<div class="pair">{"".join(f"<div>{column}</div>" for column in columns)}</div>'


def key(entries: Sequence[tuple[str, str]]) -> str:
    """A legend: (CSS background, name) each."""
    items = "".join(
        f'<span><i style="background:{themed(color)}"></i>{escape(name)}</span>' for color, name in entries
    )
    return f'<div class="key">{items}</div>'


def tiles(entries: Sequence[tuple[str, str, str, bool]]) -> str:
    """Large numbers: (name, number, remark, whether it is a main one) each."""
    cells = "".join(
        f'<div class="tile{" main" if main else ""}"><span>{escape(name)}</span><b>{escape(number)}</b>'
        f"<span>{escape(remark)}</span></div>"
        for name, number, remark, main in entries
    )
    return f'<div class="tiles">{cells}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: frozenset[int] = frozenset()) -> str:
    """A table of HTML cells. numbers: columns set to the right."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(row)
        )

    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def folded(name: str, data: Any) -> str:
    """Something that few will want to see: a string of HTML, or data shown as JSON."""
    content = data if isinstance(data, str) else f"<pre>{escape(json.dumps(data, indent=2))}</pre>"
    return f"<details><summary>{escape(name)}</summary>{content}</details>"


def percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}\u202f%"


def number(value: Any, digits: int = 2, unit: str = "") -> str:
    if value is None:
        return "–"
    text = f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"
    return f"{text}\u202f{unit}" if unit else text


def interval(low_high: Sequence[float], scale: float = 1.0, digits: int = 0) -> str:
    low, high = (scale * v for v in low_high)
    return f"{low:.{digits}f} to {high:.{digits}f}"


def count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
