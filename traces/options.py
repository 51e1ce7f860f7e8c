"""Options that commands share. Imports nothing heavy: `--help` is quick."""

from __future__ import annotations

import click

from policy.errors import ConfigError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def parse_window(text: str) -> tuple[float, float]:
    """`600:1200`, in seconds. Raises ConfigError."""
    begin, _, end = text.partition(":")
    try:
        return float(begin), float(end)
    except ValueError:
        raise ConfigError(f"--window: {text[:60]!r} must be like 600:1200, in seconds") from None
