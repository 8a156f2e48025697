"""The routes of this extension on another machine's ComfyUI: typed values there and back.

All bytes travel in pieces, several at a time, and after a break only the pieces that were on their
way are sent again. What goes there is named by its content (SHA-256), so nothing is sent twice. See
``extension.routes.guest`` for the other side.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comfyfleet import api
from comfyfleet.api.guest import PIECE_BYTES, PROTOCOL
from comfyfleet.client import texts
from comfyfleet.client.background import in_background
from comfyfleet.client.codec import from_json, layouts, to_json
from comfyfleet.client.encoding import ALIGNED, FILTERED, RAW, Bytes, Layout, decompress
from comfyfleet.client.files import read_piece
from comfyfleet.client.limits import room
from comfyfleet.client.link import Link
from comfyfleet.client.texts import plain
from comfyfleet.errors import InputError, Unfit, Unreachable
from comfyfleet.work import Packed

BASE = f"{api.BASE}/guest"

#: Tensors of one result: more than any node returns.
_MAX_BUFFERS = 100_000
#: Bytes of a piece, and pieces at once: enough to fill a link while pieces are compressed, and to
#: hide that each one is asked for. Compressed ones are short, as a slow link waits for the first to
#: be compressed, and we for the last to be unpacked.
_PIECES = {RAW: (PIECE_BYTES, 4), FILTERED: ((1 << 20) // ALIGNED * ALIGNED, 8)}
#: A first piece shows how fast the link is; it has whole pixels, and whole pages of memory.
_PROBE_BYTES = 63 << 12
#: Bytes per second below which compression is faster than the link.
_SLOW = 40e6
#: A link that takes longer for the first piece is slow; else this machine may have been busy.
_SURELY_SLOW_S = 0.05


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes ``start`` to ``stop`` of buffer number ``buffer``."""

    buffer: int
    start: int
    stop: int


class Guest:
    """Values to and from one ComfyUI that has the extension."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def hello(self) -> dict[str, Any] | None:
        """What the extension there says of itself; None if it is not there.

        Raises InputError if it does not let us in, or is of another age.
        """
        url = self._link.url
        status, answer = await self._link.ask("GET", f"{BASE}/hello")
        answer = answer if isinstance(answer, dict) else {}
        if status in (401, 403):
            said = plain(answer.get("error"), 500)
            raise InputError(f"{url}: {said or 'it does not let us in'}")
        if status != 200 or "comfyfleet" not in answer:
            return None
        if answer.get("protocol") != PROTOCOL:
            version = plain(answer["comfyfleet"], 50)
            raise InputError(
                f"{url} has ComfyFleet {version}, which this one does not understand; "
                "install the same version on both machines."
            )
        return answer

    async def model_sizes(self) -> dict[str, int]:
        """Bytes of the models there, by their names, as far as it says.

        Of those that have one name in several folders the smallest: which is meant is not known.
        """
        status, answer = await self._link.ask("GET", f"{BASE}/models")
        listed = answer.get("models") if status == 200 and isinstance(answer, dict) else None
        found: dict[str, int] = {}
        for each in listed if isinstance(listed, list) else ():
            if isinstance(each, dict) and isinstance(name := each.get("file"), str):
                size = texts.size(each.get("size"))
                found[name] = min(size, found.get(name, size))
        return found

    async def ship(self, prompt_id: str, values: Mapping[str, Packed]) -> None:
        """Make values known there, for as long as this prompt is."""
        described = {}
        for digest, packed in values.items():
            names = [await self._put(buffer) for buffer in packed.buffers]
            described[digest] = {"skeleton": to_json(packed), "buffers": names}
        await self.ask("PUT", f"/prompts/{prompt_id}", described)

    async def fetch(self, prompt_id: str) -> Packed | None:
        """What the prompt's return node left there; None if it left nothing."""
        answer = await self.ask("GET", f"/prompts/{prompt_id}")
        if answer.get("skeleton") is None:
            return None
        sizes = _sizes_in(answer, self._link.url)
        skeleton = from_json(answer["skeleton"], sizes)
        known = dict(layouts(skeleton))
        _require_whole(known, sizes, self._link.url)
        buffers = [np.empty(size, np.uint8) for size in sizes]
        here, encoding = [0] * len(sizes), RAW
        if max(sizes, default=0) > 2 * _PROBE_BYTES:
            largest = sizes.index(max(sizes))
            encoding, here[largest] = await self._probe(prompt_id, largest, buffers)
        length, at_once = _PIECES[encoding]
        work = (
            self._get(prompt_id, each, encoding, known.get(each.buffer, Layout()), buffers)
            for each in _pieces(sizes, here, length)
        )
        await _at_once(work, at_once)
        return Packed(skeleton, buffers)

    async def _probe(self, prompt_id: str, buffer: int, buffers: list[Bytes]) -> tuple[str, int]:
        """How the rest shall come, and how many bytes of the buffer are here."""
        encoding, here = FILTERED, 0
        for _ in range(2):
            begun = time.monotonic()
            piece = _Piece(buffer, here, here + _PROBE_BYTES)
            await self._get(prompt_id, piece, RAW, Layout(), buffers)
            seconds, here = time.monotonic() - begun, piece.stop
            if seconds * _SLOW < _PROBE_BYTES:
                encoding = RAW
            if encoding == RAW or seconds > _SURELY_SLOW_S:
                break
        return encoding, here

    async def forget(self, prompt_id: str) -> None:
        """Let go of what is kept there for a prompt; it forgets by itself what it is not told."""
        with suppress(Unreachable):
            await self._link.ask("DELETE", f"{BASE}/prompts/{prompt_id}")

    async def _put(self, buffer: Bytes) -> str:
        """Send a buffer, or what of it is not there; its name."""
        data: memoryview = memoryview(buffer)  # type: ignore[arg-type]
        name = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())

        async def piece(start: int) -> bytes:
            return bytes(data[start : start + PIECE_BYTES])

        await self._fill(f"/blobs/{name}?size={len(data)}", len(data), piece)
        return name

    async def send_file(self, name: str, path: Path) -> None:
        """Send an input file, or what of it is not there, under this name of its content.

        Raises Unfit if it cannot be kept there.
        """

        async def piece(start: int) -> bytes:
            found = await in_background(read_piece, path, start)
            if not found:
                raise InputError(f"{path} became shorter while it was sent; run it again.")
            return found

        size = path.stat().st_size
        try:
            await self._fill(f"/inputs/{name}?size={size}", size, piece)
        except InputError as error:
            raise Unfit(str(error)) from None

    async def _fill(self, path: str, size: int, piece: Callable[[int], Awaitable[bytes]]) -> None:
        """Send the bytes that are not there; ``piece`` gives those from a place on."""
        there = (await self.ask("GET", path)).get("start")
        while isinstance(there, int) and 0 <= there < size:
            before, data = there, await piece(there)
            there = (await self.ask("PUT", f"{path}&start={there}", data=data)).get("start")
            if isinstance(there, int) and there <= before:
                raise Unreachable(self._link.url, f"it keeps nothing of what is sent: {there}")
        if there != size:
            raise Unreachable(self._link.url, f"it has {there} of {size} bytes that were sent")

    async def _get(
        self, prompt_id: str, piece: _Piece, encoding: str, layout: Layout, buffers: list[Bytes]
    ) -> None:
        """Put a piece into its place."""
        path = f"{BASE}/prompts/{prompt_id}/{piece.buffer}"
        query = f"?start={piece.start}&stop={piece.stop}&encoding={encoding}"
        place = buffers[piece.buffer][piece.start : piece.stop]
        if encoding == RAW:
            await self._link.patiently(lambda: self._read_raw(path + query, place))
            return
        limit = len(place) + len(place) // 8 + 1024
        data = await self._link.patiently(lambda: self._read(path + query, limit))
        place[:] = await asyncio.to_thread(decompress, data, layout, len(place))

    async def _read(self, path: str, max_bytes: int) -> bytes:
        async with self._link.request("GET", path) as response:
            self._require_result(response.status)
            return await self._link.read(response, max_bytes)

    async def _read_raw(self, path: str, place: Bytes) -> None:
        """Straight into its place: results are large, and each copy of them takes time."""
        view: memoryview = memoryview(place)  # type: ignore[arg-type]
        start = 0
        async with self._link.request("GET", path) as response:
            self._require_result(response.status)
            async for chunk in self._link.chunks(response):
                if start + len(chunk) > len(view):
                    raise Unreachable(self._link.url, "it sent more than it announced")
                view[start : start + len(chunk)] = chunk
                start += len(chunk)
        if start != len(view):
            raise Unreachable(self._link.url, f"{start} bytes where {len(view)} were announced")

    def _require_result(self, status: int) -> None:
        """Raises Unreachable for a proxy's hiccup, InputError for a refusal."""
        if status >= 500:
            raise Unreachable(self._link.url, f"it answered {status} for a result")
        if status != 200:
            raise InputError(f"{self._link.url} answered {status} for a result.")

    async def ask(
        self, method: str, path: str, body: Any = None, data: bytes | None = None
    ) -> dict[str, Any]:
        """One call to a route of ours, again after each break for as long as the patience lasts.

        Raises InputError with what was refused (Unfit if there is no room for it there),
        Unreachable if there is no answer.
        """

        async def once() -> tuple[int, Any]:
            status, answer = await self._link.ask(method, BASE + path, body, data=data)
            if status >= 500 and not isinstance(answer, dict):  # a proxy's, and no word of ours
                raise Unreachable(self._link.url, f"it answered {status}")
            return status, answer

        status, answer = await self._link.patiently(once)
        if status == 413:  # of a proxy, as ours allow a piece
            told = "something before it takes no request of this size"
            raise Unfit(f"{self._link.url}: {told}; raise the limit of its proxy.")
        if not isinstance(answer, dict):
            raise Unreachable(self._link.url, f"it answered {status} and no JSON to {path}")
        if status != 200:
            told = f"{self._link.url}: {plain(answer.get('error'), 500) or status}"
            raise Unfit(told) if status == 503 else InputError(told)  # 503: its disk is full
        return answer


def _sizes_in(answer: Mapping[str, Any], url: str) -> list[int]:
    sizes = answer.get("sizes")
    if not isinstance(sizes, list) or any(type(size) is not int or size < 0 for size in sizes):
        raise Unreachable(url, "it sent a result without sizes")
    if len(sizes) > _MAX_BUFFERS or sum(sizes) > room():
        told = f"{sum(sizes)} bytes in {len(sizes)} parts"
        raise Unfit(f"{url} announced a result of {told}, for which there is no memory here")
    return sizes


def _require_whole(known: Mapping[int, Layout], sizes: list[int], url: str) -> None:
    """Raises Unreachable unless each buffer belongs to a tensor."""
    if set(known) != set(range(len(sizes))):
        raise Unreachable(url, f"it sent {len(sizes)} buffers for {len(known)} tensors")


def _pieces(sizes: list[int], here: list[int], length: int) -> Iterator[_Piece]:
    """All bytes of all buffers but those that are here."""
    for buffer, (size, begun) in enumerate(zip(sizes, here, strict=True)):
        for start in range(begun, size, length):
            yield _Piece(buffer, start, min(size, start + length))


async def _at_once(work: Iterable[Awaitable[None]], number: int) -> None:
    """So many at a time; the first error ends all."""
    slots = asyncio.Semaphore(number)

    async def one(each: Awaitable[None]) -> None:
        async with slots:
            await each

    tasks = [asyncio.ensure_future(one(each)) for each in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
