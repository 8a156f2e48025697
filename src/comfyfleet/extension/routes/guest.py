"""Routes for fleets of other machines that use this ComfyUI as a worker; see ``client.guest``."""

from __future__ import annotations

import asyncio
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web
from comfy.cli_args import args

from comfyfleet.api import guest as routes
from comfyfleet.client.background import in_background
from comfyfleet.comfy.guests import Guests
from comfyfleet.comfy.inputs import Inputs
from comfyfleet.comfy.prompts import queued_text
from comfyfleet.errors import InputError
from comfyfleet.extension.routes.access import serve
from comfyfleet.extension.routes.answers import Call

#: What is written at once.
_WRITE_BYTES = 256 << 10
_guests: Guests | None = None
_inputs: Inputs | None = None


def install() -> None:
    """Add the routes; before ComfyUI's server starts."""
    serve(routes.HELLO, _hello)
    serve(routes.BLOB_START, _start)
    serve(routes.BLOB_ADD, _add)
    serve(routes.INPUT_START, _input_start)
    serve(routes.INPUT_ADD, _input_add)
    serve(routes.HOLD, _hold)
    serve(routes.MANIFEST, _manifest)
    serve(routes.FORGET, _forget)
    serve(routes.PIECE, _piece)


def guests() -> Guests:
    """What other fleets have left here. Made at first use."""
    global _guests
    if _guests is None:
        _guests = Guests(Path(folder_paths.get_temp_directory()) / "comfyfleet-guests")
    return _guests


async def _hello(_call: Call) -> dict[str, Any]:
    return {"comfyfleet": version("comfyfleet"), "protocol": routes.PROTOCOL}


async def _start(call: Call) -> dict[str, Any]:
    return {"start": guests().blob_start(call["name"], call["size"])}


async def _add(call: Call) -> dict[str, Any]:
    data = await call.body()
    start = await asyncio.to_thread(guests().add, call["name"], call["start"], call["size"], data)
    return {"start": start}


async def _input_start(call: Call) -> dict[str, Any]:
    return await _taken(call["name"], call["size"], 0, b"")


async def _input_add(call: Call) -> dict[str, Any]:
    return await _taken(call["name"], call["size"], call["start"], await call.body())


async def _taken(name: str, size: int, start: int, data: bytes) -> dict[str, Any]:
    return {"start": await in_background(_inputs_here().take, name, size, start, data)}


def _inputs_here() -> Inputs:
    """Of all fleets together; but other ComfyUIs may have the same input folder."""
    global _inputs
    if _inputs is None:
        _inputs = Inputs(f"guest-{platform.node()}-{args.port}", queued_text)
    return _inputs


async def _hold(call: Call) -> dict[str, Any]:
    described = await call.json()
    if not isinstance(described, dict):
        raise InputError("the body must be a JSON object.")
    await asyncio.to_thread(guests().hold, call["prompt"], described)
    return {}


async def _manifest(call: Call) -> dict[str, Any]:
    return guests().manifest(call["prompt"])


async def _forget(call: Call) -> dict[str, Any]:
    guests().forget(call["prompt"])
    return {}


async def _piece(call: Call) -> web.StreamResponse:
    given = (call[name] for name in ("prompt", "buffer", "start", "stop", "encoding"))
    data = await asyncio.to_thread(guests().piece, *given)
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = len(data)
    await response.prepare(call.request)
    for start in range(0, len(data), _WRITE_BYTES):
        # Small enough for the socket to take whole: what it does not take would be copied.
        await response.write(data[start : start + _WRITE_BYTES])
    return response
