"""The headline numbers of a comparison as a LaTeX table; needs the package booktabs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from explore import words
from explore.report.figures import HEADLINE, headline_pair

if TYPE_CHECKING:
    from explore.studies.comparison import Comparison

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def table(comparison: Comparison) -> str:
    """Means with intervals, and times better than the baseline, bold where the difference is sure."""
    pair = headline_pair(comparison)
    baseline = None if pair is None else pair[1]
    names = [words.heading(metric) for metric in HEADLINE]
    better = [f"{words.HEADINGS[metric][0]}, times" for metric in HEADLINE] if baseline else []
    lines = [
        f"% {words.provenance(comparison)}".replace("\n", " "),
        rf"\begin{{tabular}}{{l{'r' * (len(names) + len(better))}}}",
        r"\toprule",
        _line(["system", *names, *better]),
        r"\midrule",
    ]
    for system in comparison.systems:
        cells = [escaped(system)]
        cells += [escaped(words.estimate(comparison.estimate(system, m), m)) for m in HEADLINE]
        if baseline:
            cells += [_ratio(comparison, system, baseline, metric) for metric in HEADLINE]
        lines.append(_joined(cells))
    lines += [r"\bottomrule", r"\end{tabular}"]
    if baseline:
        lines.append(f"% times better than {baseline}; bold: the difference is sure (Holm)")
    return "\n".join(lines) + "\n"


def _ratio(comparison: Comparison, system: str, baseline: str, metric: str) -> str:
    if system == baseline:
        return "1"
    found = comparison.speedup(system, baseline, metric)
    told = escaped(words.ratio(found))
    return rf"\textbf{{{told}}}" if found.is_sure else told


def _line(texts: list[str]) -> str:
    return _joined([escaped(text) for text in texts])


def _joined(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def escaped(text: str) -> str:
    """Text that LaTeX sets as it is."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)
