"""How many may stand in a door at once: few who have shown no token, and none of them for long.

It accepts connections itself: a server of asyncio takes in as many as come, and counts none whose
TLS has not begun yet.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import web

from comfyfleet.errors import FleetError

logger = logging.getLogger(__name__)

#: What speaks HTTP on one connection.
Speaker: TypeAlias = asyncio.BaseProtocol
#: After the system had no room for a connection.
_PAUSE_S = 1.0
#: A name may have addresses of a version of IP that this machine does not have.
_NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Each connection is a file descriptor, and one more to ComfyUI: 1024 is what many have."""

    #: Connections that have shown no token yet. Beyond it one of them goes for each that comes.
    strangers: int = 64
    #: How long such a one may stay, TLS and the body of a pairing included.
    stranger_s: float = 30.0
    #: Connections that have shown a token.
    holders: int = 256
    #: How long such a one may ask for nothing: who is cut off takes no leave, and would keep places
    #: from those who come again. Libraries let go of theirs after 15 s.
    idle_s: float = 75.0


LIMITS = Limits()


@dataclass(slots=True, kw_only=True, eq=False)
class _Visit:
    """One connection."""

    socket: socket.socket
    #: Who is to share a stranger's places.
    origin: str
    is_stranger: bool = True
    is_dropped: bool = False
    transport: asyncio.BaseTransport | None = None
    beginning: asyncio.Future[Any] | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def is_over(self) -> bool:
        """asyncio closes the socket with its transport, in whatever way that ends."""
        return self.socket.fileno() < 0


class Doorway:
    """Used on one event loop; between ``open`` and ``close`` it listens."""

    def __init__(self, server: web.Server, tls: ssl.SSLContext | None, limits: Limits) -> None:
        """``server`` makes what speaks on each connection."""
        self._server, self._tls, self._limits = server, tls, limits
        self._visits: dict[Speaker, _Visit] = {}
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []

    async def open(self, host: str, port: int) -> int:
        """Listen; the port. Raises FleetError if that is not possible."""
        try:
            self._listening = await asyncio.to_thread(_bound, host, port)
        except OSError as error:
            raise FleetError(
                f"nobody can listen at {host}:{port} ({error.strerror or error}). Choose another "
                "--listen or --port."
            ) from error
        self._accepting = [asyncio.ensure_future(self._accept(each)) for each in self._listening]
        return int(self._listening[0].getsockname()[1])

    async def close(self) -> None:
        """Listen no more, and drop who has shown no token; the server ends what is left."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listening in self._listening:
            listening.close()
        for visit in [each for each in self._visits.values() if each.is_stranger]:
            _drop(visit)

    def know(self, speaker: Speaker) -> bool:
        """It has shown a token, and may stay; False if too many have."""
        visit = self._visits.get(speaker)
        if visit is None or not visit.is_stranger:
            return True
        self._forget_ended()
        if len(self._visits) - len(self._strangers()) >= self._limits.holders:
            return False
        visit.is_stranger = False
        if visit.timer is not None:
            visit.timer.cancel()
        return True

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:  # no descriptor is left, or it has gone already
                logger.warning("a connection was not accepted: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            self._forget_ended()
            self._make_place()
            self._begin(connection, _origin_of(address[0]))
            await asyncio.sleep(0)  # many at once must not keep others waiting

    def _begin(self, connection: socket.socket, origin: str) -> None:
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        speaker, visit = self._server(), _Visit(socket=connection, origin=origin)
        self._visits[speaker] = visit
        visit.timer = loop.call_later(self._limits.stranger_s, _drop, visit)
        beginning = loop.connect_accepted_socket(lambda: speaker, connection, ssl=self._tls)
        visit.beginning = asyncio.ensure_future(beginning)
        visit.beginning.add_done_callback(lambda done: _begun(visit, done))

    def _make_place(self) -> None:
        """Of those who have the most places, the one goes that has stayed longest."""
        strangers = self._strangers()
        if len(strangers) >= self._limits.strangers:
            [(origin, _)] = Counter(each.origin for each in strangers.values()).most_common(1)
            speaker = next(key for key, each in strangers.items() if each.origin == origin)
            _drop(self._visits.pop(speaker))

    def _strangers(self) -> dict[Speaker, _Visit]:
        return {key: each for key, each in self._visits.items() if each.is_stranger}

    def _forget_ended(self) -> None:
        for speaker in [key for key, each in self._visits.items() if each.is_over]:
            visit = self._visits.pop(speaker)
            if visit.timer is not None:
                visit.timer.cancel()


def _begun(visit: _Visit, done: asyncio.Future[Any]) -> None:
    """TLS stands, where there is any; or it does not."""
    if done.cancelled() or done.exception() is not None:
        visit.socket.close()
        return
    visit.transport = done.result()[0]
    if visit.is_dropped:
        _drop(visit)


def _drop(visit: _Visit) -> None:
    """At any moment; what has begun meanwhile ends itself the socket that it looks after."""
    visit.is_dropped = True
    if visit.timer is not None:
        visit.timer.cancel()
    if isinstance(visit.transport, asyncio.WriteTransport):
        visit.transport.abort()
        return
    with suppress(OSError):  # the other side has gone already
        visit.socket.shutdown(socket.SHUT_RDWR)


def _bound(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host that is here, listening. Raises OSError."""
    flags = socket.AI_PASSIVE
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    bound: list[socket.socket] = []
    faults: list[OSError] = []
    for family, address in dict.fromkeys((each[0], each[4]) for each in found):
        try:
            bound.append(socket.create_server(address, family=family))
            bound[-1].setblocking(False)
        except OSError as error:
            faults.append(error)
    serious = [error for error in faults if not bound or error.errno not in _NOT_HERE]
    if serious:
        for each in bound:
            each.close()
        raise serious[0]
    return bound


def _origin_of(address: str) -> str:
    """An address, or the network of which one machine may have all of version 6."""
    with suppress(ValueError):
        found = ipaddress.ip_address(address.partition("%")[0])
        if found.version == 6 and found.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(found), 64), strict=False))
    return address
