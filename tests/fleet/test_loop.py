"""What is handed over to the fleet's loop while it ends."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest

from comfyfleet.errors import FleetError
from comfyfleet.fleet.loop import Loop
from tests.support import wait_until


def test_who_asks_while_the_loop_ends_does_not_wait_for_ever() -> None:
    """As a look at the status does that comes while a fleet is closed."""
    ends, go_on, has_begun = threading.Event(), threading.Event(), threading.Event()

    async def lingers() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.set()
            await asyncio.to_thread(go_on.wait, 60)

    async def main() -> None:
        loop.spawn(lingers())
        await asyncio.sleep(0)

    async def never() -> None:
        has_begun.set()
        await asyncio.Event().wait()

    def ask() -> None:
        try:
            answer.set_result(loop.wait_for(never()))
        except FleetError as error:
            answer.set_exception(error)

    answer: Future[None] = Future()
    loop = Loop(main, lambda error: None)
    loop.start()
    assert ends.wait(60)
    threading.Thread(target=ask, daemon=True).start()
    wait_until(lambda: has_begun.is_set() or answer.done(), "somebody who asks")
    go_on.set()
    with pytest.raises(FleetError, match="the fleet has ended"):
        answer.result(60)
    loop.join(60)
    assert not loop.alive


def test_nothing_goes_on_after_the_end() -> None:
    """Ray is down by then, and would start anew for whoever uses it."""
    steps: list[str] = []
    may_go_on = asyncio.Event()

    async def waits() -> None:
        await may_go_on.wait()
        steps.append("went on")

    async def main() -> None:
        loop.spawn(waits())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(may_go_on.set)  # as answers come while Ray goes down

    loop = Loop(main, lambda error: None)
    loop.start()
    loop.join(60)
    assert not loop.alive and steps == []
