"""The frame of every page: one file that loads nothing, under a policy that lets nothing else run.

Style and script stand in the page and are allowed by their hashes alone; there is no inline style and no
inline handler. Text from outside is escaped here, or travels as packed data that no parser reads.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

from explore import meanings, words

_HERE = Path(__file__).resolve().parent


class Head(NamedTuple):
    """A column's heading, and what it means."""

    text: str
    meaning: str = ""


class Cell(NamedTuple):
    """A cell of a table. `kind`: its CSS class. `request`: the lane view's number of the request that a
    press on it selects, -1 for plain text."""

    text: str
    kind: str = ""
    request: int = -1


#: Cells of a table, of which those without more to say are their text.
Row = Sequence[Cell | str]


def document(
    title: str,
    sections: Iterable[tuple[str, str]],
    *,
    opening: str = "",
    script: Sequence[str] = (),
    data: Mapping[str, bytes] | None = None,
) -> str:
    """A page: its `opening`, which is the answer, then (heading, HTML) sections. `script`: files beside
    this one, run as one. `data`: packed into elements that the script reads by their names."""
    parts = [(f"s{i}", heading, html) for i, (heading, html) in enumerate(sections) if html]
    links = "".join(f'<li><a href="#{key}">{escape(heading)}</a></li>' for key, heading, _ in parts)
    body = "\n".join(_section(key, heading, html) for key, heading, html in parts)
    style = _file("style.css")
    code = _script(script) if script else ""
    allowed = f"'sha256-{_sha256(code)}'" if code else "'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        f" style-src 'sha256-{_sha256(style)}'; script-src {allowed}; img-src data:;"
        " base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        f'<a class="skip" href="#main">Skip to the finding</a>\n<h1>{escape(title)}</h1>\n'
        f'<main id="main">\n<section class="opening">{opening}</section>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n{body}\n</main>\n'
        + "".join(_packed(name, content) for name, content in (data or {}).items())
        + (f"<script>{code}</script>\n" if code else "")
        + "</body></html>\n"
    )


def table(
    caption: str,
    header: Sequence[Head | str],
    rows: Iterable[Row],
    attributes: Iterable[str] = (),
) -> str:
    """A table with a caption; the first cell of a row is its header. `attributes` of the rows are ours."""
    head = "".join(map(_th, header))
    extra = iter(attributes)
    lines = []
    for row in rows:
        first, *others = (_cell(cell) for cell in row)
        cells = _td("th", first) + "".join(_td("td", cell) for cell in others)
        lines.append(f"<tr{next(extra, '')}>{cells}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def metric(name: str, *, unit: bool = True) -> Head:
    """A metric's heading with the glossary's sentence."""
    title = words.heading(name) if unit else words.HEADINGS[name][0]
    return Head(title, meanings.of(name))


def _th(head: Head | str) -> str:
    found = Head(head) if isinstance(head, str) else head
    told = f' title="{escape(found.meaning)}"' if found.meaning else ""
    return f'<th scope="col"{told}>{escape(found.text)}</th>'


def _cell(cell: Cell | str) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _td(tag: str, cell: Cell) -> str:
    scope = ' scope="row"' if tag == "th" else ""
    kind = f' class="{escape(cell.kind)}"' if cell.kind else ""
    text = escape(cell.text)
    if cell.request >= 0:
        text = f'<button type="button" class="link" data-request="{cell.request}">{text}</button>'
    return f"<{tag}{scope}{kind}>{text}</{tag}>"


def figure(picture: str, caption: str, kind: str = "") -> str:
    """A picture that is HTML already, with what it shows. `kind`: its CSS class."""
    own = f' class="{kind}"' if kind else ""
    return f"<figure{own}>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def side_by_side(pictures: Sequence[str], caption: str) -> str:
    """Pictures as one figure, as wide as the page if there are several; nothing of none."""
    if len(pictures) < 2:
        return "".join(figure(one, caption) for one in pictures)
    inside = "".join(f"<div>{one}</div>" for one in pictures)
    return figure(f'<div class="pair">{inside}</div>', caption, "wide")


def image(png: bytes, alternative: str) -> str:
    coded = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{coded}" alt="{escape(alternative)}">'


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def items(texts: Iterable[str]) -> str:
    """A list of plain texts; nothing of none."""
    inside = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{inside}</ul>" if inside else ""


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names and what they are; None is left out."""
    inside = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in pairs
        if value is not None
    )
    return f'<dl class="facts">{inside}</dl>' if inside else ""


def commands(lines: Iterable[str]) -> str:
    """Command lines, to be typed again."""
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


def details(summary: str, html: str) -> str:
    """HTML that is shown when asked for."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def _section(key: str, heading: str, html: str) -> str:
    return (
        f'<section aria-labelledby="{key}"><h2 id="{key}" tabindex="-1">{escape(heading)}</h2>'
        f"{html}</section>"
    )


def _packed(name: str, content: bytes) -> str:
    """A data block: base64 of gzip, which no parser takes for anything else. No time inside: the same
    content gives the same bytes."""
    coded = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
    return f'<script type="application/octet-stream" id="data-{name}">{coded}</script>\n'


@cache
def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _script(names: Sequence[str]) -> str:
    return "'use strict';\n(() => {\n" + "\n".join(map(_file, names)) + "})();\n"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
