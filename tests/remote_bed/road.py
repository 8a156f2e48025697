"""A way to a ComfyUI that can be cut, and held up."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Road:
    """Passes on what comes, and counts what goes to the ComfyUI and what comes home."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.url = ""
        self.sent = 0
        self.came = 0
        #: After so many bytes the connection is broken once, or nothing goes on.
        self.cut_at = math.inf
        self.hold_at = math.inf
        self.cuts = 0
        #: Never set: who waits for it is held up.
        self._held = asyncio.Event()

    async def run(self, is_open: threading.Event) -> None:
        """Be there until cancelled; ``url`` holds once it is open."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        is_open.set()
        async with server:
            await asyncio.Event().wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self._port)
        ways = (self._out(reader, there[1]), self._home(there[0], writer))
        tasks = [asyncio.ensure_future(way) for way in ways]
        with suppress(asyncio.CancelledError):  # the road ends, and the connection like any other
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for each in (writer, there[1]):
            each.close()

    async def _out(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self.sent += len(data)
                if self.sent >= self.cut_at:
                    self.cut_at, self.cuts = math.inf, self.cuts + 1
                    return
                if self.sent >= self.hold_at:
                    await self._held.wait()
                writer.write(data)
                await writer.drain()

    async def _home(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self.came += len(data)
                writer.write(data)
                await writer.drain()


@contextmanager
def road_to(port: int) -> Iterator[Road]:
    """A road to what listens on this port of this machine."""
    road, is_open, loop = Road(port), threading.Event(), asyncio.new_event_loop()
    task = loop.create_task(road.run(is_open))
    thread = threading.Thread(target=_run, args=(loop, task))
    thread.start()
    assert is_open.wait(60)
    try:
        yield road
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(60)


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    """Until the task is cancelled, and all that it has begun with it."""
    with suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.run_until_complete(_end_of(asyncio.all_tasks(loop)))
    loop.close()


async def _end_of(tasks: set[asyncio.Task[None]]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)  # closed connections go in the next turn
