"""What a user's order is made of, as a hash: its own file and the neighbours that it imports.

A sweep keeps results under it, so that no result of an older text is taken for one of a newer.
Libraries (anything outside the order's folder) are the environment's business.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import sys
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any


def hash_of(module: ModuleType, folder: Path) -> str | None:
    """SHA-256 over the files of a module and of what it imports from `folder`, by their places in
    it. None if the module is in no file or one cannot be read."""
    found: dict[str, bytes] = {}
    waiting = [module]
    folder = folder.resolve()
    try:
        while waiting:
            one = waiting.pop()
            path = Path(getattr(one, "__file__", None) or "").resolve()
            if not path.is_file() and one is module:
                return None
            place = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""
            if one is module:
                place = place or path.name
            if not place or place in found or "site-packages" in path.parts:
                continue
            found[place] = path.read_bytes()
            waiting += _imported_by(one, found[place])
    except (OSError, ImportError, SyntaxError):
        return None
    total = hashlib.sha256()
    for place, data in sorted(found.items()):
        total.update(f"{place}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    return total.hexdigest()


def text_of(kind: Any) -> str | None:
    """The text of what is in no file: the cells in which a class and its bases, or a function, were
    written, and values of the class. None if no cell is known.

    Python knows the cell of a function, not of a class (`inspect.getsource` refuses it).
    """
    bases = kind.__mro__ if isinstance(kind, type) else (kind,)
    cells: dict[str, str] = {}
    values = []
    for base in bases:
        module = sys.modules.get(str(getattr(base, "__module__", "")))
        if base is object or getattr(module, "__file__", None) is not None:
            continue
        things = vars(base).items() if isinstance(base, type) else [("", base)]
        for name, thing in sorted(things):
            code = getattr(getattr(thing, "__func__", thing), "__code__", None)
            if code is not None:
                cells[code.co_filename] = "".join(linecache.getlines(code.co_filename))
            elif not name.startswith("__"):
                values.append(f"{name}={thing!r}")
    if not any(cells.values()):
        return None
    return "\0".join([*cells.values(), *values])


def _imported_by(module: ModuleType, source: bytes) -> list[ModuleType]:
    """Modules that are loaded and that a module's text imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = resolve_name("." * node.level + base, module.__package__ or "")
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    parents = (name.rpartition(".")[0] for name in names)
    found = (sys.modules.get(name) for name in [*names, *parents])
    return [one for one in found if one is not None]
