"""What somebody asks of the master's own routes and the workers should do too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import server
from aiohttp import web

from comfyfleet.config import is_worker
from comfyfleet.extension.master import master

_FREE = ("/free", "/api/free")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def install() -> None:
    """Watch the routes of this ComfyUI; before its server starts."""
    if not is_worker():
        server.PromptServer.instance.app.middlewares.append(_watch)


@web.middleware
async def _watch(request: web.Request, handler: Handler) -> web.StreamResponse:
    answer = await handler(request)
    if request.method == "POST" and request.path in _FREE and answer.status == 200:
        master().free(await request.json())
    return answer
