"""Write a reproduction to its folder."""

from __future__ import annotations

import json
from pathlib import Path

from explore.reproduce import figures, text
from explore.reproduce.run import Reproduction
from explore.studies.output import write_texts
from traces import figure_style


def write(found: Reproduction, folder: Path) -> list[Path]:
    """claims.md, claims.json and figures, beside the trials. Raises ConfigError if they cannot be
    written."""
    texts = {
        "claims.md": text.as_markdown(found),
        "claims.json": json.dumps(text.as_json(found), indent=1) + "\n",
    }
    pictures = {}
    if "sensitivity" in found.parts:
        pictures["sensitivity.png"] = figures.sensitivity(found.found)
    if found.full:
        pictures["swap-or-recompute.png"] = figures.swap_or_recompute()
    written = write_texts(texts, folder)
    for name, picture in pictures.items():
        figure_style.save(picture, folder / name)
    return written + [folder / name for name in pictures]
