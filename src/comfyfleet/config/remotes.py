"""Workers on the network with their secrets, which lie outside of fleet.yaml."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from comfyfleet.config.schema import WorkerEntry
from comfyfleet.errors import InputError

_MAX_TOKEN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Remote:
    """A ComfyUI on the network that works for this fleet."""

    name: str
    url: str
    enabled: bool = True
    token: str = field(default="", repr=False)
    #: Certificates (PEM) that its own must be signed by; None: the public authorities.
    ca: Path | None = None
    #: A Unix socket that leads there, in place of the network; never in a file.
    socket: Path | None = None


def remote(entry: WorkerEntry, folder: Path, environ: Mapping[str, str] = os.environ) -> Remote:
    """The worker with its token; ``folder`` is where relative names of files begin.

    Raises InputError, without any part of the token.
    """
    token = ""
    if entry.enabled and entry.token_env is not None:
        token = _checked(environ.get(entry.token_env, "").strip(), _of(entry, "token_env"))
    if entry.enabled and entry.token_file is not None:
        token = _checked(_read_token(entry, folder / entry.token_file), _of(entry, "token_file"))
    ca = None if entry.ca is None else folder / entry.ca
    if entry.enabled and ca is not None and not ca.is_file():
        raise InputError(f"{_of(entry, 'ca')} names no file: {ca}. Give the file's name.")
    return Remote(entry.name, entry.url, entry.enabled, token, ca)


def _read_token(entry: WorkerEntry, path: Path) -> str:
    try:
        with path.open("rb") as file:
            _refuse_shared(entry, file.fileno())
            return file.read(_MAX_TOKEN_BYTES + 1).decode("ascii", "replace").strip()
    except OSError as error:
        # Without the name, which may be a token that was put into the wrong place.
        raise InputError(
            f"{_of(entry, 'token_file')} cannot be read: {error.strerror}. Give the name of the "
            "file that holds the token."
        ) from None


def _refuse_shared(entry: WorkerEntry, file: int) -> None:
    if os.name == "posix" and os.fstat(file).st_mode & 0o077:
        raise InputError(
            f"{_of(entry, 'token_file')} names a file that others can read or change. Make it "
            "yours alone: chmod 600."
        )


def _checked(token: str, where: str) -> str:
    if not token:
        raise InputError(f"{where} names what is empty or not set. Put the token there.")
    if not re.fullmatch(r"[!-~]{1,4096}", token):
        raise InputError(f"{where} names what is no token: one line of letters, digits and signs.")
    return token


def _of(entry: WorkerEntry, key: str) -> str:
    return f"worker {entry.name}: {key}"
