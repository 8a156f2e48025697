"""The door of a machine that joins: its token is valid for as long as it stands open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from comfyfleet.cli.join_url import _door
from comfyfleet.fleet.proxy import Proxy
from comfyfleet.fleet.tokens import TOKENS_FILE, Tokens

Closing: TypeAlias = Callable[[Proxy], Awaitable[None]]


async def cut_off(folder: Path, begun: asyncio.Event, times: int) -> None:
    """Keep a door open until ``begun``, and go so often."""

    async def keep() -> None:
        async with _door("http://127.0.0.1:1", folder, "http://there", "me"):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(keep())
    await begun.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


def opening(begun: asyncio.Event) -> Callable[..., Awaitable[int]]:
    """Stands for a proxy that takes long to listen."""

    async def start(*_: object) -> int:
        begun.set()
        await asyncio.Event().wait()
        return 0

    return start


def closing(begun: asyncio.Event, close: Closing = Proxy.close) -> Closing:
    """A proxy that takes long to close, and is cut off at that."""

    async def slow(proxy: Proxy) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await close(proxy)

    return slow


SLOW = {"start": opening, "close": closing}


@pytest.mark.parametrize(("method", "times"), [("start", 1), ("close", 2), ("", 1)])
def test_no_token_outlives_it(
    method: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is ended while it opens, and twice while it closes."""
    Tokens(tmp_path / TOKENS_FILE).prepare()
    begun = asyncio.Event()
    if method:
        monkeypatch.setattr(Proxy, method, SLOW[method](begun))
    asyncio.run(cut_off(tmp_path, begun, times))
    assert not Tokens(tmp_path / TOKENS_FILE).issued()
