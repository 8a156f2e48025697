"""Workers' logs: never too large, three old ones kept, readable from the end.

A worker writes by file descriptor, with ``O_APPEND``: while it runs its file cannot be replaced,
but it can be emptied.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from pathlib import Path
from typing import BinaryIO

from comfyfleet.errors import FleetError

#: A log that is larger is put aside as NAME.1, which becomes NAME.2, and so on.
MAX_BYTES = 10_000_000
NUM_OLD = 3
#: Lines are looked for in blocks of so many bytes, from the end.
_BLOCK = 1 << 16


def rotate(log: Path, max_bytes: int = MAX_BYTES) -> None:
    """Put a log aside that is too large; before its worker opens it."""
    if _is_large(log, max_bytes):
        _make_room(log)
        log.replace(_old(log, 1))


def rotate_open(log: Path, max_bytes: int = MAX_BYTES) -> None:
    """The same for a log that a worker has open: it is copied and emptied.

    What the worker writes between the copy's last byte and the emptying is lost.
    """
    if not _is_large(log, max_bytes):
        return
    _make_room(log)
    copy = _old(log, 1)
    with log.open("rb") as source, open(copy, "wb", opener=_private) as target:
        shutil.copyfileobj(source, target)
    os.truncate(log, 0)


def tail(log: Path, lines: int) -> list[str]:
    """The last lines of a log, without their ends. Raises FleetError if it cannot be read."""
    return Follower(log).begin(lines)


class Follower:
    """Reads a log from near its end, and then what comes, whatever rotation does to it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._file = -1
        self._at = 0

    def begin(self, lines: int) -> list[str]:
        """The last lines, without their ends. Raises FleetError if the log cannot be read."""
        try:
            with self._log.open("rb") as file:
                self._file, self._at = os.fstat(file.fileno()).st_ino, file.seek(0, os.SEEK_END)
                data = _end_of(file, self._at, lines)
        except OSError as error:
            raise FleetError(f"the log {self._log} cannot be read: {error}") from error
        return list(deque(data.decode("utf-8", "replace").splitlines(), maxlen=lines))

    def read(self) -> str:
        """What has come since; empty if there is nothing, or no such file just now."""
        try:
            with self._log.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._file or state.st_size < self._at:
                    self._file, self._at = state.st_ino, 0  # it was put aside, or emptied
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return ""  # it is put aside, and its worker has not opened another one
        self._at += len(data)
        return data.decode("utf-8", "replace")


def _end_of(file: BinaryIO, end: int, lines: int) -> bytes:
    """Enough bytes before ``end`` for so many lines."""
    at, data = end, b""
    while at > 0 and data.count(b"\n") <= lines:
        at = max(0, at - _BLOCK)
        file.seek(at)
        data = file.read(end - at)
    return data


def _is_large(log: Path, max_bytes: int) -> bool:
    return log.is_file() and log.stat().st_size > max_bytes


def _make_room(log: Path) -> None:
    for number in range(NUM_OLD, 1, -1):
        older = _old(log, number - 1)
        if older.exists():
            older.replace(_old(log, number))


def _old(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
