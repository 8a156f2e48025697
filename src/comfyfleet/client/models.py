"""Models for another machine's ComfyUI that has the extension: one file, piece after piece.

The other side says how much of the file it has, so a copy that was broken off goes on from there.
It checks the SHA-256 of the whole before the file gets its name; see ``comfy.intake``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from comfyfleet.api.guest import PIECE_BYTES
from comfyfleet.api.models import LISTED, PART
from comfyfleet.client.guest import Guest
from comfyfleet.client.link import Link
from comfyfleet.errors import InputError, Unreachable

#: How often the other side is asked whether it has checked the whole.
_LOOK_S = 0.5
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


async def send_model(link: Link, model: ModelFile, sha256: str, tell: Tell) -> None:
    """Copy a file whose digest is known.

    Raises InputError with what the other side refuses, Unreachable if it is gone for a minute.
    """
    guest, size = Guest(link), model.path.stat().st_size
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
            piece = await asyncio.to_thread(_read, model.path, start)
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


def _read(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        found = file.read(PIECE_BYTES)
    if not found:
        raise InputError(f"{path} became shorter while it was copied; copy it again.")
    return found
