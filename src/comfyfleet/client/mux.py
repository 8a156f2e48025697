"""Many byte streams over one web socket, so that a worker behind NAT can be asked through it.

The master opens streams, the worker connects each to its own ComfyUI and nowhere else. A frame is
the stream's number (4 bytes), a kind (1 byte) and content. Each side sends at most a window of
bytes that the other has not yet passed on, so one slow stream holds up no other (as in HTTP/2, RFC
9113, section 5.2).
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import IntEnum

from comfyfleet.errors import InputError

Send = Callable[[bytes], Awaitable[None]]
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

_HEAD = struct.Struct(">IB")
_CREDIT = struct.Struct(">I")
_WINDOW_BYTES = 4 << 20
_CHUNK_BYTES = 128 << 10
#: More than connections of one client.
_MAX_STREAMS = 64

#: A frame is no larger: for the web socket's limit.
MAX_FRAME_BYTES = _CHUNK_BYTES + _HEAD.size


class Kind(IntEnum):
    OPEN = 0
    DATA = 1
    #: No more data comes; an answer still may.
    END = 2
    #: Forget the stream.
    RESET = 3
    #: So many bytes were passed on.
    CREDIT = 4


class _Stream:
    """One connection here, and what is on its way to it."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self.pending = 0
        #: No more data comes.
        self.ended = False
        self.window = _WINDOW_BYTES
        self.opened = asyncio.Event()
        self.opened.set()
        self.task: asyncio.Task[None] | None = None


class Mux:
    """One end. ``connect`` is given on the worker's side, which accepts streams."""

    def __init__(self, send: Send, connect: Connect | None = None) -> None:
        self._send = send
        self._connect = connect
        self._closed = False
        self._numbers = itertools.count(1)
        self._streams: dict[int, _Stream] = {}

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on as a new stream, until it ends."""
        if len(self._streams) >= _MAX_STREAMS:
            writer.close()
            return
        number = next(self._numbers)
        stream = self._streams[number] = _Stream()
        stream.task = asyncio.current_task()
        await self._frame(number, Kind.OPEN)
        await self._pump(number, stream, reader, writer)

    async def feed(self, frame: bytes) -> None:
        """Take in what came. Raises InputError for what makes no sense."""
        if len(frame) < _HEAD.size:
            raise InputError("a frame that is too short.")
        number, kind = _HEAD.unpack_from(frame)
        content = frame[_HEAD.size :]
        if kind == Kind.OPEN:
            self._open(number)
            return
        stream = self._streams.get(number)
        if stream is None:
            return  # it has ended here, and the word of that is on its way
        if kind == Kind.DATA and content:
            stream.pending += len(content)
            if stream.pending > _WINDOW_BYTES or stream.ended:
                raise InputError("more data than the window allows, or after the end.")
            stream.arrived.put_nowait(content)
        elif kind == Kind.END and not stream.ended:
            stream.ended = True
            stream.arrived.put_nowait(b"")
        elif kind == Kind.RESET and stream.task is not None:
            stream.task.cancel()
        elif kind == Kind.CREDIT and len(content) == _CREDIT.size:
            stream.window += _CREDIT.unpack(content)[0]
            stream.opened.set()

    async def close(self) -> None:
        """End all streams. The other side is told nothing: the line ends too."""
        self._closed = True
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _open(self, number: int) -> None:
        if self._connect is None or number in self._streams:
            raise InputError("a stream was opened by the wrong side, or twice.")
        if len(self._streams) >= _MAX_STREAMS:
            raise InputError(f"more than {_MAX_STREAMS} streams.")
        stream = self._streams[number] = _Stream()
        stream.task = asyncio.ensure_future(self._serve(number, stream, self._connect))

    async def _serve(self, number: int, stream: _Stream, connect: Connect) -> None:
        try:
            reader, writer = await connect()
        except OSError:
            self._streams.pop(number, None)
            await self._frame(number, Kind.RESET)
            return
        await self._pump(number, stream, reader, writer)

    async def _pump(
        self,
        number: int,
        stream: _Stream,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Both ways, until both have ended."""
        ways = [
            asyncio.ensure_future(self._pump_out(number, stream, reader)),
            asyncio.ensure_future(self._pump_in(number, stream, writer)),
        ]
        try:
            await asyncio.gather(*ways)
        except (OSError, asyncio.CancelledError):
            if not self._closed:  # who reads nothing would hold us up
                with suppress(OSError):
                    await self._frame(number, Kind.RESET)
        finally:
            for way in ways:
                way.cancel()
            self._streams.pop(number, None)
            writer.close()

    async def _pump_out(self, number: int, stream: _Stream, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            while stream.window < len(data):
                stream.opened.clear()
                await stream.opened.wait()
            stream.window -= len(data)
            await self._frame(number, Kind.DATA, data)
        await self._frame(number, Kind.END)

    async def _pump_in(self, number: int, stream: _Stream, writer: asyncio.StreamWriter) -> None:
        while data := await stream.arrived.get():
            writer.write(data)
            await writer.drain()
            stream.pending -= len(data)
            await self._frame(number, Kind.CREDIT, _CREDIT.pack(len(data)))
        if writer.can_write_eof():
            writer.write_eof()

    async def _frame(self, number: int, kind: Kind, content: bytes = b"") -> None:
        await self._send(_HEAD.pack(number, kind) + content)
