"""Strangers in the door before a ComfyUI: how many, for how long, and whom they keep out."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from comfyfleet.cli.serve import _tls
from comfyfleet.errors import FleetError
from comfyfleet.fleet.doorway import Doorway, Limits
from comfyfleet.fleet.proxy import Listening, Proxy
from comfyfleet.fleet.tokens import TOKENS_FILE, Tokens

#: For what has to happen, on a machine that is busy with other things.
WAIT_S = 60.0


@dataclass
class Door:
    """A proxy before something that answers as ComfyUI does."""

    port: int
    token: str
    stack: AsyncExitStack
    tls: bool = False

    async def enter(self, origin: str = "127.0.0.1") -> asyncio.StreamReader:
        """A connection that says nothing."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(origin, 0)
        )
        self.stack.callback(writer.close)
        return reader

    async def ask(self, session: aiohttp.ClientSession) -> int:
        scheme = "https" if self.tls else "http"
        address = f"{scheme}://127.0.0.1:{self.port}/queue"
        async with session.get(address, ssl=False) as answer:
            await answer.read()
            return answer.status

    async def session(self) -> aiohttp.ClientSession:
        """Of somebody with a token, who has one connection."""
        headers = {"Authorization": f"Bearer {self.token}"}
        connector = aiohttp.TCPConnector(limit=1)
        made = aiohttp.ClientSession(headers=headers, connector=connector)
        return await self.stack.enter_async_context(made)


@asynccontextmanager
async def door_of(folder: Path, limits: Limits, tls: bool = False) -> AsyncIterator[Door]:
    async def queue(_request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", queue)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    tokens = Tokens(folder / TOKENS_FILE)
    token = tokens.issue("guest")
    proxy = Proxy(f"http://127.0.0.1:{runner.addresses[0][1]}", tokens, limits=limits)
    context = _tls(*certificate(folder)) if tls else None
    port = await proxy.start(Listening(tls=context))
    async with AsyncExitStack() as stack:
        yield Door(port, token, stack, tls)
    await proxy.close()
    await runner.cleanup()


def certificate(folder: Path) -> tuple[Path, Path]:
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-out", str(cert), "-keyout", str(key)], check=True, capture_output=True)
    return cert, key


def at_a_door(
    folder: Path, limits: Limits, check: Callable[[Door], Awaitable[None]], tls: bool = False
) -> None:
    async def run() -> None:
        async with door_of(folder, limits, tls) as door:
            await check(door)

    asyncio.run(run())


async def is_shut(visitor: asyncio.StreamReader) -> None:
    """Waits until the other side has ended it."""
    try:
        await asyncio.wait_for(visitor.read(), WAIT_S)
    except ConnectionError:
        return  # it was told by TCP that it has no business there


@pytest.mark.parametrize("tls", [False, True], ids=["http", "TLS that does not begin"])
def test_strangers_are_few_and_keep_nobody_with_a_token_out(tmp_path: Path, tls: bool) -> None:
    async def check(door: Door) -> None:
        known = await door.session()
        assert await door.ask(known) == 200
        visitors = [await door.enter() for _ in range(30)]
        another = await door.session()
        assert await door.ask(another) == 200, "it comes where all places are taken"
        await asyncio.gather(*map(is_shut, visitors[:26]))
        assert await door.ask(known) == 200, "on the connection that it had"

    at_a_door(tmp_path, Limits(strangers=4, stranger_s=WAIT_S * 10), check, tls)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "TLS that does not begin"])
def test_strangers_do_not_stay(tmp_path: Path, tls: bool) -> None:
    async def check(door: Door) -> None:
        visitors = [await door.enter() for _ in range(3)]
        await asyncio.gather(*map(is_shut, visitors))

    at_a_door(tmp_path, Limits(stranger_s=0.2), check, tls)


def test_who_has_shown_a_token_stays(tmp_path: Path) -> None:
    """And on the very connection: one socket, which outlives the time of a stranger."""

    async def check(door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        door.stack.callback(writer.close)
        head = f"GET /queue HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {door.token}\r\n\r\n"

        async def ask() -> bytes:
            writer.write(head.encode())
            return await asyncio.wait_for(reader.readuntil(b"{}"), WAIT_S)

        assert (await ask()).startswith(b"HTTP/1.1 200")
        await is_shut(await door.enter())  # a stranger that came later has gone
        assert (await ask()).startswith(b"HTTP/1.1 200")

    at_a_door(tmp_path, Limits(stranger_s=10.0), check)


def test_who_has_shown_a_token_and_asks_for_nothing_more_keeps_no_place(tmp_path: Path) -> None:
    """It may have been cut off without a word."""

    async def check(door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        door.stack.callback(writer.close)
        head = f"GET /queue HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {door.token}\r\n\r\n"
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readuntil(b"{}"), WAIT_S)).startswith(b"HTTP/1.1 200")
        await is_shut(reader)
        assert await door.ask(await door.session()) == 200

    at_a_door(tmp_path, Limits(holders=1, idle_s=0.1), check)


def test_a_flood_from_one_address_costs_no_other_its_place(tmp_path: Path) -> None:
    async def check(door: Door) -> None:
        other = await door.enter("127.0.0.2")
        visitors = [await door.enter() for _ in range(20)]
        await asyncio.gather(*map(is_shut, visitors[:17]))
        assert not other.at_eof()

    at_a_door(tmp_path, Limits(strangers=4, stranger_s=WAIT_S * 10), check)


def test_a_wrong_token_leaves_one_a_stranger(tmp_path: Path) -> None:
    """Also at the route that asks for a code instead."""

    async def check(door: Door) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        door.stack.callback(writer.close)
        lines = ("POST /comfyfleet/v1/pair HTTP/1.1", "Host: x", "Authorization: Bearer wrong")
        writer.write("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode())
        await is_shut(reader)

    at_a_door(tmp_path, Limits(stranger_s=1.0), check)


def test_those_with_a_token_are_not_without_number(tmp_path: Path) -> None:
    async def check(door: Door) -> None:
        first, second = await door.session(), await door.session()
        assert await door.ask(first) == 200
        assert await door.ask(second) == 503
        await first.close()
        while await door.ask(second) == 503:
            pass  # the door hears of the end a moment later

    at_a_door(tmp_path, Limits(holders=1), check)


class Speaker(asyncio.Protocol):
    """Says what it hears. The first of all is followed by ``then``, so many steps of the loop after
    its connection was made."""

    later: list[Callable[[], None]]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        if self.later:
            asyncio.get_running_loop().call_soon(self.later.pop())

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "TLS"])
@pytest.mark.parametrize("steps", range(3))
def test_one_that_is_dropped_as_it_begins_is_gone_and_harms_no_other(
    tmp_path: Path, steps: int, tls: bool
) -> None:
    """Another may have the number of its file descriptor at once."""
    client = ssl._create_unverified_context() if tls else None

    async def check() -> None:
        door = Doorway(Speaker, _tls(*certificate(tmp_path)) if tls else None, Limits(strangers=1))

        def after(left: int) -> None:
            if left:
                asyncio.get_running_loop().call_soon(after, left - 1)
            else:
                door._make_place()

        Speaker.later = [lambda: after(steps)]
        port = await door.open("127.0.0.1", 0)
        first, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        await is_shut(first)
        reader, other = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        other.write(b"word")
        assert await asyncio.wait_for(reader.readexactly(4), WAIT_S) == b"word"
        writer.close()
        other.close()
        await door.close()

    asyncio.run(asyncio.wait_for(check(), WAIT_S))


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_machine_without_ipv6_listens_at_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its name for itself may have an address of version 6 all the same, and even as the first."""
    create, tcp = socket.create_server, socket.SOCK_STREAM
    addresses = [
        (socket.AF_INET6, tcp, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, tcp, 6, "", ("127.0.0.1", 0)),
    ]

    def here(address: tuple[str, int], *, family: socket.AddressFamily) -> socket.socket:
        if family is socket.AF_INET6:
            raise OSError(number, "no IPv6")
        return create(address, family=family)

    async def run() -> None:
        proxy = Proxy("http://127.0.0.1:1", Tokens(tmp_path / TOKENS_FILE))
        monkeypatch.setattr(
            "comfyfleet.fleet.doorway.socket.getaddrinfo", lambda *a, **k: addresses
        )
        monkeypatch.setattr("comfyfleet.fleet.doorway.socket.create_server", here)
        port = await proxy.start(Listening(host="localhost"))
        monkeypatch.undo()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await proxy.close()

    asyncio.run(run())


def test_an_address_that_is_not_ours_is_said(tmp_path: Path) -> None:
    async def run() -> None:
        proxy = Proxy("http://127.0.0.1:1", Tokens(tmp_path / TOKENS_FILE))
        with pytest.raises(FleetError, match=r"nobody can listen at 192\.0\.2\.1:0"):
            await proxy.start(Listening(host="192.0.2.1"))

    asyncio.run(run())
