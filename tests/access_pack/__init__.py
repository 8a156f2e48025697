"""A pack that tells the tests which routes this ComfyUI has, and has no patience with bodies."""

from __future__ import annotations

from typing import Any

import server
from aiohttp import web

NODE_CLASS_MAPPINGS: dict[str, Any] = {}

routes = server.PromptServer.instance.routes


@routes.get("/test/routes")
async def listed(request: web.Request) -> web.Response:
    found = [
        {
            "method": route.method,
            "path": route.resource.canonical if route.resource else "",
            "by": f"{route.handler.__module__}.{route.handler.__qualname__}",
        }
        for route in request.app.router.routes()
    ]
    return web.json_response(found)


@routes.post("/test/patience")
async def patience(request: web.Request) -> web.Response:
    from comfyfleet.extension.routes import answers

    answers.BODY_S = float(await request.text())
    return web.Response()
