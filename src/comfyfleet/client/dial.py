"""A worker's side of a line to a master that cannot reach it; see ``client.mux``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

from comfyfleet.client.link import Endpoint, Link
from comfyfleet.client.mux import MAX_FRAME_BYTES, Connect, Mux
from comfyfleet.errors import InputError, Unreachable

#: Below the master's address.
PATH = "/comfyfleet/v1/join?worker="
#: Before a lost line is made again; the last for ever.
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0)

Tell = Callable[[str], None]


async def serve(master: Endpoint, name: str, own: Endpoint, tell: Tell) -> None:
    """Let a master use the ComfyUI ``own``, until cancelled; lost lines are made again.

    Raises InputError if the master refuses.
    """
    failures, joined = 0, False

    def told(text: str) -> None:
        nonlocal joined
        joined = joined or text.startswith("joined")
        tell(text)

    while True:
        try:
            await _line(master, name, own, told, again=joined)
            failures = 0
            tell("the line has ended; dialling again")
        except Unreachable as error:
            tell(f"{error} Trying again.")
        await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
        failures += 1


async def _line(master: Endpoint, name: str, own: Endpoint, tell: Tell, *, again: bool) -> None:
    link = Link(master, patience_s=60.0)
    try:
        await _require_admission(link, name, again=again)
        way = link.socket(PATH + quote(name), max_bytes=MAX_FRAME_BYTES + 1024)
        async with way as socket:
            await socket.send_json({"token": own.token})
            tell(f"joined {master.url} as {name}")
            await _feed(socket, Mux(socket.send_bytes, _connector(own.url)))
    finally:
        await link.close()


async def _require_admission(link: Link, name: str, *, again: bool) -> None:
    """Ask without a web socket first: a refusal then says why. Raises InputError."""
    status, answer = await link.ask("GET", PATH + quote(name))
    said = answer.get("error", "") if isinstance(answer, dict) else ""
    if status == 400 and "web socket" in said:
        return
    # A proxy between us, or the line before this one, which is not yet known to have ended.
    if status >= 500 or status == 429 or (status == 409 and again):
        raise Unreachable(link.url, said or f"it answers {status}")
    if status == 404 and not said:
        raise InputError(f"{link.url} has no ComfyFleet, or an old one; install it there.")
    raise InputError(f"{link.url} refuses: {said or status}")


async def _feed(socket: aiohttp.ClientWebSocketResponse[Any], mux: Mux) -> None:
    try:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                await mux.feed(message.data)
    except (aiohttp.ClientError, OSError):
        return
    finally:
        await mux.close()


def _connector(own_url: str) -> Connect:
    parts = urlsplit(own_url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80

    return lambda: asyncio.open_connection(host, port)
