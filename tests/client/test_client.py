"""Prompts that are cancelled on their way, against a server that takes its time."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from comfyfleet.client.comfyui import ComfyClient
from comfyfleet.client.link import Endpoint, Link


class SlowServer:
    """As much of ComfyUI as a client meets before its prompt runs."""

    def __init__(self) -> None:
        self.pending: list[str] = []
        self.arrived, self.go_on = asyncio.Event(), asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/ws", self.socket)
        app.router.add_post("/prompt", self.prompt)
        app.router.add_post("/queue", self.delete)
        app.router.add_get("/queue", self.running)
        app.router.add_post("/interrupt", self.running)
        return app

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        return socket

    async def prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.arrived.set()
        await self.go_on.wait()  # as while it validates
        self.pending.append(body["prompt_id"])
        return web.json_response({"prompt_id": body["prompt_id"]})

    async def delete(self, request: web.Request) -> web.Response:
        for prompt_id in (await request.json())["delete"]:
            if prompt_id in self.pending:
                self.pending.remove(prompt_id)
        return web.Response()

    async def running(self, request: web.Request) -> web.Response:
        return web.json_response({"queue_running": []})


async def cancel_while_queueing() -> list[str]:
    """What is left in the queue."""
    server = SlowServer()
    runner = web.AppRunner(server.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    link = Link(Endpoint(url=address))
    run = ComfyClient(link).run({}, "one", lambda done: None)
    task = asyncio.ensure_future(run)
    await server.arrived.wait()
    task.cancel()
    await asyncio.sleep(0)
    server.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await link.close()
    await runner.cleanup()
    return server.pending


def test_a_prompt_that_is_cancelled_while_it_is_queued_does_not_run() -> None:
    """It would hold up the worker, with nobody who waits for it."""
    assert asyncio.run(asyncio.wait_for(cancel_while_queueing(), 30)) == []
