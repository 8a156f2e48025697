"""SHA-256 of large files, each read once: what is known is kept in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 4 << 20
#: More files than anybody has; the oldest are forgotten.
_MAX_KNOWN = 20_000

#: Time of change in nanoseconds, size in bytes, SHA-256 in hex.
_Known = tuple[int, int, str]


class Digests:
    """Known by path, time of change and size. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """``path``: where they are kept; it need not exist yet."""
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, _Known] | None = None

    def known(self, file: Path) -> str:
        """The digest of a file if it was read before, and has not changed; else empty.

        Raises OSError if there is no such file.
        """
        changed, size = _stamp(file)
        with self._lock:
            found = self._read().get(str(file))
        return found[2] if found and found[:2] == (changed, size) else ""

    def of(self, file: Path) -> str:
        """The digest of a file. Slow. Raises OSError."""
        found = self.known(file)
        if not found:
            before = _stamp(file)
            found = sha256_of(file)
            if _stamp(file) == before:
                self.keep(file, found)
        return found

    def keep(self, file: Path, digest: str) -> None:
        """A digest that somebody has computed just now. Raises OSError."""
        changed, size = _stamp(file)
        with self._lock:
            known = self._read()
            known.pop(str(file), None)
            known[str(file)] = (changed, size, digest)
            while len(known) > _MAX_KNOWN:
                del known[next(iter(known))]
            self._write(known)

    def _read(self) -> dict[str, _Known]:
        if self._known is None:
            self._known = _parsed(self._path)
        return self._known

    def _write(self, known: dict[str, _Known]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        draft.write_text(json.dumps(known), encoding="utf-8")
        draft.replace(self._path)


def _parsed(path: Path) -> dict[str, _Known]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(file): (int(changed), int(size), str(digest))
            for file, (changed, size, digest) in found.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be used (%s); digests are computed anew", path, error)
        return {}


def _stamp(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_mtime_ns, state.st_size


def sha256_of(file: Path) -> str:
    """The digest of what a file holds now. Slow. Raises OSError."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()
