"""How all figures look and are written: the same bytes every time, PNG or SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from policy.errors import ConfigError
from traces.atomic import whole
from traces.strict import shown_path

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "fastswitch",
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_STAMPS: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".png": {"Software": None}}


def check_name(path: Path) -> None:
    """Raise ConfigError unless a figure of that name can be written."""
    if path.suffix not in _STAMPS:
        raise ConfigError(f"{shown_path(path)}: a figure's name ends in {' or '.join(_STAMPS)}")


def save(figure: Figure, path: Path) -> None:
    """PNG or SVG by suffix, without date, whole or not at all. Raises ConfigError."""
    check_name(path)
    with whole(path) as part, mpl.rc_context(SETTINGS):
        figure.savefig(part, dpi=150, metadata=_STAMPS[path.suffix])
