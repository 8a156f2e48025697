"""Byte streams over one connection, against real sockets on both ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from comfyfleet.client.mux import Kind, Mux
from comfyfleet.errors import InputError


@asynccontextmanager
async def through(serve) -> AsyncIterator[tuple[str, int]]:
    """The address at which ``serve`` is reached through two ends of a mux."""
    target = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = target.sockets[0].getsockname()[1]
    there: Mux = Mux(
        lambda frame: here.feed(frame), lambda: asyncio.open_connection("127.0.0.1", port)
    )
    here: Mux = Mux(lambda frame: there.feed(frame))
    door = await asyncio.start_server(here.accept, "127.0.0.1", 0)
    yield door.sockets[0].getsockname()
    door.close()
    target.close()
    await here.close()
    await there.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def ask(address: tuple[str, int], data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)

    async def write() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.ensure_future(write())
    answer = await reader.read(-1)
    await sending
    writer.close()
    return answer


def run(work) -> None:
    asyncio.run(asyncio.wait_for(work(), 120))


def test_many_streams_of_more_than_a_window_each() -> None:
    async def work() -> None:
        sent = [os.urandom(10_000_000) for _ in range(4)]
        async with through(echo) as address:
            assert await asyncio.gather(*(ask(address, data) for data in sent)) == sent

    run(work)


def test_a_stream_that_nobody_reads_holds_up_no_other() -> None:
    async def work() -> None:
        async with through(echo) as address:
            _, stalled = await asyncio.open_connection(*address)
            stalled.write(b"x" * 50_000_000)  # its answer is never read
            assert await ask(address, b"hello") == b"hello"
            stalled.close()

    run(work)


def test_a_target_that_does_not_answer_ends_the_connection() -> None:
    async def work() -> None:
        async def refuse() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            raise ConnectionRefusedError

        there: Mux = Mux(lambda frame: here.feed(frame), refuse)
        here: Mux = Mux(lambda frame: there.feed(frame))
        door = await asyncio.start_server(here.accept, "127.0.0.1", 0)
        assert await ask(door.sockets[0].getsockname(), b"") == b""
        door.close()

    run(work)


@pytest.mark.parametrize(
    "frames",
    [
        [b"\0"],
        [b"\0\0\0\1" + bytes([Kind.OPEN])],
    ],
    ids=["too short", "opened by the worker"],
)
def test_frames_that_make_no_sense_are_refused(frames: list[bytes]) -> None:
    async def work() -> None:
        async def send(frame: bytes) -> None:
            raise AssertionError(frame)

        with pytest.raises(InputError):
            for frame in frames:
                await Mux(send).feed(frame)

    run(work)


def test_who_reads_nothing_does_not_hold_up_the_end() -> None:
    async def work() -> None:
        begun = asyncio.Event()

        async def send(frame: bytes) -> None:
            if frame[4] != Kind.OPEN:
                begun.set()
                await asyncio.Event().wait()

        mux = Mux(send)
        door = await asyncio.start_server(mux.accept, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*door.sockets[0].getsockname())
        writer.write(b"x")
        await begun.wait()
        await mux.close()
        assert await reader.read() == b""
        writer.close()
        door.close()

    run(work)


def test_a_flood_of_ends_fills_no_memory() -> None:
    """Nor do empty pieces, which count nothing; and nothing comes after the end."""

    async def work() -> None:
        sent: list[bytes] = []

        async def send(frame: bytes) -> None:
            sent.append(frame)

        async def stuck() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            await asyncio.Event().wait()
            raise AssertionError

        mux = Mux(send, stuck)
        number = b"\0\0\0\1"
        await mux.feed(number + bytes([Kind.OPEN]))
        for _ in range(1000):
            await mux.feed(number + bytes([Kind.DATA]))
            await mux.feed(number + bytes([Kind.END]))
            await mux.feed(number + bytes([Kind.CREDIT]) + b"x")
        assert mux._streams[1].arrived.qsize() == 1
        with pytest.raises(InputError):
            await mux.feed(number + bytes([Kind.DATA]) + b"x")
        await mux.close()

    run(work)
