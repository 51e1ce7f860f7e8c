"""What a study has found, in one SQLite file: its plan, results by the key of their content, failures.

    study.sqlite   tables `plan`, `result`, `failure`, `corrupt`, `session`
    lock           held by the process that writes

A result is committed with the failure it makes void, so a killed run loses only what was under way. Each
text has its checksum: SQLite notices a page that is torn, not a bit that flipped. `session` tells people
what ran when, and nothing is decided by it. Why SQLite: docs/decisions/0024-sweeps-by-content.md.
"""

from __future__ import annotations

import datetime
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from explore.studies.plan import Plan, Trial
from explore.studies.semantics import canonical, digest
from policy.errors import ConfigError, FaultError, InputError
from traces.strict import quoted, reason, shown_path

FORMAT = "fastswitch-study/1"
STUDY, LOCK = "study.sqlite", "lock"
_SECONDS_TO_WAIT = 30.0
_TABLES = """
CREATE TABLE IF NOT EXISTS plan (format TEXT, digest TEXT, text TEXT);
CREATE TABLE IF NOT EXISTS result (key TEXT PRIMARY KEY, text TEXT, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failure (key TEXT PRIMARY KEY, reason TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS corrupt (key TEXT, text TEXT, sha256 TEXT);
CREATE TABLE IF NOT EXISTS session (began TEXT, last TEXT, trials INTEGER, facts TEXT);
"""


class Corrupt(Exception):
    """A stored result does not agree with its checksum."""


@contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """Turns what the system says of a write into one message. Raises FaultError."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        where = "results" if folder is None else shown_path(folder)
        raise FaultError(
            f"{where}: cannot be written: {reason(error)}\n"
            "What was finished is kept; the same command goes on."
        ) from None


class Store:
    """A study's folder, for reading; `claimed` gives one to write to. Without a folder everything is in
    memory, and goes with the process."""

    def __init__(self, folder: Path | None = None, *, writes: bool = False) -> None:
        self.folder = folder
        self._writes = writes or folder is None
        self._held: sqlite3.Connection | None = None
        self._session: int | None = None

    @property
    def _db(self) -> sqlite3.Connection:
        """Opened when it is first asked. Raises InputError if this is no study's folder."""
        if self._held is None:
            self._held = self._opened()
        return self._held

    def _opened(self) -> sqlite3.Connection:
        if self.folder is None:
            where = ":memory:"
        else:
            path = self.folder / STUDY
            if not self._writes and not path.is_file():
                raise InputError(
                    f"{shown_path(path)}: is not there; is this the folder of a study?"
                )
            # a reader may have to undo what a killed writer left, so it is not opened as `ro`
            where = f"{path.absolute().as_uri()}?mode={'rwc' if self._writes else 'rw'}"
        held = sqlite3.connect(where, timeout=_SECONDS_TO_WAIT, isolation_level=None, uri=True)
        if self._writes:
            try:
                held.execute("PRAGMA synchronous=FULL")
                held.executescript(_TABLES)
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                    raise InputError(f"{self.shown}: is no study: {reason(error)}") from None
                raise
        return held

    def open(self) -> None:
        """Make the file now if it is not there. Raises FaultError where it cannot be written,
        InputError where it is something else."""
        with writing(self.folder):
            assert self._db is not None

    def close(self) -> None:
        """Nothing more is read or written."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _rows(self, text: str, *values: Any) -> list[Any]:
        """Raises InputError for a file that is no study, or damaged."""
        try:
            return self._db.execute(text, values).fetchall()
        except sqlite3.Error as error:
            raise InputError(f"{self.shown}: cannot be read: {reason(error)}") from None

    @property
    def shown(self) -> str:
        """What messages call it."""
        return "results" if self.folder is None else shown_path(self.folder / STUDY)

    # ------------------------------------------------------------------ results

    @property
    def is_there(self) -> bool:
        """Whether the folder holds a study at all."""
        return self.folder is None or (self.folder / STUDY).is_file()

    def has(self, key: str) -> bool:
        """Whether there is a result, sound or not."""
        return self.is_there and bool(self._rows("SELECT 1 FROM result WHERE key=?", key))

    def result(self, key: str) -> dict[str, Any] | None:
        """A result, None if there is none. Raises Corrupt."""
        rows = self._rows("SELECT text, sha256 FROM result WHERE key=?", key)
        if not rows:
            return None
        text, checksum = rows[0]
        if not isinstance(text, str) or digest(key + text) != checksum:
            raise Corrupt("its checksum differs")
        result: dict[str, Any] = json.loads(text)
        return result

    def keep(self, key: str, result: dict[str, Any]) -> None:
        """Write a result, once; an earlier failure of the trial is forgotten. Raises FaultError."""
        text = json.dumps(result, separators=(",", ":"), allow_nan=False)
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO result VALUES (?, ?, ?)", (key, text, digest(key + text))
            )
            self._db.execute("DELETE FROM failure WHERE key=?", (key,))
            self._count_one()

    def failure(self, key: str) -> str | None:
        """Why a trial has no result."""
        rows = self._rows("SELECT reason FROM failure WHERE key=?", key)
        return str(rows[0][0]) if rows else None

    def note_failure(self, key: str, why: str) -> None:
        """Write why a trial has no result. Raises FaultError."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO failure VALUES (?, ?)", (key, why))
            self._count_one()

    def set_aside(self, key: str) -> None:
        """Move a corrupt result to the table of that name, so that the trial runs again. Raises
        FaultError."""
        with self.transaction():
            self._db.execute("INSERT INTO corrupt SELECT * FROM result WHERE key=?", (key,))
            self._db.execute("DELETE FROM result WHERE key=?", (key,))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside, or nothing; one inside another is part of it."""
        if self._db.in_transaction:
            yield
            return
        with writing(self.folder):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a disk that is full has rolled back already
                    self._db.execute("ROLLBACK")
                raise

    # ------------------------------------------------------------------ plan and tables

    def plan(self) -> Plan:
        """The plan kept here. Raises InputError if this is no study's folder."""
        rows = self._rows("SELECT format, digest, text FROM plan")
        if len(rows) != 1:
            raise InputError(f"{self.shown}: has no plan; was its first run cut off?")
        form, checksum, text = rows[0]
        if form != FORMAT:
            raise InputError(f"{self.shown}: format: {quoted(form)} is not {FORMAT}")
        try:
            data = json.loads(text)
            trials = tuple(_trial(row) for row in data["trials"])
            beside, purpose = dict(data.get("beside", {})), dict(data.get("purpose", {}))
            start = (data["name"], tuple(data["paths"]), trials, data["semantics"])
            plan = Plan(*start, beside, purpose, str(data.get("grown_from", "")))
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise InputError(f"{self.shown}: not a plan: {reason(error)}") from None
        if checksum != plan.digest:
            raise InputError(f"{self.shown}: plan: its digest differs: it was changed or damaged")
        return plan

    @property
    def has_plan(self) -> bool:
        """Whether a plan was ever written here."""
        return self.is_there and bool(self._rows("SELECT 1 FROM plan"))

    def write_plan(self, plan: Plan) -> None:
        """Write the plan in place of another. Raises FaultError."""
        data = plan.as_json() | ({"grown_from": plan.grown_from} if plan.grown_from else {})
        with self.transaction():
            self._db.execute("DELETE FROM plan")
            self._db.execute(
                "INSERT INTO plan VALUES (?, ?, ?)", (FORMAT, plan.digest, json.dumps(data))
            )

    def write_table(self, name: str, text: str) -> None:
        """A derived table as a file, old or new as a whole. Raises FaultError."""
        if self.folder is None:
            return
        part = self.folder / f".part.{name}"
        with writing(self.folder):
            try:
                part.write_text(text, encoding="utf-8")
                part.replace(self.folder / name)
            finally:
                part.unlink(missing_ok=True)

    # ------------------------------------------------------------------ sessions

    def begin_session(self, **facts: Any) -> None:
        """From now on what is kept is counted. Raises FaultError."""
        with self.transaction():
            row = (_now(), _now(), 0, canonical(facts))
            added = self._db.execute("INSERT INTO session VALUES (?, ?, ?, ?)", row)
            self._session = added.lastrowid

    def end_session(self, **facts: Any) -> None:
        """What is known of the session at its end, beside what it began with. Raises FaultError."""
        ((held,),) = self._rows("SELECT facts FROM session WHERE rowid=?", self._session)
        with self.transaction():
            self._db.execute(
                "UPDATE session SET facts=?, last=? WHERE rowid=?",
                (canonical({**json.loads(held), **facts}), _now(), self._session),
            )

    def _count_one(self) -> None:
        self._db.execute(
            "UPDATE session SET trials=trials+1, last=? WHERE rowid=?", (_now(), self._session)
        )

    def sessions(self) -> list[dict[str, Any]]:
        """Every stretch of running: when it began, its last result, how many, by which command."""
        names = ("began", "last", "trials")
        return [
            {**dict(zip(names, row, strict=False)), **json.loads(row[3])}
            for row in self._rows("SELECT * FROM session ORDER BY rowid")
        ]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _trial(row: dict[str, Any]) -> Trial:
    """A row of the plan. Raises ValueError, TypeError."""
    trial = Trial(**row)
    if not re.fullmatch("[0-9a-f]{64}", trial.key) or not isinstance(trial.values, dict):
        raise ValueError(f"{quoted(trial.key)} is not a trial's key")
    return trial


# ---------------------------------------------------------------------- claims


@contextmanager
def claimed(folder: Path, *, overwrite: bool = False, beside: bool = False) -> Iterator[Store]:
    """The folder, for one process alone; made if it is not there, and gone again if this breaks off with
    nothing finished. The lock goes with the process.

    `overwrite`: an earlier study's results are deleted. `beside`: other files may be there. Raises
    ConfigError for a folder that another study is writing to, that holds something else, or that
    cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not beside:
            _refuse_what_is_no_study(folder)
        lock = sqlite3.connect(folder / LOCK, timeout=0, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"{shown_path(folder)}: cannot be written: {reason(error)}") from None
    with closing(lock):
        _lock(lock, folder)
        store = Store(folder, writes=True)
        try:
            if overwrite:
                _clear(folder)
            store.open()
            yield store
        except BaseException:
            is_empty = made and not _has_anything(store)
            store.close()
            if is_empty:
                _remove(made)
            raise
        store.close()


def _lock(lock: sqlite3.Connection, folder: Path) -> None:
    """Hold a write transaction, which ends with the process. Raises ConfigError."""
    try:
        lock.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            owner = _owner(folder)
            raise ConfigError(
                f"{shown_path(folder)}: another study is writing to it"
                + (f" (process {owner})" if owner else "")
            ) from None
        raise ConfigError(f"{shown_path(folder)}: cannot be locked: {reason(error)}") from None
    except sqlite3.Error as error:
        raise ConfigError(f"{shown_path(folder)}: cannot be locked: {reason(error)}") from None


def _owner(folder: Path) -> int | None:
    """Whose session is the last."""
    try:
        sessions = Store(folder).sessions()
    except InputError:
        return None
    return sessions[-1].get("process") if sessions else None


def is_claimed(folder: Path) -> bool:
    """Whether a process is writing to the folder now."""
    if not (folder / LOCK).is_file():
        return False
    where = f"{(folder / LOCK).absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(where, timeout=0, isolation_level=None, uri=True)) as lock:
            lock.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode == sqlite3.SQLITE_BUSY
    return False


def _refuse_what_is_no_study(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    if STUDY in names or all(name == LOCK or name.startswith((".part.", LOCK)) for name in names):
        return
    raise ConfigError(
        f"{shown_path(folder)}: holds something that is no study; it was left alone,"
        " give a new folder"
    )


def _has_anything(store: Store) -> bool:
    try:
        return any(store._rows(f"SELECT 1 FROM {name} LIMIT 1") for name in ("result", "failure"))
    except InputError:
        return False


def _clear(folder: Path) -> None:
    for name in (STUDY, f"{STUDY}-journal"):
        with writing(folder):
            (folder / name).unlink(missing_ok=True)


def _remove(made: list[Path]) -> None:
    """Folders that were made for nothing."""
    with suppress(OSError):
        shutil.rmtree(made[0])
        for parent in made[1:]:
            parent.rmdir()
