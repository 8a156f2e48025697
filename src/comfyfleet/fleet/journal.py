"""The queue on disk: what a ComfyUI that was restarted, or killed, still has to do.

A SQLite file in ComfyUI's user folder, of one process at a time. Its text is JSON, so that any
name and any number comes back as it was.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import psutil
from filelock import FileLock, Timeout

from comfyfleet.errors import InputError, JournalError, JournalInUse
from comfyfleet.work import Prompt

#: A file with a higher number was written by a newer ComfyFleet.
_VERSION = 1
#: ``place`` is the order of put. An unreadable row keeps its columns, and files as lines.
_TABLES = {
    "prompts": "CREATE TABLE prompts (place INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL UNIQUE, "
    "number REAL NOT NULL, started INTEGER NOT NULL, prompt TEXT NOT NULL, "
    "extra_data TEXT NOT NULL, outputs TEXT NOT NULL)",
    "placed": "CREATE TABLE placed (prompt_id TEXT NOT NULL, key TEXT NOT NULL, "
    "file TEXT NOT NULL, PRIMARY KEY (prompt_id, key))",
    "unreadable": "CREATE TABLE unreadable (prompt_id, number, started, prompt, extra_data, "
    "outputs, placed, reason, kept_at)",
}
#: How long a call waits for another program that has the file open, such as a backup.
_BUSY_S = 1.0
_PARSE_ERRORS = (TypeError, ValueError, RecursionError)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedPrompt:
    """A prompt of ComfyUI's queue, as it is kept until it ends.

    ``number`` is its place as ComfyUI counts: lower first, negative for the front. ``outputs``
    are the nodes to execute. ``extra_data`` is kept as it is given: leave secrets out.
    """

    number: float
    prompt_id: str
    prompt: Prompt
    extra_data: Mapping[str, Any]
    outputs: tuple[str, ...]
    #: It was running when last heard of.
    started: bool = False
    #: "<node id>/<ordinal>" -> the file that is there for it, as ``str(Placed)``; empty if none is
    #: any more. A second attempt replaces these instead of adding to them.
    placed: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """Queued and running prompts in a file. Thread-safe; a call takes about a millisecond.

    What a call has written outlives the process, however that ends. (A power failure may cost
    the last seconds; it never damages the file.) Every call raises JournalError if the file
    cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it. One that cannot be used is kept under another name.

        Raises JournalInUse if another journal has it, JournalError if it cannot be written.
        """
        self.path = path.resolve()
        #: What the owner should know of the file that was found; "" if nothing.
        self.note = ""
        self._guard = threading.Lock()
        self._lock = _locked(self.path)
        with ExitStack() as undo:
            undo.callback(self._lock.release)
            with _wrapped(self.path):
                _holder(self.path).write_text(str(os.getpid()), encoding="ascii")
                self.note = _clear_away(self.path)
                self._db = undo.enter_context(closing(_connected(self.path)))
            self.unfinished()
            undo.pop_all()

    def put(self, entry: QueuedPrompt) -> None:
        """Keep a prompt until it ends. One of the same id is replaced, and keeps its turn.

        Raises InputError if the prompt is not JSON.
        """
        row = _row(entry)
        files = [(row["prompt_id"], _json(key), _json(file)) for key, file in entry.placed.items()]
        with self._writing() as db:
            db.execute(
                "INSERT INTO prompts (prompt_id, number, started, prompt, extra_data, outputs) "
                "VALUES (:prompt_id, :number, :started, :prompt, :extra_data, :outputs) "
                "ON CONFLICT (prompt_id) DO UPDATE SET number = :number, started = :started, "
                "prompt = :prompt, extra_data = :extra_data, outputs = :outputs",
                row,
            )
            db.execute("DELETE FROM placed WHERE prompt_id = :prompt_id", row)
            db.executemany("INSERT INTO placed VALUES (?, ?, ?)", files)

    def start(self, prompt_id: str) -> None:
        """It runs now. An id that is not kept changes nothing, here and below."""
        with self._writing() as db:
            db.execute("UPDATE prompts SET started = 1 WHERE prompt_id = ?", [_json(prompt_id)])

    def place(self, prompt_id: str, key: str, file: str) -> None:
        """A file of it is in its place. The key's file before it is forgotten."""
        with self._writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO placed "
                "SELECT prompt_id, ?, ? FROM prompts WHERE prompt_id = ?",
                [_json(key), _json(file), _json(prompt_id)],
            )

    def end(self, prompt_id: str) -> None:
        """It finished, failed, or was cancelled or deleted: forget it."""
        with self._writing() as db:
            _forget(db, [_json(prompt_id)])

    def end_all_but(self, prompt_ids: Collection[str]) -> None:
        """Forget every prompt but these."""
        keep = {_json(prompt_id) for prompt_id in prompt_ids}
        with self._writing() as db:
            known = [prompt_id.decode() for (prompt_id,) in db.execute(_ALL_IDS)]
            _forget(db, [prompt_id for prompt_id in known if prompt_id not in keep])

    def unfinished(self) -> list[QueuedPrompt]:
        """What has not ended: started ones first, by number, then in the order of put.

        A prompt that cannot be read is moved to the table "unreadable", and noted.
        """
        entries, damaged = [], {}
        with self._writing() as db:
            for place, *row in db.execute(_IN_ORDER).fetchall():
                try:
                    entries.append(_entry(row, db))
                except _PARSE_ERRORS as error:
                    damaged[place] = f"{row[0].decode(errors='replace')}: {error}"
            _put_aside(db, damaged)
        if damaged:
            self.note = f"{self.note} {_damage_note(self.path, damaged)}".strip()
        return entries

    def close(self) -> None:
        """Let another process have the file."""
        with self._guard, _wrapped(self.path):
            self._db.close()
            if self._lock.is_locked:
                _holder(self.path).unlink(missing_ok=True)
                self._lock.release()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The file for this thread alone: all that is done is kept, or nothing."""
        with self._guard, _wrapped(self.path), self._db as db:
            yield db


# Rows

_ALL_IDS = "SELECT prompt_id FROM prompts"
_IN_ORDER = (
    "SELECT place, prompt_id, number, started, prompt, extra_data, outputs FROM prompts "
    "ORDER BY started DESC, number, place"
)
_KEEP = (
    "INSERT INTO unreadable SELECT prompt_id, number, started, prompt, extra_data, outputs, "
    "(SELECT group_concat(key || ' ' || file, char(10)) FROM placed "
    "WHERE placed.prompt_id = prompts.prompt_id), ?, ? FROM prompts WHERE place = ?"
)


def _json(value: Any) -> str:
    return json.dumps(value)


def _row(entry: QueuedPrompt) -> dict[str, Any]:
    if math.isnan(entry.number):
        raise InputError(f"prompt {entry.prompt_id}: its number is NaN. Give one that has a place.")
    try:
        return {
            "prompt_id": _json(entry.prompt_id),
            "number": float(entry.number),
            "started": int(entry.started),
            "prompt": _json(entry.prompt),
            "extra_data": _json(entry.extra_data),
            "outputs": _json(entry.outputs),
        }
    except _PARSE_ERRORS as error:
        raise InputError(
            f"prompt {entry.prompt_id} cannot be kept, as it is not JSON: {error}"
        ) from None


def _entry(row: list[Any], db: sqlite3.Connection) -> QueuedPrompt:
    """A row of _IN_ORDER. Raises one of _PARSE_ERRORS if it is damaged."""
    prompt_id, number, started, prompt, extra_data, outputs = row
    files = db.execute("SELECT key, file FROM placed WHERE prompt_id = ?", [prompt_id.decode()])
    nodes = _parsed(prompt, dict)
    return QueuedPrompt(
        number=_checked(number, float),
        prompt_id=_parsed(prompt_id, str),
        prompt={node_id: _checked(node, dict) for node_id, node in nodes.items()},
        extra_data=_parsed(extra_data, dict),
        outputs=tuple(_checked(node_id, str) for node_id in _parsed(outputs, list)),
        started=started == 1,
        placed={_parsed(key, str): _parsed(file, str) for key, file in files.fetchall()},
    )


def _parsed(text: bytes, kind: type[_T]) -> _T:
    return _checked(json.loads(text), kind)


def _checked(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"{value!r:.60} is no {kind.__name__}")
    return value


def _forget(db: sqlite3.Connection, prompt_ids: list[str]) -> None:
    rows = [(prompt_id,) for prompt_id in prompt_ids]
    db.executemany("DELETE FROM prompts WHERE prompt_id = ?", rows)
    db.executemany("DELETE FROM placed WHERE prompt_id = ?", rows)


def _put_aside(db: sqlite3.Connection, damaged: Mapping[int, str]) -> None:
    """Move rows, by place and with the reason, to where they are kept but not read."""
    for place, reason in damaged.items():
        db.execute(_KEEP, [reason, _now(), place])
        db.execute(
            "DELETE FROM placed WHERE prompt_id = (SELECT prompt_id FROM prompts WHERE place = ?)",
            [place],
        )
        db.execute("DELETE FROM prompts WHERE place = ?", [place])


def _damage_note(path: Path, damaged: Mapping[int, str]) -> str:
    return (
        f"Queued prompts could not be read, and do not run ({'; '.join(damaged.values())}). They "
        f"are kept in the table 'unreadable' of {path}. Queue them anew."
    )


# The file


@contextmanager
def _wrapped(path: Path) -> Iterator[None]:
    """What SQLite or the disk refuses, as an error of ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise JournalError(
            f"the queue cannot be kept in {path}: {error}. See that the disk has room, that "
            "the file and its folder can be written, and that no other program holds the file."
        ) from error


def _locked(path: Path) -> FileLock:
    """The file's lock, for this process until it ends. Makes the folder if need be."""
    # Any thread may close the journal.
    lock = FileLock(f"{path}.lock", thread_local=False)
    with _wrapped(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise JournalInUse(
                f"{path} keeps the queue of another ComfyUI{_holder_words(path)}. Stop that one, "
                "or start this one with another --user-directory."
            ) from None
    return lock


def _holder(path: Path) -> Path:
    """Names the process that has the lock. The lock file itself is emptied by old filelocks."""
    return path.with_name(f"{path.name}.pid")


def _holder_words(path: Path) -> str:
    with suppress(OSError, ValueError):
        pid = int(_holder(path).read_text(encoding="ascii"))
        if psutil.pid_exists(pid):
            return f" (process {pid})"
    return ""


def _files(path: Path) -> list[Path]:
    """What SQLite may have for a database. The first is the database."""
    return [path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")]


def _clear_away(path: Path) -> str:
    """Rename files that cannot be used; what to tell of them, or ""."""
    there = [file for file in _files(path) if file.is_file()]
    for file in there:
        file.chmod(0o600)
    reason = _problem(path)
    if not reason:
        return ""
    kept = path.with_name(f"{path.name}.kept-{_now()}")
    for file in there:
        file.rename(f"{kept}{file.name[len(path.name) :]}")
    return (
        f"The queue in {path} could not be read: {reason}. It was kept as {kept}, and an empty "
        f"queue was begun. Queue what you miss anew, or stop ComfyUI and rename the file back for "
        "a ComfyFleet that can read it."
    )


def _problem(path: Path) -> str:
    """Why the file that is there cannot be used; "" if it can, or if there is none.

    It is opened for reading only: SQLite would else write what the -wal holds, and drop it.
    """
    database, wal, _ = (file.stat().st_size if file.is_file() else 0 for file in _files(path))
    if not database:
        return "it is empty, while its -wal is not" if wal else ""
    if not _is_writable_format(path):
        return "it is no SQLite database, or of a format that this SQLite cannot write"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)) as db:
        db.text_factory = lambda text: text.decode(errors="replace")
        try:
            return _difference(db)
        except sqlite3.OperationalError:
            raise  # the disk's fault, not the file's
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            return str(error)  # SQLite's message may quote damaged text


def _is_writable_format(path: Path) -> bool:
    """False if SQLite would open the file for reading only, or not at all, and blame the disk."""
    with path.open("rb") as file:
        header = file.read(100)
    return header[18:19] <= b"\2" and header[44:48] <= b"\0\0\0\4"


def _difference(db: sqlite3.Connection) -> str:
    """How a database differs from one that can be used; "" if it does not."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    if version > _VERSION:
        return f"it was written by a newer ComfyFleet (schema {version}; this one's is {_VERSION})"
    if (version, tables) not in [(_VERSION, _TABLES), (0, {})]:
        return "it is not a queue of ComfyFleet"
    check = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return "" if check == "ok" else " ".join(check.split())


def _connected(path: Path) -> sqlite3.Connection:
    """The file, open, with its tables."""
    # SQLite gives the -wal and -shm the mode of the database.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    db = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        # Damaged text must reach the parser, which knows whose it is.
        db.text_factory = bytes
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            tables = "; ".join(_TABLES.values())
            db.executescript(f"BEGIN; {tables}; PRAGMA user_version = {_VERSION}; COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H%M%S.%fZ")
