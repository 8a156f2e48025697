"""The way to one ComfyUI: its address, token, certificate, and what is accepted from it.

No redirect is followed and no proxy of the environment is used: requests go to the address that the
owner gave and nowhere else. Answers are not decompressed, so what is counted is what is kept.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from comfyfleet.errors import InputError, Unreachable

#: JSON of ComfyUI's own: the largest is /object_info, 2 to 20 MB with many packs.
MAX_JSON_BYTES = 128 << 20
#: One event: a preview is below a megabyte, a node's text output may be larger.
_MAX_EVENT_BYTES = 64 << 20

_CONNECT_S = 10.0
#: How often a web socket is asked whether it lives.
_HEARTBEAT_S = 10.0

#: What a broken, refused, stalled or nonsensical connection raises.
BROKEN = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a ComfyUI answers, and how one gets in."""

    url: str
    token: str = field(default="", repr=False)
    #: Certificates to trust in place of the system's (PEM).
    ca: Path | None = None
    #: A Unix socket that leads there, in place of the network.
    socket: Path | None = None


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
        )

    async def close(self) -> None:
        """Drop all connections."""
        await self._session.close()

    @asynccontextmanager
    async def request(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; ``options`` as aiohttp's. Raises Unreachable where no answer comes."""
        address = f"{self.url}{path}"
        try:
            async with self._session.request(
                method, address, allow_redirects=False, **options
            ) as response:
                yield response
        except BROKEN as error:
            raise Unreachable(self.url, _in_words(error)) from error

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
        # As a file: aiohttp writes large bytes in one go, and warns of it.
        file = None if data is None else io.BytesIO(data)
        options: dict[str, Any] = {"data": file} if body is None else {"json": body}
        async with self.request(method, path, **options) as response:
            text = await read_limited(response, max_bytes)
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
            socket = await self._session.ws_connect(
                f"{self.url}{path}",
                max_msg_size=max_bytes if watched else 0,
                heartbeat=_HEARTBEAT_S if watched else None,
            )
        except BROKEN as error:
            raise Unreachable(self.url, _in_words(error)) from error
        async with socket:
            yield socket


async def read_limited(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body. Raises Unreachable beyond ``max_bytes``: whoever sends more is no ComfyUI."""
    found = bytearray()
    async for chunk in response.content.iter_any():
        found += chunk
        if len(found) > max_bytes:
            raise Unreachable(str(response.url.origin()), f"an answer of over {max_bytes} bytes")
    return bytes(found)


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
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"its TLS certificate is not trusted ({error.certificate_error}); if it is yours, "
            "give its certificate as ca"
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known; check the address"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection ({error.os_error}); is ComfyUI running there, with --listen?"
    if isinstance(error, asyncio.TimeoutError):
        return "it did not answer in time; check the address, the network and firewalls"
    return f"the connection broke ({type(error).__name__}: {error})"
