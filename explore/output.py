"""Write what was found to a folder: each file under a temporary name first, then renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from explore import predict_text, tables
from explore.compare import Comparison
from explore.predict import Validation
from explore.report import comparison as comparison_report
from explore.report import validation as validation_report
from policy.errors import ConfigError
from traces.strict import reason, shown_path


def write(comparison: Comparison, folder: Path, command: str) -> list[Path]:
    """All files of a comparison. Raises ConfigError if they cannot be written."""
    from explore import figures  # noqa: PLC0415  matplotlib is slow to import

    tails, timeline = figures.tails(comparison), figures.timeline(comparison)
    data = tables.as_json(comparison)
    data["provenance"] = {**comparison.provenance, "command": command}
    texts = {
        "compare.json": json.dumps(data, indent=1) + "\n",
        "compare.csv": tables.as_csv(comparison),
        "compare.html": comparison_report.page(comparison, command),
        "compare.txt": tables.as_text(comparison) + "\n",
    }
    pictures = {
        f"{stem}{suffix}": figures.drawn(figure, suffix)
        for figure, stem in ((tails, "tails"), (timeline, "timeline"))
        for suffix in (".png", ".svg")
    }
    return _write(folder, texts, pictures)


def write_validation(found: Validation, folder: Path, command: str) -> list[Path]:
    """All files of a validation. Raises ConfigError if they cannot be written."""
    from explore import figures, predict_figure  # noqa: PLC0415  matplotlib is slow to import

    pictures = {}
    for one in found.predictions:
        scatter, residuals = predict_figure.scatter(one), predict_figure.residuals(one)
        pictures[validation_report.file_of("scatter", one)] = figures.drawn(scatter, ".png")
        pictures[validation_report.file_of("residuals", one)] = figures.drawn(residuals, ".png")
    data = {**predict_text.as_json(found), "command": command}
    texts = {
        "validation.json": json.dumps(data, indent=1) + "\n",
        "validation.txt": predict_text.as_text(found) + "\n",
        "validation.html": validation_report.page(found, command, pictures),
    }
    return _write(folder, texts, pictures)


def write_page(page: str, path: Path) -> None:
    """A page under its name, as a whole or not at all. Raises ConfigError if it cannot be written."""
    _write(path.parent, {path.name: page}, {})


def _write(folder: Path, texts: Mapping[str, str], pictures: Mapping[str, bytes]) -> list[Path]:
    written = []
    contents = {name: text.encode() for name, text in texts.items()} | dict(pictures)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            part = folder / f".{name}.part"
            try:
                part.write_bytes(content)
                written.append(part.replace(folder / name))
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{shown_path(folder)}: cannot be written: {reason(error)}") from None
    return written
