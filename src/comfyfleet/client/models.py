"""Models for another machine's ComfyUI that has the extension: one file, piece after piece.

The other side says how much of the file it has, so a copy that was broken off goes on from there.
It checks the SHA-256 of the whole before the file gets its name; see ``comfy.intake``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlencode

from comfyfleet.api import BASE
from comfyfleet.api.guest import PIECE_BYTES
from comfyfleet.api.models import BYTES, LISTED, PART, SOURCE
from comfyfleet.client.background import in_background
from comfyfleet.client.digests import Digests
from comfyfleet.client.guest import Guest
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.client.texts import plain
from comfyfleet.errors import InputError, Unreachable

#: How often the other side is asked whether it has checked, or read, the whole.
_LOOK_S = 0.5
#: Who asks for a copy waits for it.
_FIND_S = 20.0
#: How often it may have no more than before: after a crash there, or when two send the same file.
_MAX_SETBACKS = 8

Sending = Literal["sending", "checking", "done"]
#: Called with what is done now, and the bytes that are there.
Tell = Callable[[Sending, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A file in one of ComfyUI's model folders on this machine."""

    folder: str
    #: Below that folder, with / between its parts.
    name: str
    path: Path

    @property
    def size(self) -> int:
        """Raises OSError if it has gone."""
        return self.path.stat().st_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelElsewhere:
    """A file in one of the model folders of another machine's ComfyUI."""

    folder: str
    name: str
    size: int
    endpoint: Endpoint


class Reader(Protocol):
    """Reads one model, wherever it is."""

    async def digest(self) -> str:
        """SHA-256 of the whole; may take minutes."""

    async def read(self, start: int) -> bytes:
        """The bytes from there on, ``PIECE_BYTES`` at most."""

    async def close(self) -> None: ...


class FileReader:
    """Reads a file of this machine; raises OSError."""

    def __init__(self, model: ModelFile, digests: Digests) -> None:
        self._path, self._digests = model.path, digests

    async def digest(self) -> str:
        return await in_background(self._digests.of, self._path)

    async def read(self, start: int) -> bytes:
        return await asyncio.to_thread(read_piece, self._path, start)

    async def close(self) -> None:
        """A file is open only while it is read."""


class LinkReader:
    """Reads a model of another ComfyUI; raises InputError and Unreachable."""

    def __init__(self, model: ModelElsewhere, patience_s: float) -> None:
        self._model = model
        self._link = Link(model.endpoint, patience_s=patience_s)
        self._fields = {"folder": model.folder, "file": model.name}

    async def digest(self) -> str:
        path = f"{_below(SOURCE.path)}?{urlencode(self._fields)}"
        while True:
            answer = await Guest(self._link).ask("GET", path)
            sha256 = answer.get("sha256")
            if answer.get("size") != self._model.size or not isinstance(sha256, str):
                raise InputError(f"{self._model.name} has changed at {self._link.url}; copy again.")
            if sha256:
                return sha256
            await asyncio.sleep(_LOOK_S)

    async def read(self, start: int) -> bytes:
        fields = urlencode({**self._fields, "start": start})

        async def once() -> bytes:
            path = f"{BASE}{BYTES.path}?{fields}"
            async with self._link.request("GET", path) as response:
                if response.status != 200:
                    told = f"it answered {response.status} for bytes of {self._model.name}"
                    raise Unreachable(self._link.url, told)
                return await self._link.read(response, PIECE_BYTES)

        return await self._link.patiently(once)

    async def close(self) -> None:
        await self._link.close()


async def find_elsewhere(endpoint: Endpoint, name: str, folder: str | None) -> ModelElsewhere:
    """The model of that name there. Raises InputError if there is none, or if there are several."""
    link = Link(endpoint, patience_s=_FIND_S)
    try:
        _, listed = await models_at(link)
    finally:
        await link.close()
    found = [
        each
        for each in listed
        if each.get("file") == name and isinstance(each.get("folder"), str)
        if folder in (None, each["folder"]) and isinstance(each.get("size"), int)
    ]
    if not found:
        where = f" in model folder {folder!r}" if folder else ""
        raise InputError(f"{link.url} has no {name!r}{where}; see `comfyfleet models check`.")
    if len(found) > 1:
        folders = ", ".join(sorted(plain(each["folder"], 50) for each in found))
        raise InputError(f"{name!r} is in several folders there ({folders}); choose by --folder.")
    (only,) = found
    return ModelElsewhere(folder=only["folder"], name=name, size=only["size"], endpoint=endpoint)


async def models_at(link: Link) -> tuple[bool, list[Mapping[str, Any]]]:
    """Does it accept more, and the models there: folder, file, size, sha256 where it is known.

    Raises Unreachable, or InputError if it does not tell.
    """
    answer = await Guest(link).ask("GET", _below(LISTED.path))
    found = answer.get("models")
    models: list[Mapping[str, Any]] = (
        [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    )
    return answer.get("accepts") is True, models


async def send_model(
    link: Link, model: ModelFile | ModelElsewhere, reader: Reader, sha256: str, tell: Tell
) -> None:
    """Copy a file whose digest is known, one piece in memory at a time.

    Raises InputError with what the other side refuses, Unreachable if it is gone for a minute.
    """
    guest, size = Guest(link), model.size
    fields = {"folder": model.folder, "file": model.name, "size": size, "sha256": sha256}
    path = f"{_below(PART.path)}?{urlencode(fields)}"
    answer = await guest.ask("GET", path)
    reached, setbacks = -1, 0
    while (start := _start(answer, size, link.url)) is not None:
        setbacks += start <= reached
        if setbacks > _MAX_SETBACKS:
            raise Unreachable(link.url, f"it has lost parts of {model.name} {setbacks} times")
        tell("checking" if start == size else "sending", start)
        if start == size:
            reached = size - 1
            await asyncio.sleep(_LOOK_S)
            answer = await guest.ask("GET", path)
        else:
            reached = start
            piece = await reader.read(start)
            if not piece:
                raise InputError(f"{model.name} became shorter while it was copied; copy it again.")
            answer = await guest.ask("PUT", f"{path}&start={start}", data=piece)
    tell("done", size)


def _below(path: str) -> str:
    return path.removeprefix("/guest")


def _start(answer: Mapping[str, Any], size: int, url: str) -> int | None:
    """How many bytes are there; None if the file is there as a whole, and checked."""
    start = answer.get("start")
    if type(start) is not int or not 0 <= start <= size:
        raise Unreachable(url, f"it says that it has {start!r} of {size} bytes of a model")
    return None if answer.get("state") == "whole" else start


def read_piece(path: Path, start: int) -> bytes:
    """The bytes of a file from there on, ``PIECE_BYTES`` at most. Raises OSError."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(PIECE_BYTES)
