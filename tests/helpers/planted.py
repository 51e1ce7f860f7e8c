"""A module of ours with a line of its source replaced: the mistake that a test must see."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType


def changed(module: ModuleType, line: str, instead: str) -> ModuleType:
    """A copy of `module` made from its text, in which `line`, there exactly once, reads `instead`.

    Nothing else uses the copy; it uses the other modules as they are.
    """
    path = Path(str(module.__file__))
    source = path.read_text()
    assert source.count(line) == 1, f"{path.name} has not one {line!r}"
    copy = ModuleType(module.__name__)
    copy.__file__ = str(path)
    exec(compile(source.replace(line, instead), f"<{path.name}, changed>", "exec"), copy.__dict__)
    return copy
