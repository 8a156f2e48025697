"""Models for another ComfyUI that has the extension: one file, piece after piece.

The other side says how much of the file it has, so a copy that was broken off goes on from there.
It checks the SHA-256 of the whole before the file gets its name; see ``comfy.intake``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from comfyfleet.client.background import in_background
from comfyfleet.client.digests import Digests
from comfyfleet.client.files import read_piece
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
class Whole:
    """A model that is to be somewhere as a whole; ``file`` is below its folder."""

    folder: str
    file: str
    size: int
    sha256: str


class ModelStore(Protocol):
    """The models of another ComfyUI. Everything raises InputError and Unreachable."""

    @property
    def name(self) -> str:
        """What errors call it."""

    async def has_extension(self) -> bool:
        """Can it take models in, and give them out?"""

    async def listed(self) -> tuple[bool, list[Mapping[str, Any]]]:
        """Does it accept more, and its models: folder, file, size, sha256 where it is known."""

    async def state(self, whole: Whole) -> Mapping[str, Any]:
        """``start``: how many bytes are there; ``state``: open, checking or whole."""

    async def add(self, whole: Whole, start: int, data: bytes) -> Mapping[str, Any]:
        """Give it the next bytes, ``PIECE_BYTES`` at most; the state after them."""

    async def source(self, folder: str, file: str) -> Mapping[str, Any]:
        """``size`` and ``sha256`` of a model; the digest is empty while it is computed."""

    async def read(self, folder: str, file: str, start: int) -> bytes:
        """The bytes of a model from there on, ``PIECE_BYTES`` at most."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A worker that has model folders of its own."""

    name: str
    #: The same for those that share their folders: these get one copy at a time.
    place: str
    #: Called, on the loop where it is used, with the seconds that a break may last.
    open: Callable[[float], ModelStore]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelElsewhere:
    """A file in one of the model folders of another ComfyUI."""

    folder: str
    name: str
    size: int
    site: Site


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


class StoreReader:
    """Reads a model of another ComfyUI; raises InputError and Unreachable."""

    def __init__(self, model: ModelElsewhere, patience_s: float) -> None:
        self._model = model
        self._store = model.site.open(patience_s)

    async def digest(self) -> str:
        model = self._model
        while True:
            answer = await self._store.source(model.folder, model.name)
            sha256 = answer.get("sha256")
            if answer.get("size") != model.size or not isinstance(sha256, str):
                raise InputError(f"{model.name} has changed at {self._store.name}; copy again.")
            if sha256:
                return sha256
            await asyncio.sleep(_LOOK_S)

    async def read(self, start: int) -> bytes:
        return await self._store.read(self._model.folder, self._model.name, start)

    async def close(self) -> None:
        await self._store.close()


async def find_elsewhere(site: Site, name: str, folder: str | None) -> ModelElsewhere:
    """The model of that name there. Raises InputError if there is none, or if there are several."""
    store = site.open(_FIND_S)
    try:
        _, listed = await store.listed()
    finally:
        await store.close()
    found = [
        each
        for each in listed
        if each.get("file") == name and isinstance(each.get("folder"), str)
        if folder in (None, each["folder"]) and isinstance(each.get("size"), int)
    ]
    if not found:
        where = f" in model folder {folder!r}" if folder else ""
        raise InputError(f"{store.name} has no {name!r}{where}; see `comfyfleet models check`.")
    if len(found) > 1:
        folders = ", ".join(sorted(plain(each["folder"], 50) for each in found))
        raise InputError(f"{name!r} is in several folders there ({folders}); choose by --folder.")
    (only,) = found
    return ModelElsewhere(folder=only["folder"], name=name, size=only["size"], site=site)


async def send_model(
    store: ModelStore, model: ModelFile | ModelElsewhere, reader: Reader, sha256: str, tell: Tell
) -> None:
    """Copy a file whose digest is known, one piece in memory at a time.

    Raises InputError with what the other side refuses, Unreachable if it is gone for a minute.
    """
    size = model.size
    whole = Whole(folder=model.folder, file=model.name, size=size, sha256=sha256)
    answer = await store.state(whole)
    reached, setbacks = -1, 0
    while (start := _start(answer, size, store.name)) is not None:
        setbacks += start <= reached
        if setbacks > _MAX_SETBACKS:
            raise Unreachable(store.name, f"it has lost parts of {model.name} {setbacks} times")
        tell("checking" if start == size else "sending", start)
        if start == size:
            reached = size - 1
            await asyncio.sleep(_LOOK_S)
            answer = await store.state(whole)
        else:
            reached = start
            piece = await reader.read(start)
            if not piece:
                raise InputError(f"{model.name} became shorter while it was copied; copy it again.")
            answer = await store.add(whole, start, piece)
    tell("done", size)


def _start(answer: Mapping[str, Any], size: int, name: str) -> int | None:
    """How many bytes are there; None if the file is there as a whole, and checked."""
    start = answer.get("start")
    if type(start) is not int or not 0 <= start <= size:
        raise Unreachable(name, f"it says that it has {start!r} of {size} bytes of a model")
    return None if answer.get("state") == "whole" else start
