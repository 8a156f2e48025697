"""What somebody asks of the master's own routes and the workers should do too."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import server
from aiohttp import web

from comfyfleet.config import is_worker
from comfyfleet.extension.master import master
from comfyfleet.extension.routes import (
    access,
    configuring,
    control,
    guest,
    insight,
    joining,
    models,
    pairing,
)

_FREE = ("/free", "/api/free")
_INTERRUPT = ("/interrupt", "/api/interrupt")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def install() -> None:
    """Watch the routes of this ComfyUI; before its server starts."""
    if not is_worker():
        server.PromptServer.instance.app.middlewares.append(_watch)
        master().watch_queue()
        access.install()
        control.install()
        pairing.install()
        insight.install()
        guest.install()
        joining.install()
        configuring.install()
        models.install()


@web.middleware
async def _watch(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method == "POST" and request.path in _INTERRUPT:
        return await _interrupt(request, handler)
    answer = await handler(request)
    if request.method == "POST" and request.path in _FREE and answer.status == 200:
        master().free(await request.json())
    return answer


async def _interrupt(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A prompt that runs on a worker is stopped there; ComfyUI would stop its own instead."""
    try:
        body = json.loads(await request.text() or "{}")
    except ValueError:
        body = {}
    prompt_id = body.get("prompt_id") if isinstance(body, dict) else None
    named = str(prompt_id) if prompt_id else None  # whatever was sent
    switch = master().switch
    if switch is not None and switch.interrupt(named) and named:
        return web.Response(status=200)
    return await handler(request)
