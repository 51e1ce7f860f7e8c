"""What a page is made of, and whether it may do only what it should."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

#: What somebody could put into a name.
EVIL = "<script src='http://evil'>&\"</script>"
_LOADING = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}
_VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """Tags, their attributes, their texts; fails where they are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # (tag, name, value)
        self.cells: list[tuple[str, str]] = []  # (class, text)
        self.headings: list[str] = []
        self.text: list[str] = []
        self.styles: list[str] = []
        self.scripts: list[str] = []
        self._open: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if tag not in _VOID:
            self._open.append((tag, values))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, values = self._open[-1] if self._open else ("", {})
        around = {one for one, _ in self._open}
        if tag == "style":
            self.styles.append(data)
        elif tag == "script" and "type" not in values:
            self.scripts.append(data)
        elif tag == "script":
            return
        elif "td" in around or "th" in around:
            self.cells.append((values.get("class", ""), data))
        elif tag in ("h1", "h2", "h3"):
            self.headings.append(data)
        if tag not in ("style", "script"):
            self.text.append(data)


def problems(text: str) -> list[str]:
    """What is wrong with a page: something that loads, runs, or is styled beside its policy."""
    read = Reader(text)
    found = []
    policy = next(
        value for _, name, value in read.attributes if name == "content" and "-src" in value
    )
    for part in ("default-src 'none'", "base-uri 'none'", "form-action 'none'"):
        if part not in policy:
            found.append(f"policy lacks {part}")
    if "unsafe" in policy:
        found.append("an unsafe policy")
    for code in (*read.styles, *read.scripts):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        if f"'sha256-{digest}'" not in policy:
            found.append(f"not allowed: {code[:40]}")
    for tag, name, value in read.attributes:
        if name == "style" or name.startswith("on"):
            found.append(f"inline {name} of {tag}")
        if name in _LOADING and not value.startswith(("#", "data:image/png;base64,")):
            found.append(f"{tag} loads {value}")
    if {"link", "iframe", "object", "embed", "base"} & set(read.tags):
        found.append("an element that loads")
    found += [f"style loads {one}" for one in read.styles if re.search(r"url\(|@import", one)]
    ids = [value for _, name, value in read.attributes if name == "id"]
    if len(ids) != len(set(ids)):
        found.append("an id is given twice")
    svgs = sum(tag == "svg" for tag in read.tags)
    told = [
        name
        for tag, name, _ in read.attributes
        if tag == "svg" and name in ("aria-label", "aria-hidden")
    ]
    if len(told) < svgs:
        found.append("a picture says nothing to those who do not see it")
    if read.tags.count("table") != read.tags.count("caption"):
        found.append("a table without a caption")
    return found


def block(text: str, name: str) -> bytes:
    """The content of a data block."""
    found = re.search(rf'id="data-{name}">([A-Za-z0-9+/=]*)</script>', text)
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1]))


def requests_of(text: str) -> dict[str, Any]:
    """The table of requests that the lanes are drawn from."""
    found: dict[str, Any] = json.loads(block(text, "requests"))
    return found


def slices_of(text: str) -> dict[str, list[tuple[int, int, str]]]:
    """(begin, end, state) of every request in microseconds, decoded as the page's script does."""
    table, data = requests_of(text), iter(block(text, "slices"))
    found = {}
    for name, begin, count in zip(table["request_id"], table["begin"], table["count"], strict=True):
        mine, at = [], begin
        for _ in range(count):
            value = shift = 0
            while (byte := next(data)) & 128:
                value |= (byte & 127) << shift
                shift += 7
            value |= byte << shift
            mine.append((at, at + value // 8, table["states"][value % 8]))
            at += value // 8
        found[name] = mine
    assert next(data, None) is None
    return found
