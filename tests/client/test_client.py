"""Prompts that are stopped on their way, against a server that takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from comfyfleet.client.attempt import Attempt
from comfyfleet.client.comfyui import ComfyClient
from comfyfleet.client.link import Endpoint, Link
from comfyfleet.errors import RunCancelled


class SlowServer:
    """As much of ComfyUI as a client meets whose prompt is stopped."""

    def __init__(self) -> None:
        self.pending: list[str] = []
        self.running: list[str] = []
        #: A prompt is being validated, and may go on to the queue.
        self.arrived, self.go_on = asyncio.Event(), asyncio.Event()
        self.queued, self.interrupted = asyncio.Event(), asyncio.Event()
        #: How many interrupts it forgets, as they come before it has begun what it took.
        self.deaf = 0
        self.on_interrupt: Callable[[], Awaitable[None]] | None = None
        #: How often it answers as a proxy does whose server is away.
        self.away = 0
        #: Called soon after somebody has looked at the queue.
        self.on_looked: Callable[[], None] = lambda: None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/ws", self.socket)
        app.router.add_post("/prompt", self.prompt)
        app.router.add_post("/queue", self.delete)
        app.router.add_get("/queue", self.queue)
        app.router.add_post("/interrupt", self.interrupt)
        app.router.add_get("/history/{id}", self.history)
        return app

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        stopped = asyncio.ensure_future(self.interrupted.wait())
        gone = asyncio.ensure_future(socket.receive())
        await asyncio.wait({stopped, gone}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            await socket.send_json({"type": "execution_interrupted", "data": {"prompt_id": "one"}})
            done = {"node": None, "prompt_id": "one"}
            await socket.send_json({"type": "executing", "data": done})
            await gone
        stopped.cancel()
        return socket

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.arrived.set()
        await self.go_on.wait()
        self.pending.append(body["prompt_id"])
        self.queued.set()
        return web.json_response({"prompt_id": body["prompt_id"]})

    async def delete(self, request: web.Request) -> web.Response:
        if self.away:
            self.away -= 1
            raise web.HTTPBadGateway
        for prompt_id in (await request.json())["delete"]:
            if prompt_id in self.pending:
                self.pending.remove(prompt_id)
        return web.Response()

    async def queue(self, request: web.Request) -> web.Response:
        asyncio.get_running_loop().call_later(0.05, self.on_looked)
        found = {"queue_running": self.running, "queue_pending": self.pending}
        return web.json_response({key: [[0, each] for each in ids] for key, ids in found.items()})

    async def interrupt(self, request: web.Request) -> web.Response:
        if self.on_interrupt is not None:
            await self.on_interrupt()
        if self.running and self.deaf:
            self.deaf -= 1
        elif self.running:
            self.running.clear()
            self.interrupted.set()
        return web.Response()

    async def history(self, request: web.Request) -> web.Response:
        return web.json_response({"one": {"outputs": {}, "status": {"messages": []}}})


Story = Callable[[SlowServer, Attempt], Awaitable[None]]


async def told(story: Story) -> list[str]:
    """What is left in the queue of a prompt to which this happens, once the attempt has ended."""
    server = SlowServer()
    runner = web.AppRunner(server.app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    link = Link(Endpoint(url=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    client = ComfyClient(link)
    attempt = Attempt(client)
    end = asyncio.ensure_future(attempt.end_of(client.run({}, "one", lambda done: None), "one"))
    await server.arrived.wait()
    await story(server, attempt)
    with pytest.raises(RunCancelled):
        await end
    await link.close()
    await runner.cleanup()
    return server.pending + server.running


async def while_it_is_validated(server: SlowServer, attempt: Attempt) -> None:
    await attempt.interrupt("one")
    await asyncio.sleep(0)
    server.go_on.set()


async def while_it_is_looked_for(server: SlowServer, attempt: Attempt) -> None:
    """It was in no list when it was deleted, and is in one when that is checked."""

    async def arrive() -> None:
        server.go_on.set()
        await server.queued.wait()

    server.on_interrupt = arrive
    await attempt.interrupt("one")


async def after_it_was_looked_for(server: SlowServer, attempt: Attempt) -> None:
    """It begins when all seems to be over."""
    server.on_looked = server.go_on.set
    await attempt.interrupt("one")
    await server.queued.wait()
    server.running, server.pending = server.pending, []


async def while_the_way_is_broken(server: SlowServer, attempt: Attempt) -> None:
    """For the first look, and for one when its task has ended."""

    def arrive() -> None:
        server.away += not server.go_on.is_set()
        server.go_on.set()

    server.away = 1
    server.on_looked = arrive
    await attempt.interrupt("one")


async def before_it_begins(server: SlowServer, attempt: Attempt) -> None:
    """ComfyUI has taken it, and forgets who wanted to stop it."""
    server.go_on.set()
    await server.queued.wait()
    server.running, server.pending = server.pending, []
    server.deaf = 2
    await attempt.interrupt("one")


@pytest.mark.parametrize(
    "story",
    [
        while_it_is_validated,
        while_it_is_looked_for,
        after_it_was_looked_for,
        while_the_way_is_broken,
        before_it_begins,
    ],
)
def test_nothing_is_left_of_a_prompt_that_was_stopped(story: Story) -> None:
    """It would hold up the worker, with nobody who waits for it."""
    assert asyncio.run(asyncio.wait_for(told(story), 120)) == []
