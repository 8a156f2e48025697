"""Input files for another machine's ComfyUI: in pieces where it has the extension, else whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp

from comfyfleet.client import texts
from comfyfleet.client.files import FOLDER, Files
from comfyfleet.client.guest import Guest
from comfyfleet.client.link import Link
from comfyfleet.errors import Unfit, Unreachable
from comfyfleet.work import Prompt

#: A proxy's word that what is behind it, or itself, cannot just now.
_LATER = frozenset({429, 502, 503, 504})


class Uploads:
    """Sends what prompts name. ``folders``: ComfyUI's input, output and temp folders here."""

    def __init__(self, link: Link, guest: Guest, folders: Mapping[str, Path]) -> None:
        self._link = link
        self._guest = guest
        self._files = Files(folders)

    async def send(
        self, prompt: Prompt, *, in_pieces: bool
    ) -> tuple[dict[str, Mapping[str, Any]], frozenset[str]]:
        """Send the files that are not there; the prompt with their new names, and those names.

        ``in_pieces``: has it the extension? Raises Unreachable if they do not arrive, Unfit if they
        are refused.
        """
        parcel = await self._files.pack(prompt)
        for name, path in parcel.files.items():
            await (self._guest.send_file(name, path) if in_pieces else self._send(name, path))
        return parcel.prompt, parcel.names

    async def _send(self, name: str, path: Path) -> None:
        async def send() -> None:
            if not await self._is_there(name, path.stat().st_size):
                await self._upload(name, path)

        await self._link.patiently(send)

    async def _is_there(self, name: str, size: int) -> bool:
        query = urlencode({"filename": name, "subfolder": FOLDER, "type": "input"})

        async def ask() -> bool:
            async with self._link.request("HEAD", f"/view?{query}") as response:
                length = response.headers.get("Content-Length")
                return response.status == 200 and length == str(size)

        return await self._link.patiently(ask)

    async def _upload(self, name: str, path: Path) -> None:
        size = path.stat().st_size
        if 0 < await self._limit() < size:
            raise self._too_large(path)
        form = aiohttp.FormData()
        with path.open("rb") as file:
            form.add_field("image", file, filename=name)
            for key, value in {"type": "input", "subfolder": FOLDER, "overwrite": "true"}.items():
                form.add_field(key, value)
            way = self._link.request("POST", "/upload/image", sends=size, data=form)
            async with way as response:
                status = response.status
        if status == 413:
            raise self._too_large(path)
        if status != 200:
            told = f"it answered {status} to an upload of {path.name}"
            if status in _LATER:
                raise Unreachable(self._link.url, told)
            raise Unfit(f"{self._link.url}: {told}; is its disk full? See its log.")

    async def _limit(self) -> int:
        """What it says that a file may have, which its owner may have raised; 0 if nothing."""
        status, features = await self._link.ask("GET", "/features")
        known = status == 200 and isinstance(features, dict)
        return texts.size(features.get("max_upload_size")) if known else 0

    def _too_large(self, path: Path) -> Unfit:
        return Unfit(
            f"{path.name} is larger than {self._link.url} accepts; start ComfyUI there with a "
            "larger --max-upload-size or raise the limit of its proxy, or install ComfyFleet there."
        )
