"""Write what was found to a folder: each file under a temporary name first, then renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from explore.report import comparison as comparison_report
from explore.report import validation as validation_report
from explore.studies import latex, tables
from explore.studies.comparison import Comparison
from explore.validation import predict_text
from explore.validation.predict import Validation
from policy.errors import ConfigError
from traces.atomic import whole
from traces.strict import reason, shown_path


def write(comparison: Comparison, folder: Path, command: str) -> list[Path]:
    """All files of a comparison. Raises ConfigError if they cannot be written."""
    from explore.report import figures, plot  # noqa: PLC0415  matplotlib is slow to import
    from traces import figure_style  # noqa: PLC0415

    data = tables.as_json(comparison)
    data["provenance"] = {**comparison.provenance, "command": command}
    drawn = dict(figures.drawn(comparison))
    texts = {
        "compare.json": json.dumps(data, indent=1) + "\n",
        "compare.csv": tables.as_csv(comparison),
        "compare.html": comparison_report.page(comparison, command),
        "compare.txt": tables.as_text(comparison) + "\n",
        "compare.tex": latex.table(comparison),
        **{f"{name}.csv": figures.as_csv(made) for name, made in drawn.items()},
    }
    written = write_texts(texts, folder)
    for stem, pictures in drawn.items():
        figure = plot.figure(pictures)
        for suffix in (".png", ".svg"):
            figure_style.save(figure, folder / f"{stem}{suffix}")
            written.append(folder / f"{stem}{suffix}")
    return written


def write_validation(found: Validation, folder: Path, command: str) -> list[Path]:
    """All files of a validation. Raises ConfigError if they cannot be written."""
    from explore.validation import predict_figure  # noqa: PLC0415  matplotlib is slow to import
    from traces import figure_style  # noqa: PLC0415

    data = {**predict_text.as_json(found), "command": command}
    texts = {
        "validation.json": json.dumps(data, indent=1) + "\n",
        "validation.txt": predict_text.as_text(found) + "\n",
    }
    written = write_texts(texts, folder)
    for one in found.predictions:
        for what, picture in (
            ("scatter", predict_figure.scatter(one)),
            ("residuals", predict_figure.residuals(one)),
        ):
            path = folder / validation_report.file_of(what, one)
            figure_style.save(picture, path)
            written.append(path)
    page = validation_report.page(found, command, validation_report.pictures(found, folder))
    return written + write_texts({"validation.html": page}, folder)


def write_texts(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Each as a whole or not at all. Raises ConfigError if they cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{shown_path(folder)}: cannot be written: {reason(error)}") from None
    for name, text in texts.items():
        with whole(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
