"""Write what was found to a folder: each file under a temporary name first, then renamed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from explore import figures, page, predict_figure, predict_page, predict_text, tables
from explore.compare import Comparison
from explore.predict import Validation
from policy.errors import ConfigError


def write(comparison: Comparison, folder: Path, command: str) -> list[Path]:
    """All files of a comparison. Raises ConfigError if they cannot be written."""
    tails, timeline = figures.tails(comparison), figures.timeline(comparison)
    texts = {
        "compare.json": json.dumps(tables.as_json(comparison), indent=1) + "\n",
        "compare.csv": tables.as_csv(comparison),
        "compare.html": page.page(comparison, command),
        "compare.txt": tables.as_text(comparison) + "\n",
    }
    pictures = {
        f"{stem}{suffix}": figure
        for figure, stem in ((tails, "tails"), (timeline, "timeline"))
        for suffix in (".png", ".svg")
    }
    return write_files(folder, texts, pictures)


def write_validation(found: Validation, folder: Path, command: str) -> list[Path]:
    """All files of a validation. Raises ConfigError if they cannot be written."""
    texts = {
        "validation.json": json.dumps(predict_text.as_json(found), indent=1) + "\n",
        "validation.txt": predict_text.as_text(found) + "\n",
        "validation.html": predict_page.page(found, command),
    }
    pictures = {}
    for one in found.predictions:
        name = re.sub(r"[^\w.+-]", "_", one.scenario)
        pictures[f"scatter-{name}.png"] = predict_figure.scatter(one)
        pictures[f"residuals-{name}.png"] = predict_figure.residuals(one)
    return write_files(folder, texts, pictures)


def write_files(
    folder: Path, texts: Mapping[str, str], pictures: Mapping[str, Figure]
) -> list[Path]:
    """Texts and pictures by file name, each whole. Raises ConfigError if they cannot be written."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            part = folder / f".{name}.part"
            part.write_text(text, encoding="utf-8")
            written.append(part.replace(folder / name))
        for name, picture in pictures.items():
            part = folder / f".part.{name}"
            figures.save(picture, part)
            written.append(part.replace(folder / name))
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
    return written
