"""Who may ask this fleet: its owner's token, and those that were given to others.

One file in the owner's folder, which only its user can read. The owner's token stands in it as it
is, so that the command on this machine can read it; of all others there is only a digest.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from comfyfleet.api import NAME_PATTERN
from comfyfleet.errors import AccessError, FleetError, InputError

#: The file's name in the owner's folder.
TOKENS_FILE = "tokens.json"
#: Who holds the fleet's own token.
OWNER = "owner"
#: ComfyUI's own page, which needs none.
PAGE = "page"

_VERSION = 1
_MAX_ISSUED = 100
_MIN_LENGTH = 32
#: Who comes last waits for all others, each of which a busy disk may hold up for seconds.
_LOCK_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A token that somebody else holds."""

    name: str
    sha256: str
    #: When it was issued, in UTC as ISO 8601.
    created: str


@dataclass(frozen=True, slots=True)
class _Kept:
    own: str
    issued: tuple[Issued, ...] = ()

    def __repr__(self) -> str:
        return f"_Kept(issued={len(self.issued)})"


class Tokens:
    """The file of tokens. Thread-safe; several processes may use one file.

    Every call makes the file if there is none, and reads it again if somebody has changed it.
    Raises FleetError if it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._kept = _Kept("")

    def prepare(self) -> None:
        """Make the file, if this is the first start."""
        self._now()

    def holder(self, token: str) -> str | None:
        """Whose token this is; OWNER for the fleet's own, None for one that is not valid."""
        given, kept = _digest(token), self._now()
        known = [(OWNER, _digest(kept.own)), *((each.name, each.sha256) for each in kept.issued)]
        # All are compared, so that the time says nothing.
        found = [name for name, digest in known if hmac.compare_digest(given, digest)]
        return found[0] if found else None

    def issued(self) -> tuple[Issued, ...]:
        """Who holds a token besides the owner, in the order of issue."""
        return self._now().issued

    def issue(self, name: str) -> str:
        """A new token for somebody. Raises AccessError (409) if it cannot have that name."""
        token = secrets.token_urlsafe(32)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = Issued(name=name, sha256=_digest(token), created=created)

        def add(kept: _Kept) -> _Kept:
            _check_free(name, kept)
            return replace(kept, issued=(*kept.issued, entry))

        self._change(add)
        return token

    def accept(self, name: str, token: str) -> None:
        """Let a token in that was made elsewhere, in the place of one of that name, if any.

        Raises InputError for one that could be guessed.
        """
        if len(token) < _MIN_LENGTH:
            raise InputError(
                f"this token is too short: give {_MIN_LENGTH} random characters or more, such as "
                "`openssl rand -hex 32` prints."
            )
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = Issued(name=name, sha256=_digest(token), created=created)

        def put(kept: _Kept) -> _Kept:
            others = replace(kept, issued=tuple(e for e in kept.issued if e.name != name))
            _check_free(name, others)
            return replace(others, issued=(*others.issued, entry))

        self._change(put)

    def revoke(self, name: str) -> bool:
        """Take a token back; False if nobody of that name holds one."""
        before: list[_Kept] = []

        def drop(kept: _Kept) -> _Kept:
            before.append(kept)
            return replace(kept, issued=tuple(e for e in kept.issued if e.name != name))

        return self._change(drop) != before[0]

    def _now(self) -> _Kept:
        with self._lock, _told(self.path):
            try:
                return self._read()
            except FileNotFoundError:
                pass
            with _locked(self.path):
                if not self.path.exists():
                    _write(self.path, _Kept(secrets.token_urlsafe(32)))
            return self._read()

    def _change(self, change: Callable[[_Kept], _Kept]) -> _Kept:
        self._now()
        with self._lock, _told(self.path), _locked(self.path):
            kept = change(self._read())
            _write(self.path, kept)
            return self._read()

    def _read(self) -> _Kept:
        found = self.path.stat()
        stamp = (found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode)
        if stamp != self._stamp:
            self._kept = _parsed(self.path, read_secret(self.path))
            self._stamp = stamp
        return self._kept


def own_token(path: Path) -> str:
    """The owner's token of a file of tokens. Raises FleetError if the file cannot be used."""
    with _told(path):
        return _parsed(path, read_secret(path)).own


def read_secret(path: Path) -> str:
    """The text of a file that only its user can read. Raises FleetError if others can, OSError."""
    with path.open(encoding="utf-8") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if os.name == "posix" and mode & 0o077:
            raise FleetError(
                f"{path} holds a secret, and other users can read it (mode {mode:04o}): "
                f"`chmod 600 {path}` if nobody has; else delete it, so that a new one is made."
            )
        return file.read()


def write_secret(path: Path, text: str) -> None:
    """Make or replace a file, as a whole, that only its user can read. Raises OSError."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _check_free(name: str, kept: _Kept) -> None:
    if not re.search(NAME_PATTERN, name):
        raise InputError(f"{name!r} is no name for who holds a token.")
    if name in (OWNER, PAGE, *(each.name for each in kept.issued)):
        raise AccessError(409, f"{name} holds a token already: revoke it, or choose another name.")
    if len(kept.issued) >= _MAX_ISSUED:
        raise AccessError(409, f"{_MAX_ISSUED} tokens are out, which is the most: revoke some.")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _write(path: Path, kept: _Kept) -> None:
    issued = [asdict(each) for each in kept.issued]
    data = {"version": _VERSION, "own": kept.own, "issued": issued}
    write_secret(path, json.dumps(data, indent=1) + "\n")


def _parsed(path: Path, text: str) -> _Kept:
    try:
        data: dict[str, Any] = json.loads(text)
        kept = _Kept(str(data["own"]), tuple(Issued(**each) for each in data["issued"]))
        if data["version"] == _VERSION and len(kept.own) >= _MIN_LENGTH:
            return kept
        found = f"version {data['version']!r}"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        found = type(error).__name__  # its text might hold a piece of the file
    raise FleetError(
        f"{path} is damaged, or of a newer ComfyFleet ({found}). Delete it: a new one is made, and "
        "whoever held a token must be paired anew."
    )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FleetError(
            f"the tokens cannot be kept in {path}: {error.strerror or error}. Make its folder "
            "readable and writable for the user who runs ComfyUI."
        ) from error


def _locked(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", timeout=_LOCK_S, mode=0o600)
