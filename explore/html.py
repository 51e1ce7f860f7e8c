"""Parts of our HTML pages: one self-contained file, no script, no network, readable when printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.lead { font-size: 1.05rem; } .note { border-left: 3px solid #d55e00; padding-left: .8rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .82rem; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; } td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
tbody tr:hover { background: var(--soft); } .better { color: #00785a; } .worse { color: #b3400a; }
@media (prefers-color-scheme: dark) { .better { color: #3fd0a5; } .worse { color: #ff9d66; } }
figure { margin: 1rem 0; background: #fff; border-radius: 4px; padding: .5rem; }
@media print { body { max-width: none; } .scroll { overflow: visible; }
  table { font-size: .62rem; } th, td { padding: .15rem .3rem; } }
figure svg { width: 100%; height: auto; } figcaption { color: #333; font-size: .85rem; }
details { margin: 1rem 0; } code { font-size: .9em; overflow-wrap: anywhere; }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A page of parts that are HTML already; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]]) -> str:
    """Cells are (text, class); both are escaped or ours."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"
            for text, kind in row
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def figure(svg: str, caption: str) -> str:
    """An SVG with what it shows."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
