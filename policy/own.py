"""What a user gave, made afresh for every run, and its mistakes in words. For orders and routers alike."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TypeVar

from policy.errors import ConfigError
from policy.views import Draw

T = TypeVar("T")


def maker_of(given: object, kind: type[T], what: str, where: str) -> Callable[[Draw], T]:
    """How to make a fresh one from what a user gave: an object of `kind`, of which every run gets a copy
    as it was given; or a class or function that makes one, called with `draw` if it has such a
    parameter. `what` it is called, `where` the kind is.

    Raises ConfigError if `given` is none of these. What is made is checked when it is made.
    """
    if isinstance(given, kind):
        prototype = _copied(given, what)
        return lambda _draw: _copied(prototype, what)
    if not callable(given):
        raise ConfigError(f"{what}: {shown(given)} is neither {a(kind)} nor makes one")
    try:
        wants_draw = "draw" in inspect.signature(given).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature
        wants_draw = False

    def make(draw: Draw) -> T:
        made = given(draw=draw) if wants_draw else given()
        if not isinstance(made, kind):
            raise ConfigError(f"{what}: {shown(made)} is no {where}.{kind.__name__}")
        return made

    return make


def a(kind: type) -> str:
    """Its name with an article."""
    name = kind.__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _copied(made: T, what: str) -> T:
    try:
        return copy.deepcopy(made)
    except Exception as error:
        raise ConfigError(
            f"{what}: it cannot be copied for a run of its own ({type(error).__name__}:"
            f" {shown_text(str(error))}); give the class, and each run makes its own"
        ) from error


def line_of(error: Exception, guard: str) -> str:
    """`file.py:12`: where the user's own code was when it went wrong, not the module `guard`."""
    frame = error.__traceback__
    found = ""
    while frame is not None:
        code = frame.tb_frame.f_code
        if frame.tb_frame.f_globals.get("__name__") != guard:
            found = f"{code.co_filename.replace(chr(92), '/').rpartition('/')[2]}:{frame.tb_lineno}"
        frame = frame.tb_next
    return found


def shown(value: object) -> str:
    """A value in an error's words."""
    try:
        return shown_text(repr(value))
    except Exception:  # noqa: BLE001
        return f"a {type(value).__name__}"


def shown_text(text: str) -> str:
    """On one line, and short."""
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:117]}..."
