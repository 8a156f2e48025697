"""A door before a ComfyUI, which asks for no password itself: only who holds a token gets in.

What is let in goes on as it came: path, headers but those of one connection, bodies as they arrive,
web sockets message by message. Nothing is kept in memory but what is on its way.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp
from aiohttp import web
from yarl import URL

from comfyfleet.api import BASE, Access
from comfyfleet.errors import AccessError, ComfyFleetError, FleetError
from comfyfleet.fleet.doorway import LIMITS, Doorway, Limits
from comfyfleet.fleet.gate import Caller, Gate
from comfyfleet.fleet.tokens import Tokens

#: The one route without a token: it asks for the code that the owner was just shown.
_PAIR = (f"{BASE}/pair", f"/api{BASE}/pair")

#: Headers of one connection (RFC 9110, 7.6.1), and those of a web socket's handshake.
_OF_ONE_CONNECTION = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade", "expect"}
)
_OF_HANDSHAKE = frozenset(
    f"sec-websocket-{name}" for name in ("key", "version", "extensions", "protocol", "accept")
)
_CONNECT_S = 10.0
#: What is under way when it closes may still end; open web sockets never do.
_CLOSE_S = 1.0
#: How often it is looked whether the token of an open web socket is still valid.
_CHECK_S = 5.0

_Socket: TypeAlias = "web.WebSocketResponse | aiohttp.ClientWebSocketResponse[Any]"
_BROKEN = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a proxy listens. ``port`` 0: a free one."""

    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None


class Proxy:
    """Used on one event loop; between ``start`` and ``close`` it listens."""

    def __init__(
        self,
        comfyui: str,
        tokens: Tokens,
        *,
        check_s: float = _CHECK_S,
        limits: Limits = LIMITS,
    ) -> None:
        """``comfyui``: its address. ``tokens``: who holds a token; revoked ones end within
        ``check_s`` seconds, also on open web sockets."""
        self._comfyui = comfyui.rstrip("/")
        self._gate = Gate(tokens)
        self._check_s = check_s
        self._limits = limits

    async def start(self, listening: Listening) -> int:
        """Listen; the port. Raises FleetError if that is not possible."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0),
        )
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app,
            auto_decompress=False,
            access_log=None,
            shutdown_timeout=_CLOSE_S,
            keepalive_timeout=self._limits.idle_s,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._doorway = Doorway(self._runner.server, listening.tls, self._limits)
        try:
            return await self._doorway.open(listening.host, listening.port)
        except FleetError:
            await self.close()
            raise

    async def close(self) -> None:
        """Drop all connections."""
        await self._doorway.close()
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            if self._admit(request):
                self._stay(request)
        except ComfyFleetError as error:
            return _refusal(error)
        try:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._pass_socket(request)
            return await self._pass(request)
        except _BROKEN as error:
            return _answer(502, f"ComfyUI does not answer: {type(error).__name__}.")

    def _admit(self, request: web.Request) -> bool:
        """Does it show a token, rather than ask for a route that needs none?

        Raises AccessError for who holds no token, FleetError if the tokens cannot be used.
        """
        if not request.raw_path.startswith("/"):  # it would be taken as a part of the address
            raise AccessError(400, "the path begins with no slash.")
        if request.method == "POST" and request.raw_path in _PAIR:
            return False
        if "Authorization" not in request.headers:
            raise AccessError(401, "this needs a token, as `Authorization: Bearer TOKEN`.")
        caller = Caller(
            scheme=request.scheme, address=request.remote or "", headers=request.headers
        )
        self._gate.admit(caller, Access.TOKEN)
        return True

    def _stay(self, request: web.Request) -> None:
        """Its connection is no stranger's any more. Raises AccessError if there is no room."""
        if not self._doorway.know(request.protocol):
            raise AccessError(
                503, f"{self._limits.holders} connections are open here; close some.", wait_s=5
            )

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            self._address(request),
            headers=_passed_on(request),
            data=request.content if request.can_read_body else None,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as found:
            answer = web.StreamResponse(
                status=found.status,
                reason=found.reason,
                headers=_kept(found.headers, _OF_ONE_CONNECTION),
            )
            await answer.prepare(request)
            try:
                async for chunk in found.content.iter_any():
                    await answer.write(chunk)
                await answer.write_eof()
            except _BROKEN:  # one side broke off: so does the other, for all to see
                answer.force_close()
                if request.transport is not None:
                    request.transport.abort()
            return answer

    async def _pass_socket(self, request: web.Request) -> web.StreamResponse:
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        protocols = [each.strip() for each in offered.split(",") if each.strip()]
        async with self._session.ws_connect(
            self._address(request),
            headers=_passed_on(request, _OF_HANDSHAKE),
            protocols=protocols,
            max_msg_size=0,
            autoping=False,
        ) as there:
            chosen = [there.protocol] if there.protocol else []
            here = web.WebSocketResponse(
                protocols=chosen, max_msg_size=0, autoping=False, compress=False
            )
            await here.prepare(request)
            await self._join(request, here, there)
            return here

    async def _join(self, request: web.Request, here: _Socket, there: _Socket) -> None:
        """Until one side ends, or the token is no longer valid."""
        tasks = [
            asyncio.ensure_future(task)
            for task in (_pump(here, there), _pump(there, here), self._until_revoked(request))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            code = there.close_code or here.close_code or aiohttp.WSCloseCode.OK
            with suppress(*_BROKEN):
                await asyncio.gather(here.close(code=_sendable(code)), there.close())

    async def _until_revoked(self, request: web.Request) -> None:
        while True:
            await asyncio.sleep(self._check_s)
            try:
                self._admit(request)
            except ComfyFleetError:
                return

    def _address(self, request: web.Request) -> URL:
        return URL(self._comfyui + request.raw_path, encoded=True)


async def _pump(source: _Socket, target: _Socket) -> None:
    """Messages, and the questions whether somebody lives, as they come."""
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await target.send_bytes(message.data)
        elif message.type is aiohttp.WSMsgType.PING:
            await target.ping(message.data)
        elif message.type is aiohttp.WSMsgType.PONG:
            await target.pong(message.data)


def _sendable(code: int) -> int:
    """1005, 1006 and 1015 say how it ended and are never sent."""
    return aiohttp.WSCloseCode.GOING_AWAY if code in (1005, 1006, 1015) else code


def _passed_on(
    request: web.Request, dropped: frozenset[str] = frozenset()
) -> list[tuple[str, str]]:
    """What ComfyUI gets: the client's headers, Host among them, and that a proxy stands between."""
    forwarded = {"x-forwarded-for", "x-forwarded-proto"}
    headers = _kept(request.headers, _OF_ONE_CONNECTION | dropped | forwarded)
    own = [("X-Forwarded-For", request.remote or "unknown"), ("X-Forwarded-Proto", request.scheme)]
    return headers + own


def _kept(headers: Mapping[str, str], dropped: frozenset[str]) -> list[tuple[str, str]]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return [pair for pair in headers.items() if pair[0].lower() not in dropped | named]


def _refusal(error: ComfyFleetError) -> web.Response:
    if not isinstance(error, AccessError):
        return _answer(503, str(error))
    answer = _answer(error.status, str(error))
    if error.status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if error.wait_s:
        answer.headers["Retry-After"] = str(error.wait_s)
    return answer


def _answer(status: int, sentence: str) -> web.Response:
    answer = web.json_response({"error": sentence}, status=status)
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Cache-Control"] = "no-store"
    answer.force_close()  # what is left of a refused request is not read
    return answer
