"""The models of a ComfyUI that has the extension, by its address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

from comfyfleet.api import BASE
from comfyfleet.api.guest import PIECE_BYTES
from comfyfleet.api.models import BYTES, LISTED, PART, SOURCE
from comfyfleet.client.guest import Guest
from comfyfleet.client.link import Link
from comfyfleet.client.models import Whole
from comfyfleet.errors import Unreachable


class LinkStore:
    """A ``ModelStore`` over a link, which is closed with it."""

    def __init__(self, link: Link) -> None:
        self._link, self._guest = link, Guest(link)

    @property
    def name(self) -> str:
        return self._link.url

    async def has_extension(self) -> bool:
        return await self._guest.hello() is not None

    async def listed(self) -> tuple[bool, list[Mapping[str, Any]]]:
        answer = await self._guest.ask("GET", _below(LISTED.path))
        found = answer.get("models")
        models: list[Mapping[str, Any]] = (
            [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        )
        return answer.get("accepts") is True, models

    async def state(self, whole: Whole) -> Mapping[str, Any]:
        return await self._guest.ask("GET", f"{_below(PART.path)}?{urlencode(asdict(whole))}")

    async def add(self, whole: Whole, start: int, data: bytes) -> Mapping[str, Any]:
        fields = urlencode({**asdict(whole), "start": start})
        return await self._guest.ask("PUT", f"{_below(PART.path)}?{fields}", data=data)

    async def source(self, folder: str, file: str) -> Mapping[str, Any]:
        fields = urlencode({"folder": folder, "file": file})
        return await self._guest.ask("GET", f"{_below(SOURCE.path)}?{fields}")

    async def read(self, folder: str, file: str, start: int) -> bytes:
        fields = urlencode({"folder": folder, "file": file, "start": start})

        async def once() -> bytes:
            path = f"{BASE}{BYTES.path}?{fields}"
            async with self._link.request("GET", path) as response:
                if response.status != 200:
                    told = f"it answered {response.status} for bytes of {file}"
                    raise Unreachable(self._link.url, told)
                return await self._link.read(response, PIECE_BYTES)

        return await self._link.patiently(once)

    async def close(self) -> None:
        await self._link.close()


def _below(path: str) -> str:
    return path.removeprefix("/guest")
