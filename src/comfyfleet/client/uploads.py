"""Input files for another machine's ComfyUI, by its own routes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp

from comfyfleet.client.files import FOLDER, Files
from comfyfleet.client.link import Link
from comfyfleet.errors import InputError, Unreachable
from comfyfleet.work import Prompt


class Uploads:
    """Sends what prompts name. ``folders``: ComfyUI's input, output and temp folders here."""

    def __init__(self, link: Link, folders: Mapping[str, Path]) -> None:
        self._link = link
        self._files = Files(folders)

    async def send(self, prompt: Prompt) -> tuple[dict[str, Mapping[str, Any]], frozenset[str]]:
        """Send the files that are not there; the prompt with their new names, and those names.

        Raises Unreachable if they do not arrive, InputError if they are refused.
        """
        parcel = await self._files.pack(prompt)
        for name, path in parcel.files.items():
            await self._send(name, path)
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
        form = aiohttp.FormData()
        with path.open("rb") as file:
            form.add_field("image", file, filename=name)
            for key, value in {"type": "input", "subfolder": FOLDER, "overwrite": "true"}.items():
                form.add_field(key, value)
            way = self._link.request("POST", "/upload/image", sends=path.stat().st_size, data=form)
            async with way as response:
                status = response.status
        if status == 413:
            raise InputError(
                f"{path.name} is larger than {self._link.url} accepts; start ComfyUI there with a "
                "larger --max-upload-size."
            )
        if status != 200:
            told = (
                f"it answered {status} to an upload of {path.name}; is its disk full? See its log"
            )
            raise Unreachable(self._link.url, told)
