"""Commands in processes of their own, as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def fastswitch(*arguments: object) -> list[str]:
    """The command's words."""
    return [sys.executable, "-m", "fastswitch", *map(str, arguments)]


def environment() -> dict[str, str]:
    """In which processes find what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def ended(words: list[str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """What was printed until it ended."""
    return subprocess.run(
        words, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
