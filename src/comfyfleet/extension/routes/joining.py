"""Workers that dial in: a web socket from a machine that nobody can reach, as a way to its ComfyUI.

The way ends in a Unix socket in a folder that only this user may enter; the fleet's worker speaks
HTTP through it as to any other address. See ``client.mux``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from comfyfleet.api import routes
from comfyfleet.client.mux import MAX_FRAME_BYTES, Mux
from comfyfleet.config import TAKEN, Remote
from comfyfleet.errors import AccessError, InputError
from comfyfleet.extension.master import master
from comfyfleet.extension.routes.access import serve
from comfyfleet.extension.routes.answers import Call, parsed
from comfyfleet.fleet.registry import door_for

logger = logging.getLogger(__name__)

#: How often a worker is asked whether its line lives.
_HEARTBEAT_S = 10.0
#: How long it may take to agree that the line ends.
_CLOSE_S = 2.0
#: How long it may take to say who it is.
_GREETING_S = 15.0
#: An HTTP client wants a name, and so do sentences about the worker; nothing is looked up.
_URL = "http://{}.joined"

#: Each is a process here, and a place in the owner's list.
_MAX_JOINED = 32
#: How often it is looked whether a line's token is still valid.
_CHECK_S = 5.0

#: Who has a line now.
_joined: set[str] = set()


def install() -> None:
    """Add the route; before ComfyUI's server starts."""
    serve(routes.JOIN, _join)


async def _join(call: Call) -> web.StreamResponse:
    name: str = call["worker"]
    socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES + 1024)
    if TAKEN.fullmatch(name):
        raise InputError(f"{name!r} is kept for workers of this machine; choose another --name.")
    fixed = await asyncio.to_thread(master().fixed_names)
    if name in _joined or name in fixed:
        raise AccessError(409, f"a worker called {name!r} is there; choose another --name.")
    if len(_joined) >= _MAX_JOINED:
        raise AccessError(429, f"{_MAX_JOINED} workers have dialled in; no more are taken.")
    if not socket.can_prepare(call.request):
        raise InputError("this is a web socket; use `comfyfleet join URL`.")
    _joined.add(name)
    try:
        await socket.prepare(call.request)
        await _serve(socket, call, name)
    finally:
        _joined.discard(name)
        master().leave(name)
        logger.info("worker %s has left", name)
        await _end(socket, call)
    return socket


async def _serve(socket: web.WebSocketResponse, call: Call, name: str) -> None:
    token = await _token_of(socket)
    if token is None:
        await _end(socket, call, b"say first who you are")
        return
    mux = Mux(socket.send_bytes)
    async with _door(mux, name) as path:
        master().join(Remote(name=name, url=_URL.format(name), token=token, socket=path))
        logger.info("worker %s has joined", name)
        watch = asyncio.ensure_future(_until_revoked(socket, call))
        try:
            await _feed(socket, mux, call)
        finally:
            watch.cancel()


async def _token_of(socket: web.WebSocketResponse) -> str | None:
    """The token for the ComfyUI that is offered, empty if it needs none; None for nonsense."""
    try:
        greeting = parsed((await socket.receive_str(timeout=_GREETING_S)).encode())
    except (TypeError, ValueError, asyncio.TimeoutError):
        return None
    token = greeting.get("token") if isinstance(greeting, dict) else None
    return token if isinstance(token, str) and token.isascii() and token.isprintable() else None


async def _until_revoked(socket: web.WebSocketResponse, call: Call) -> None:
    while call.is_admitted():
        await asyncio.sleep(_CHECK_S)
    await _end(socket, call, b"the token was revoked")


async def _end(socket: web.WebSocketResponse, call: Call, why: bytes = b"") -> None:
    """Also of somebody who reads nothing, so that no farewell arrives."""
    with suppress(asyncio.TimeoutError, ConnectionError):
        await asyncio.wait_for(socket.close(message=why), _CLOSE_S)
    if call.request.transport is not None:
        call.request.transport.abort()


async def _feed(socket: web.WebSocketResponse, mux: Mux, call: Call) -> None:
    """Take in frames for as long as the line lives, and its token."""
    with suppress(ConnectionError, InputError):  # nonsense ends the line, as a break does
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                break
            await mux.feed(message.data)


@asynccontextmanager
async def _door(mux: Mux, name: str) -> AsyncIterator[Path]:
    path = door_for(name)
    path.unlink(missing_ok=True)
    server: Any = await asyncio.start_unix_server(mux.accept, path)
    try:
        yield path
    finally:
        server.close()
        await mux.close()
        path.unlink(missing_ok=True)
