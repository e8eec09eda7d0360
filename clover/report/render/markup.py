"""Pieces of HTML: everything that is put in is escaped, and a page loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
"""What a page may load: nothing from anywhere."""

STYLE = """
:root{color-scheme:light dark;--ink:#1d2327;--soft:#5b6570;--line:#dfe3e6;--page:#fff;--card:#f5f7f6;--leaf:#2f6f4f;
--warn:#8a4b00;--warned:#fff4e0}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7e9;--soft:#9aa4ad;--line:#343b41;--page:#15191c;--card:#1d2327;
--leaf:#7cc29d;--warn:#ffc876;--warned:#33270f}}
*{box-sizing:border-box}
body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:var(--page);margin:0}
main{max-width:1080px;margin:0 auto;padding:2rem 1.25rem 4rem}
header{border-bottom:3px solid var(--leaf);padding-bottom:.8rem;margin-bottom:1.4rem}
h1{font-size:1.65rem;line-height:1.25;margin:0 0 .3rem}
h2{font-size:1.2rem;margin:2.6rem 0 .5rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
p{margin:.4rem 0;max-width:75ch}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:.8rem;margin:1rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem .9rem}
.card h2{font-size:.78rem;letter-spacing:.04em;text-transform:uppercase;color:var(--soft);margin:0;padding:0;border:0}
.card strong{display:block;font-size:1.3rem;line-height:1.25;margin:.2rem 0 .35rem}
.card p{font-size:.86rem;line-height:1.45;margin:.15rem 0}
.caution{background:var(--warned);color:var(--warn);border-left:4px solid currentColor;padding:.5rem .9rem;
max-width:none}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.86rem;margin:.5rem 0;min-width:50%}
caption{text-align:left;color:var(--soft);padding-bottom:.25rem;caption-side:top}
th,td{padding:.28rem 1.1rem .28rem 0;text-align:right;vertical-align:top;border-bottom:1px solid var(--line);
font-variant-numeric:tabular-nums}td{white-space:nowrap}
th{font-weight:600;color:var(--soft)}
th.text,td.text{text-align:left}td.wide{max-width:46ch;min-width:22ch;white-space:normal}
tfoot td{font-weight:600;border-top:2px solid var(--line)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.2rem;font-size:.9rem;max-width:90ch}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
code{font-size:.85em;overflow-wrap:anywhere}
.chart{margin:.6rem 0}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--leaf);font-weight:600}
summary:focus-visible{outline:2px solid var(--leaf);outline-offset:2px}
@media (max-width:860px){.cards{grid-template-columns:repeat(2,1fr)}}
@media (max-width:520px){.cards{grid-template-columns:1fr}dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--page:#fff;--card:#fff;--leaf:#2f6f4f;
--warn:#5c3200;--warned:#fff}
body{font-size:10.5pt}main{max-width:none;padding:0}.card,.chart,tr,dl>div{break-inside:avoid}
table{font-size:8pt}td.wide{min-width:14ch}dl{font-size:9pt}h2,h3,caption{break-after:avoid}.scroll{overflow:visible}thead{display:table-header-group}}
@page{margin:16mm}
"""

_PRINTING = """
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(item => { item.open = true; }));
"""


def page(title: str, body: str, scripts: str = "", data: str = "") -> str:
    """Return a document.  `data`: JSON that it carries for `clover report --verify`; `scripts` draw its charts."""
    # A "<" in the data must not end the element that holds it.
    held = data.replace("<", "\\u003c")
    carried = f'<script type="application/json" id="{DATA_ID}">{held}</script>' if data else ""
    return (
        f'<!doctype html>\n<html lang="en-GB"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>{body}</main>\n"
        f"<script>{_PRINTING}</script>{carried}\n{scripts}</body></html>\n"
    )


DATA_ID = "clover-report"


def data_of(document: str) -> str | None:
    """Return the JSON that a page carries; None if it carries none."""
    _, found, rest = document.partition(f'<script type="application/json" id="{DATA_ID}">')
    return rest.partition("</script>")[0] if found else None


def shown_of(document: str) -> str:
    """Return a page without the JSON that it carries."""
    return document.replace(data_of(document) or "", "", 1)


def section(name: str, title: str, body: str) -> str:
    """Return a section with a heading; nothing if it is empty."""
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>{body}</section>\n' if body else ""


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph, of a class if `kind` is given."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text: Sequence[int] = (0,),
    wide: Sequence[int] = (),
    foot: Sequence[str] = (),
) -> str:
    """Return a table; columns of `text` stand on the left, those of `wide` are folded.  Nothing without rows."""

    def classes(index: int) -> str:
        names = [*(["text"] if index in text or index in wide else []), *(["wide"] if index in wide else [])]
        return f' class="{" ".join(names)}"' if names else ""

    def cells(row: Sequence[str], tag: str, more: str = "") -> str:
        return "".join(f"<{tag}{classes(index)}{more}>{escape(cell)}</{tag}>" for index, cell in enumerate(row))

    lines = [f"<tr>{cells(row, 'td')}</tr>" for row in rows]
    if not lines:
        return ""
    ending = f"<tfoot><tr>{cells(foot, 'td')}</tr></tfoot>" if foot else ""
    head = cells(heads, "th", ' scope="col"')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>{ending}</table></div>"
    )


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """Return heads with texts, as a list of definitions."""
    found = "".join(f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in items)
    return f"<dl>{found}</dl>" if found else ""


def details(summary: str, body: str) -> str:
    """Return what is shown on demand, and always in print; nothing if it is empty."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def card(title: str, figure: str, lines: Iterable[str]) -> str:
    """Return a card with one large figure."""
    texts = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="card"><h2>{escape(title)}</h2><strong>{escape(figure)}</strong>{texts}</div>'
