"""What our handlers get and give: one call with its checked fields, and errors with a status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from aiohttp import web

from comfyfleet.api import Given, Route
from comfyfleet.errors import AccessError, ComfyFleetError, InputError

#: How long a body may take to arrive, in seconds, and how much longer for each byte.
BODY_S = 30.0
_BYTE_S = 1 / 65536


class NotFound(InputError):
    """Something was named that is not there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One request to a route of ours that was let in."""

    request: web.Request
    route: Route
    #: The fields of its path, query and JSON body.
    given: Given
    #: May it still be answered? A long answer asks now and then: tokens are revoked.
    is_admitted: Callable[[], bool]

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    async def body(self) -> bytes:
        """What it sends, where that is no JSON of fields. Raises InputError, AccessError."""
        return await body_of(self.request, self.route.max_bytes)

    async def json(self) -> Any:
        """The same as JSON; None if it is none."""
        return parsed(await self.body())


Answer = Callable[[Call], Awaitable[Mapping[str, Any] | web.StreamResponse]]


async def fields_of(request: web.Request, route: Route) -> dict[str, Any]:
    """All that the route reads. Raises InputError, AccessError for a large or slow body."""
    found = route.read_url(request.match_info, request.query)
    if route.body is not None:
        found |= route.read_body(parsed(await body_of(request, route.max_bytes)))
    return found


async def body_of(request: web.Request, max_bytes: int) -> bytes:
    """The whole body. Raises InputError, AccessError (408, 413) if it is slow or large."""
    size = request.content_length or 0
    if size > max_bytes:
        raise _too_large(max_bytes)
    patience_s = BODY_S + size * _BYTE_S
    try:
        return await asyncio.wait_for(_read(request, max_bytes), patience_s)
    except asyncio.TimeoutError:
        raise AccessError(408, f"the body did not arrive within {patience_s:.0f} s.") from None
    except (web.RequestPayloadError, ConnectionResetError) as error:
        raise InputError(f"the body cannot be read: {error}.") from None


def error_answer(error: ComfyFleetError) -> web.Response:
    """An error of ours as status and sentence."""
    headers = {}
    if isinstance(error, AccessError):
        status = error.status
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if error.wait_s:
            headers["Retry-After"] = str(error.wait_s)
    else:
        status = (
            404 if isinstance(error, NotFound) else 400 if isinstance(error, InputError) else 503
        )
    return web.json_response({"error": str(error)}, status=status, headers=headers)


async def _read(request: web.Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > max_bytes:  # its length was not said, or it was compressed
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> AccessError:
    return AccessError(413, f"the body is too large: {max_bytes} bytes are allowed.")


def parsed(body: bytes) -> Any:
    """JSON in UTF-8; None if it is none."""
    try:
        return json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
