"""The models of this ComfyUI for others: shown, taken in and given out piece by piece."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths

from comfyfleet.client.background import in_background
from comfyfleet.client.digests import Digests
from comfyfleet.client.files import read_piece
from comfyfleet.client.models import Whole
from comfyfleet.comfy import models
from comfyfleet.comfy.intake import Incoming, Intake

logger = logging.getLogger(__name__)

_DIGESTS = Path("comfyfleet", "digests.json")


class Stock:
    """Used on one event loop, but for ``listed``. Everything raises InputError, and OSError."""

    def __init__(self) -> None:
        #: Kept in ComfyUI's user folder.
        self.digests = Digests(Path(folder_paths.get_user_directory()).resolve() / _DIGESTS)
        self._intake = Intake(self.digests, models.refresh)
        #: Models that are read as a whole, for their digests.
        self._reading: dict[Path, asyncio.Task[str]] = {}

    async def listed(self) -> list[Mapping[str, Any]]:
        """Folder, file, size of each, and its sha256 if that is known."""
        return await asyncio.to_thread(self._listed)

    async def state(self, whole: Whole) -> Mapping[str, Any]:
        """See ``Intake.state``."""
        return await self._intake.state(await asyncio.to_thread(_incoming, whole))

    async def add(self, whole: Whole, start: int, data: bytes) -> Mapping[str, Any]:
        """See ``Intake.add``."""
        return await self._intake.add(await asyncio.to_thread(_incoming, whole), start, data)

    async def source(self, folder: str, file: str) -> Mapping[str, Any]:
        """Size and SHA-256 of a model; if that is not known, it begins to be computed."""
        model = await asyncio.to_thread(models.find, file, folder)
        sha256 = self.digests.known(model.path)
        if not sha256 and model.path not in self._reading:
            task = asyncio.ensure_future(in_background(self.digests.of, model.path))
            self._reading[model.path] = task
            task.add_done_callback(lambda done: self._read_whole(model.path, done))
        return {"size": model.size, "sha256": sha256}

    async def read(self, folder: str, file: str, start: int) -> bytes:
        """The bytes of a model from there on, ``PIECE_BYTES`` at most; none beyond its end."""
        model = await asyncio.to_thread(models.find, file, folder)
        return await asyncio.to_thread(read_piece, model.path, start)

    def _listed(self) -> list[Mapping[str, Any]]:
        return [
            {
                "folder": each.folder,
                "file": each.name,
                "size": each.path.stat().st_size,
                "sha256": self.digests.known(each.path),
            }
            for each in models.listed()
            if each.path.is_file()
        ]

    def _read_whole(self, path: Path, done: asyncio.Task[str]) -> None:
        del self._reading[path]
        if not done.cancelled() and (error := done.exception()) is not None:
            logger.warning("%s cannot be read: %s", path, error)


def _incoming(whole: Whole) -> Incoming:
    path = models.destination(whole.folder, whole.file)
    return Incoming(path=path, size=whole.size, sha256=whole.sha256)
