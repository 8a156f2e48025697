"""Routes for fleets of other machines that use this ComfyUI as a worker; see ``client.guest``."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import Any

import folder_paths
import server
from aiohttp import web

from comfyfleet.client.guest import BASE, PIECE_BYTES
from comfyfleet.comfy.guests import Guests
from comfyfleet.errors import InputError
from comfyfleet.extension.answers import body_of, integer, told

#: What a fleet and its workers understand alike; another number is another language.
PROTOCOL = 1
#: Larger than any value.
_MAX_SIZE = 1 << 40

_guests: Guests | None = None


def install() -> None:
    """Add the routes; before ComfyUI's server starts."""
    routes = server.PromptServer.instance.routes
    routes.get(f"{BASE}/hello")(told(_hello))
    routes.get(f"{BASE}/blobs/{{name}}")(told(_start))
    routes.put(f"{BASE}/blobs/{{name}}")(told(_add))
    routes.put(f"{BASE}/prompts/{{prompt}}")(told(_hold))
    routes.get(f"{BASE}/prompts/{{prompt}}")(told(_manifest))
    routes.delete(f"{BASE}/prompts/{{prompt}}")(told(_forget))
    routes.get(f"{BASE}/prompts/{{prompt}}/{{buffer}}")(_piece)


def guests() -> Guests:
    """What other fleets have left here. Made at first use."""
    global _guests
    if _guests is None:
        _guests = Guests(Path(folder_paths.get_temp_directory()) / "comfyfleet-guests")
    return _guests


async def _hello(_request: web.Request) -> dict[str, Any]:
    return {"comfyfleet": version("comfyfleet"), "protocol": PROTOCOL}


async def _start(request: web.Request) -> dict[str, Any]:
    size = integer(request.query.get("size", ""), "size", 0, _MAX_SIZE)
    return {"start": guests().blob_start(request.match_info["name"], size)}


async def _add(request: web.Request) -> dict[str, Any]:
    size = integer(request.query.get("size", ""), "size", 0, _MAX_SIZE)
    start = integer(request.query.get("start", ""), "start", 0, size)
    if (request.content_length or 0) > PIECE_BYTES:
        raise InputError(f"a piece has at most {PIECE_BYTES} bytes.")
    data = await request.read()
    name = request.match_info["name"]
    return {"start": await asyncio.to_thread(guests().add, name, start, size, data)}


async def _hold(request: web.Request) -> dict[str, Any]:
    described = await body_of(request)
    await asyncio.to_thread(guests().hold, request.match_info["prompt"], described)
    return {}


async def _manifest(request: web.Request) -> dict[str, Any]:
    return guests().manifest(request.match_info["prompt"])


async def _forget(request: web.Request) -> dict[str, Any]:
    guests().forget(request.match_info["prompt"])
    return {}


async def _piece(request: web.Request) -> web.Response:
    try:
        start, stop = (
            integer(request.query.get(name, ""), name, 0, _MAX_SIZE) for name in ("start", "stop")
        )
        buffer = integer(request.match_info["buffer"], "buffer", 0, 1 << 20)
        encoding = request.query.get("encoding", "raw")
        prompt_id = request.match_info["prompt"]
        data = await asyncio.to_thread(guests().piece, prompt_id, buffer, start, stop, encoding)
    except InputError as error:
        return web.json_response({"error": str(error)}, status=400)
    return web.Response(body=data, content_type="application/octet-stream")
