"""Write a comparison to a folder: JSON, CSV, figures, page."""

from __future__ import annotations

import json
from pathlib import Path

from explore import figures, page, tables
from explore.compare import Comparison
from policy.errors import ConfigError


def write(comparison: Comparison, folder: Path, command: str) -> list[Path]:
    """All files of a comparison, each written under a temporary name and renamed."""
    tails, timeline = figures.tails(comparison), figures.timeline(comparison)
    texts = {
        "compare.json": json.dumps(tables.as_json(comparison), indent=1) + "\n",
        "compare.csv": tables.as_csv(comparison),
        "compare.html": page.page(comparison, command),
        "compare.txt": tables.as_text(comparison) + "\n",
    }
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            part = folder / f".{name}.part"
            part.write_text(text, encoding="utf-8")
            written.append(part.replace(folder / name))
        for figure, stem in ((tails, "tails"), (timeline, "timeline")):
            for suffix in (".png", ".svg"):
                part = folder / f".{stem}.part{suffix}"
                figures.save(figure, part)
                written.append(part.replace(folder / f"{stem}{suffix}"))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
    return written
