"""The way to one ComfyUI: its address, token, certificate, and what is accepted from it.

No redirect is followed and no proxy of the environment is used: requests go to the address that the
owner gave and nowhere else. Answers are not decompressed, so what is counted is what is kept. With
patience, nothing lasts for ever: neither silence nor an answer that drips.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp.client_exceptions import UnixClientConnectorError

from comfyfleet.client.texts import plain
from comfyfleet.errors import InputError, Unreachable

#: JSON of ComfyUI's own: the largest is /object_info, 2 to 20 MB with many packs.
MAX_JSON_BYTES = 64 << 20
#: One event: a preview is below a megabyte, a node's text output may be larger.
_MAX_EVENT_BYTES = 64 << 20

_CONNECT_S = 10.0
#: How often a web socket is asked whether it lives.
_HEARTBEAT_S = 10.0
#: How long the other side may take to agree that a web socket ends.
_CLOSE_S = 2.0
#: Slower than this, in bytes per second, is no network but somebody who wants us to wait.
_SLOWEST = 16 << 10
#: Between two tries to reach what has gone: soon at first.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_REDIRECTS = (301, 302, 303, 307, 308)

#: What a broken, refused, stalled or nonsensical connection raises.
BROKEN = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a ComfyUI answers, and how one gets in."""

    url: str
    token: str = field(default="", repr=False)
    #: Certificates to trust in place of the system's (PEM).
    ca: Path | None = None
    #: A Unix socket that leads there, in place of the network.
    socket: Path | None = None


async def patiently(work: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Do it again after each break, for so many seconds. Raises what the last try did."""
    deadline = time.monotonic() + patience_s
    for pause_s in itertools.chain(_PAUSES_S, itertools.repeat(_PAUSES_S[-1])):
        try:
            return await work()
        except Unreachable:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise
            await asyncio.sleep(min(pause_s, left_s))
    raise AssertionError("the pauses have no end")


class Link:
    """HTTP to one endpoint. Made, used and closed on one event loop."""

    def __init__(self, endpoint: Endpoint, *, patience_s: float | None = None) -> None:
        """``patience_s``: how long nothing may come while an answer is awaited; None: for ever.

        Raises InputError if the certificates cannot be read.
        """
        self.url = endpoint.url.rstrip("/")
        self.patience_s = patience_s
        headers = {"Accept-Encoding": "identity"}
        if endpoint.token:
            headers["Authorization"] = f"Bearer {endpoint.token}"
        self._session = aiohttp.ClientSession(
            connector=_connector(endpoint),
            headers=headers,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_S, sock_read=patience_s
            ),
            auto_decompress=False,
            read_bufsize=1 << 20,
            trace_configs=[_no_redirects()],
        )

    async def close(self) -> None:
        """Drop all connections."""
        await self._session.close()

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """``patiently``, for as long as this link's patience lasts."""
        return await patiently(work, self.patience_s or 0.0)

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, sends: int = 0, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, which ``sends`` so many bytes; ``options`` as aiohttp's.

        Raises Unreachable where no answer comes, or one that leads elsewhere.
        """
        asked = self._session.request(method, f"{self.url}{path}", allow_redirects=False, **options)
        try:
            async with await asyncio.wait_for(asked, self._limit_s(sends)) as response:
                if response.status in _REDIRECTS:
                    raise _Redirected(response.headers.get("Location", ""))
                yield response
        except BROKEN as error:
            raise Unreachable(self.url, _in_words(error)) from error

    def _limit_s(self, num_bytes: int) -> float | None:
        """How long so many bytes may take."""
        return None if self.patience_s is None else self.patience_s + num_bytes / _SLOWEST

    async def chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Unreachable for one that drips."""
        total, begun = 0, time.monotonic()
        async for chunk in response.content.iter_any():
            total += len(chunk)
            yield chunk
            limit_s = self._limit_s(total)
            if limit_s is not None and time.monotonic() - begun > limit_s:
                raise Unreachable(self.url, f"it sent {total} bytes in {limit_s:.0f} s")

    async def read(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        """The body. Raises Unreachable beyond ``max_bytes``, and for one that drips."""
        found = bytearray()
        async for chunk in self.chunks(response):
            found += chunk
            if len(found) > max_bytes:
                raise Unreachable(self.url, f"it sends an answer of over {max_bytes} bytes")
        return bytes(found)

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        data: bytes | None = None,
        max_bytes: int = MAX_JSON_BYTES,
    ) -> tuple[int, Any]:
        """Send JSON, bytes or nothing; status and JSON of the answer, None if it is no JSON."""
        sent = data if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        # As a file: aiohttp writes large bytes in one go, and warns of it.
        file = None if sent is None else io.BytesIO(sent)
        way = self.request(method, path, sends=len(sent or b""), data=file, headers=headers)
        async with way as response:
            text = await self.read(response, max_bytes)
        try:
            return response.status, json.loads(text) if text else None
        except (ValueError, RecursionError):
            return response.status, None

    @asynccontextmanager
    async def socket(
        self, path: str, *, max_bytes: int = _MAX_EVENT_BYTES
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse[Any]]:
        """A web socket, of messages up to ``max_bytes``. Raises Unreachable if there is none."""
        watched = self.patience_s is not None
        try:
            connecting = self._session.ws_connect(
                f"{self.url}{path}",
                max_msg_size=max_bytes if watched else 0,
                heartbeat=_HEARTBEAT_S if watched else None,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            )
            socket = await asyncio.wait_for(connecting, self._limit_s(0))
        except BROKEN as error:
            raise Unreachable(self.url, _in_words(error)) from error
        async with socket:
            yield socket


class _Redirected(aiohttp.ClientError):
    """We are sent on to an address that the owner did not give."""


def _no_redirects() -> aiohttp.TraceConfig:
    """aiohttp follows redirects of web sockets, and has no option against it."""

    async def refuse(_session: Any, _context: Any, told: Any) -> None:
        raise _Redirected(told.response.headers.get("Location", ""))

    found = aiohttp.TraceConfig()
    found.on_request_redirect.append(refuse)
    return found


def _connector(endpoint: Endpoint) -> aiohttp.BaseConnector:
    if endpoint.socket is not None:
        return aiohttp.UnixConnector(path=str(endpoint.socket))
    return aiohttp.TCPConnector(ssl=_context(endpoint.ca) if endpoint.ca else True)


def _context(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"ca {str(ca)!r} cannot be read as certificates ({error}); give a PEM file."
        ) from None


def _in_words(error: BaseException) -> str:
    """What went wrong, and what its owner can do."""
    if isinstance(error, _Redirected):
        return (
            f"it sends us on to {plain(str(error), 200)!r}, which is not followed; if that is your "
            "ComfyUI, give its address"
        )
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"its TLS certificate is not trusted ({error.certificate_error}); if it is yours, "
            "give its certificate as ca"
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known; check the address"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"no TLS ({error.os_error}); if it has none, give its address with http://"
    if isinstance(error, UnixClientConnectorError):
        return "its line is broken; `comfyfleet join` makes it again for as long as it runs there"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection ({error.os_error}); is ComfyUI running there, with --listen?"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection without an answer; is ComfyUI running there?"
    if isinstance(error, asyncio.TimeoutError):
        return "it did not answer in time; check the address, the network and firewalls"
    return f"the connection broke ({type(error).__name__}: {plain(str(error), 500)})"
