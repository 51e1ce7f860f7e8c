"""A folder of results becomes its report: what kind it is is told by what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from policy.errors import InputError
from traces.strict import Place, parse_json, reason, shown_path

MAX_JSON = 1 << 28
STUDY = "study.sqlite"  # explore.studies.store.STUDY, which is slow to import
SEARCH = "search.json"  # explore.search.answer.ANSWER, likewise; beside a study that a search made


class Report(NamedTuple):
    """A page, and the name that it has beside what it is made of."""

    name: str
    text: str


def report(folder: Path, progress: Callable[[], None] | None = None) -> Report:
    """The report of a recording, a comparison, a sweep, a search or a validation. Raises ConfigError, InputError
    or FaultError."""
    for marker, make in _KINDS.items():
        if (folder / marker).is_file():
            return make(folder, progress)
    raise InputError(
        f"{shown_path(folder)}: holds none of {', '.join(_KINDS)}; a report is made of the folder of a"
        " run, a comparison, a sweep or a validation"
    )


def _of_run(folder: Path, progress: Callable[[], None] | None) -> Report:
    from explore.report import run  # noqa: PLC0415  numpy and parquet
    from runs import recording  # noqa: PLC0415

    found = recording.load(folder)
    text = _guarded(folder / "run.json", lambda: run.page(found, progress))
    return Report("report.html", text)


def _of_comparison(folder: Path, _: Callable[[], None] | None) -> Report:
    from explore.report import comparison  # noqa: PLC0415
    from explore.studies import tables  # noqa: PLC0415

    path = folder / "compare.json"
    data = _json(path)

    def make() -> str:
        found = tables.from_json(data)
        return comparison.page(found, str(found.provenance["command"]))

    return Report("compare.html", _guarded(path, make))


def _of_validation(folder: Path, _: Callable[[], None] | None) -> Report:
    from explore.report import validation  # noqa: PLC0415
    from explore.validation import predict_text  # noqa: PLC0415

    path = folder / "validation.json"
    data = _json(path)

    def make() -> str:
        found = predict_text.from_json(data)
        return validation.page(found, str(data["command"]), validation.pictures(found, folder))

    return Report("validation.html", _guarded(path, make))


def _of_sweep(folder: Path, _: Callable[[], None] | None) -> Report:
    from explore.report import sweep  # noqa: PLC0415
    from explore.studies.store import Store  # noqa: PLC0415

    store = Store(folder)
    plan = store.plan()
    path = folder / SEARCH
    if not path.is_file():
        return Report("report.html", _guarded(folder / STUDY, lambda: sweep.page(store, plan)))
    from explore.report import search  # noqa: PLC0415

    data = _json(path)
    return Report(
        "report.html", _guarded(path, lambda: sweep.page(store, plan, search.opening(data)))
    )


_KINDS: dict[str, Callable[[Path, Callable[[], None] | None], Report]] = {
    "run.json": _of_run,
    "requests.journal.jsonl": _of_run,
    "compare.json": _of_comparison,
    "validation.json": _of_validation,
    STUDY: _of_sweep,
}


def _json(path: Path) -> Any:
    place = Place(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        place.fail(f"cannot be read: {reason(error)}")
    if len(text) > MAX_JSON:
        place.fail(f"longer than {MAX_JSON} bytes")
    return parse_json(text, place)


def _guarded(path: Path, make: Callable[[], str]) -> str:
    """A file in which something is missing or of another kind ends in an error that names it."""
    try:
        return make()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {reason(error)}"
        raise InputError(
            f"{shown_path(path)}: is not what this version writes, something is missing or of another"
            f" kind ({what})"
        ) from error
