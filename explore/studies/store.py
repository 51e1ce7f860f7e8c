"""The folder of a sweep. Results are files named by their content's key, written once, whole.

    plan.json            every trial: its values and its key
    objects/ab/KEY.json  the result of a trial, with a checksum
    failed/KEY.json      why a trial has no result; it is tried again by the next run
    corrupt/KEY.json     objects that no longer agree with their checksum, set aside
    journal.jsonl        what happened when (advisory: deleting it changes nothing)
    results.csv  estimates.csv  ratios.csv     made anew from the objects

Every file is written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from explore.studies.plan import Plan, Trial
from explore.studies.semantics import canonical, digest
from policy.errors import ConfigError, FaultError, InputError
from traces.strict import Place, parse_json, quoted, reason, shown_path

FORMAT = "fastswitch-sweep/1"
PLAN = "plan.json"
LOCK = "lock"


class Corrupt(Exception):
    """A stored result does not agree with its key or its checksum."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what the system says of a write into one message. Raises FaultError."""
    try:
        yield
    except OSError as error:
        raise FaultError(
            f"{shown_path(folder)}: cannot be written: {reason(error)}\n"
            "What was finished is kept; the same command with --resume goes on."
        ) from None


def write_whole(path: Path, text: str) -> None:
    """Either the old content or all of the new one, whatever happens. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Store:
    """A sweep's folder, for reading; `claimed` gives one to write to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # ------------------------------------------------------------------ results

    def has(self, key: str) -> bool:
        """Whether there is a result, sound or not."""
        return self._object(key).exists()

    def result(self, key: str) -> dict[str, Any] | None:
        """A result, None if there is none. Raises Corrupt."""
        try:
            text = self._object(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise Corrupt(reason(error)) from None
        try:
            found = json.loads(text)
            result = found["result"]
            sound = found["key"] == key and found["sha256"] == digest(canonical(result))
        except (KeyError, RecursionError, TypeError, ValueError):
            raise Corrupt("not a result") from None
        if not sound or not isinstance(result, dict):
            raise Corrupt("its checksum differs")
        return result

    def keep(self, key: str, result: dict[str, Any]) -> None:
        """Write a result, once; an earlier failure of the trial is forgotten. Raises FaultError."""
        path = self._object(key)
        text = canonical({"key": key, "result": result, "sha256": digest(canonical(result))})
        with writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text + "\n")
            self._failure(key).unlink(missing_ok=True)

    def failure(self, key: str) -> str | None:
        """Why a trial has no result."""
        try:
            return str(json.loads(self._failure(key).read_text(encoding="utf-8"))["reason"])
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, ValueError):
            return "unknown: the note of its failure cannot be read"

    def note_failure(self, key: str, why: str) -> None:
        """Write why a trial has no result. Raises FaultError."""
        path = self._failure(key)
        with writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, canonical({"key": key, "reason": why}) + "\n")

    def set_aside(self, key: str) -> Path:
        """Move a corrupt object away, so that the trial runs again. Raises FaultError."""
        away = self.folder / "corrupt" / f"{key}.json"
        with writing(self.folder):
            away.parent.mkdir(parents=True, exist_ok=True)
            self._object(key).replace(away)
        return away

    def _object(self, key: str) -> Path:
        return self.folder / "objects" / key[:2] / f"{key}.json"

    def _failure(self, key: str) -> Path:
        return self.folder / "failed" / f"{key}.json"

    # ------------------------------------------------------------------ plan and tables

    def plan(self) -> Plan:
        """The plan kept here. Raises InputError if this is no sweep's folder."""
        path = self.folder / PLAN
        place = Place(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            place.fail(f"cannot be read: {reason(error)}; is this the folder of a sweep?")
        data = parse_json(text, place)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            place.fail(f"not {FORMAT}", "format")
        try:
            trials = tuple(_trial(row) for row in data["trials"])
            beside, purpose = dict(data.get("beside", {})), dict(data.get("purpose", {}))
            start = (data["name"], tuple(data["paths"]), trials, data["semantics"])
            plan = Plan(*start, beside, purpose, str(data.get("grown_from", "")))
            sound = data["digest"] == plan.digest
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{shown_path(path)}: not a plan: {reason(error)}") from None
        if not sound:
            place.fail("its digest differs: the file was changed or damaged")
        return plan

    def write_plan(self, plan: Plan) -> None:
        """Write plan.json. Raises FaultError."""
        data = {"format": FORMAT, "digest": plan.digest, **plan.as_json()}
        if plan.grown_from:
            data["grown_from"] = plan.grown_from
        with writing(self.folder):
            write_whole(self.folder / PLAN, json.dumps(data, indent=0) + "\n")

    def write_table(self, name: str, text: str) -> None:
        """Write a derived table. Raises FaultError."""
        with writing(self.folder):
            write_whole(self.folder / name, text)


def _trial(row: dict[str, Any]) -> Trial:
    """A row of plan.json. Its key becomes a file's name, so it must be nothing else. Raises
    ValueError, TypeError."""
    trial = Trial(**row)
    if not re.fullmatch("[0-9a-f]{64}", trial.key) or not isinstance(trial.values, dict):
        raise ValueError(f"{quoted(trial.key)} is not a trial's key")
    return trial


@contextmanager
def claimed(folder: Path) -> Iterator[Store]:
    """The folder, for one process alone; made if it is not there. The lock goes with the process.

    Raises ConfigError for a folder that another sweep is writing to, that holds something else, or
    that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_what_is_not_a_sweep(folder)
        lock = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{shown_path(folder)}: cannot be written: {reason(error)}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            raise ConfigError(
                f"{shown_path(folder)}: another sweep is writing to it"
                + (f" (process {owner})" if owner.isdigit() else "")
            ) from None
        except OSError as error:
            raise ConfigError(f"{shown_path(folder)}: no locks here: {reason(error)}") from None
        with writing(folder):
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            _clear_what_a_killed_run_left(folder)
        yield Store(folder)


def is_claimed(folder: Path) -> bool:
    """Whether a process is writing to the folder now."""
    try:
        with (folder / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _refuse_what_is_not_a_sweep(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    if PLAN in names or all(name == LOCK or _is_part(name) for name in names):
        return
    raise ConfigError(
        f"{shown_path(folder)}: holds something that is no sweep; it was left alone,"
        " give a new folder"
    )


def _is_part(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _clear_what_a_killed_run_left(folder: Path) -> None:
    for base, _, names in os.walk(folder):
        for name in names:
            if _is_part(name):
                (Path(base) / name).unlink()
