"""How long a follower may be silent, set over HTTP: few tests are about silence."""

from __future__ import annotations

import server
from aiohttp import web

routes = server.PromptServer.instance.routes


@routes.post("/test/patience")
async def patience(request: web.Request) -> web.Response:
    from comfyfleet.fleet import loans

    loans._PATIENCE_S = float((await request.json())["seconds"])
    return web.Response()
